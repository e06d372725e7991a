"""Split one client's examples into train, validation and test."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]


def split_rows(
    labels: NDArray[np.int64], valid_fraction: float, test_fraction: float, rng: np.random.Generator
) -> tuple[Rows, Rows, Rows]:
    """Split rows into train, validation and test, stratified by label.

    At least one example of every label stays in train, so a label that occurs once is never held out. A part with
    a positive fraction gets at least one example, if any label has one to spare.

    Args:
        labels: (n,).
        valid_fraction: Share of the examples in validation.
        test_fraction: Share of the examples in test.
        rng: Source of the random order.

    Returns:
        The rows of train, validation and test: ascending, disjoint, together 0 … n-1.
    """
    n = len(labels)
    kinds, inverse, counts = np.unique(labels, return_inverse=True, return_counts=True)
    part = np.zeros(n, dtype=np.int64)
    spare = counts - 1
    n_test = _apportion(counts * test_fraction, spare, _target(n, test_fraction), rng)
    n_valid = _apportion(counts * valid_fraction, spare - n_test, _target(n, valid_fraction), rng)
    for kind in range(len(kinds)):
        rows = rng.permutation(np.flatnonzero(inverse == kind))
        cut = int(n_test[kind])
        part[rows[:cut]] = 2
        part[rows[cut : cut + int(n_valid[kind])]] = 1
    train, valid, test = (np.flatnonzero(part == which).astype(np.int64) for which in range(3))
    return train, valid, test


def _target(n: int, fraction: float) -> int:
    return max(1, round(n * fraction)) if fraction > 0 else 0


def _apportion(quota: NDArray[np.floating[Any]], room: Rows, total: int, rng: np.random.Generator) -> Rows:
    """Round `quota`, (k,), to whole numbers of at most `room`, (k,), that sum to `total` if there is room.

    Largest remainders are rounded up first, equal ones in random order.
    """
    given: Rows = np.minimum(np.floor(quota).astype(np.int64), room)
    while (short := min(total, int(room.sum())) - int(given.sum())) > 0:
        open_ = np.flatnonzero(given < room)
        shuffled = rng.permutation(open_)
        first = shuffled[np.argsort(given[shuffled] - quota[shuffled], kind="stable")]
        given[first[:short]] += 1
    return given
