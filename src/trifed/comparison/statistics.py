"""Intervals of means over clients, and of paired differences, by a bootstrap over clients and their test rows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Right = Sequence[NDArray[np.bool_]]
"""For each client (of each seed), which test rows are right: (n_rows,) bool."""

RESAMPLES = 4000


def interval(right: Right, against: Right | None = None, *, seed: int = 0) -> tuple[float, float]:
    """95 % percentile interval of the mean accuracy over clients, or of the paired difference to `against`.

    Clients are drawn anew with replacement, and each drawn client's test rows within it; a row is drawn together
    with what both methods made of it. Clients without test rows are left out. NaN without any client.
    """
    other = right if against is None else against
    pairs = [(mine, theirs) for mine, theirs in zip(right, other, strict=True) if len(mine)]
    if not pairs:
        return float("nan"), float("nan")
    sizes = np.array([len(mine) for mine, _ in pairs])
    gain = np.array([_gains(mine, None if against is None else theirs) for mine, theirs in pairs])
    rng = np.random.default_rng(seed)
    total = np.zeros(RESAMPLES)
    for _ in pairs:  # one place of the resampled list of clients after the other
        client = rng.integers(len(pairs), size=RESAMPLES)
        # Rows drawn with replacement count how often each of the three outcomes (+1, 0, −1) comes up.
        drawn = rng.multinomial(sizes[client], gain[client])
        total += (drawn[:, 0] - drawn[:, 2]) / sizes[client]
    low, high = np.quantile(total / len(pairs), (0.025, 0.975))
    return float(low), float(high)


def _gains(mine: NDArray[np.bool_], theirs: NDArray[np.bool_] | None) -> NDArray[np.float64]:
    """Shares of the rows that gain +1, 0 and −1, (3,)."""
    gain = mine.astype(np.int64) - (0 if theirs is None else theirs.astype(np.int64))
    return np.array([(gain == 1).mean(), (gain == 0).mean(), (gain == -1).mean()])


def mean_over_clients(right: Right) -> float:
    """Mean accuracy over the clients that have test rows."""
    return float(np.mean([rows.mean() for rows in right if len(rows)]))
