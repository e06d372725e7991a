"""Intervals of means over clients, and of paired differences, by a bootstrap over clients and their test rows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Right = Sequence[NDArray[np.bool_ | np.float64]]
"""For each client (of each seed), which test rows are right, or how much of each: (n_rows,) bool, or shares."""

RESAMPLES = 4000


def interval(right: Right, against: Right | None = None, *, seed: int = 0) -> tuple[float, float]:
    """95 % percentile interval of the mean accuracy over clients, or of the paired difference to `against`.

    Clients are drawn anew with replacement, and each drawn client's test rows within it; a row is drawn together
    with what both methods made of it. Clients without test rows are left out. NaN without any client.
    """
    other = right if against is None else against
    gains = [
        mine.astype(np.float64) - (0.0 if against is None else theirs)
        for mine, theirs in zip(right, other, strict=True)
        if len(mine)
    ]
    if not gains:
        return float("nan"), float("nan")
    rng = np.random.default_rng(seed)
    outcomes = [np.unique(gain, return_counts=True) for gain in gains]
    total = np.zeros(RESAMPLES)
    for _ in gains:  # one place of the resampled list of clients after the other
        client = rng.integers(len(gains), size=RESAMPLES)
        for place, (values, counts) in enumerate(outcomes):
            here = client == place
            # Rows drawn with replacement count how often each outcome comes up.
            drawn = rng.multinomial(counts.sum(), counts / counts.sum(), size=int(here.sum()))
            total[here] += drawn @ values / counts.sum()
    low, high = np.quantile(total / len(gains), (0.025, 0.975))
    return float(low), float(high)


def mean_over_clients(right: Right) -> float:
    """Mean accuracy over the clients that have test rows."""
    return float(np.mean([rows.mean() for rows in right if len(rows)]))
