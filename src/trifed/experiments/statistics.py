"""Intervals of means over clients, and of paired differences, by a bootstrap over clients and their test rows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Right = Sequence[NDArray[np.bool_ | np.float64]]
"""For each client of each seed, which test rows are right, (n_rows,) bool, or which share of each is, float."""

RESAMPLES = 4000


def interval(right: Right, against: Right | None = None, *, seed: int = 0) -> tuple[float, float]:
    """Return a 95 % bootstrap interval of the mean accuracy over clients, or of its paired gain over `against`.

    Clients are drawn with replacement, and test rows within each drawn client; a row keeps the results of both
    methods. Clients without test rows are left out; the result is NaN if there are no others.
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
    for _ in gains:  # one position of the resampled clients at a time
        client = rng.integers(len(gains), size=RESAMPLES)
        for place, (values, counts) in enumerate(outcomes):
            here = client == place
            # Drawing rows with replacement is drawing how often each outcome occurs.
            drawn = rng.multinomial(counts.sum(), counts / counts.sum(), size=int(here.sum()))
            total[here] += drawn @ values / counts.sum()
    low, high = np.quantile(total / len(gains), (0.025, 0.975))
    return float(low), float(high)


def mean_over_clients(right: Right) -> float:
    """Return the mean accuracy over the clients that have test rows."""
    return float(np.mean([rows.mean() for rows in right if len(rows)]))
