"""Assign every row of a table to one client, and split each client's rows into train, validation and test."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trifed.common.errors import DataError
from trifed.data.settings import ClientSettings, Holdout

Rows = NDArray[np.int64]


def assign_clients(
    labels: NDArray[np.int64],
    groups: Sequence[str] | None,
    settings: ClientSettings,
    seed: int,
    group_names: Sequence[str] | None = None,
) -> tuple[NDArray[np.int64], list[str]]:
    """Assign each row to a client.

    Args:
        labels: (n,).
        groups: Client of each row, (n,), for the splits "column" and "files".
        settings: The split.
        seed: Seed of the split, not negative.
        group_names: All clients, if some have no row.

    Returns:
        Each row's index into the names, (n,), and the names, which are unique and valid as file names.

    Raises:
        DataError: The table does not allow this split.
    """
    if settings.split in ("column", "files"):
        if groups is None:
            raise DataError(f'data.clients.split = "{settings.split}" needs the client of each row, got none.')
        names = set(groups) | set(group_names or ())
        numbers = all(re.fullmatch(r"-?\d+", name) for name in names)
        ordered = sorted(names, key=lambda name: (int(name) if numbers else 0, name))
        index = {name: i for i, name in enumerate(ordered)}
        return np.array([index[group] for group in groups], dtype=np.int64), file_names(ordered)
    _check_enough(labels, settings)
    from trifed.data.partitioners import draw_clients  # takes seconds to import

    parts = draw_clients(labels, settings, seed)
    ids = np.full(len(labels), -1, dtype=np.int64)
    for client, rows in enumerate(parts):
        ids[rows] = client
    width = max(2, len(str(len(parts) - 1)))
    return ids, [f"client-{i:0{width}d}" for i in range(len(parts))]


def _check_enough(labels: NDArray[np.int64], settings: ClientSettings) -> None:
    """Raise `DataError` if the labels, (n,), are too few for a random split."""
    count = len(settings.sizes or ()) if settings.split == "sizes" else settings.count
    least = max(1, settings.min_examples if settings.split == "dirichlet" else 1)
    if len(labels) < count * least:
        raise DataError(
            f"{len(labels)} examples are too few for {count} clients with at least {least} each. "
            "Lower the number of clients or data.clients.min_examples, or add examples."
        )
    if settings.split == "pathological":
        _check_labels_suffice(len(np.unique(labels)), settings.labels_per_client, count)


def _check_labels_suffice(n_labels: int, each: int, count: int) -> None:
    """Raise `DataError` if `count` clients cannot have `each` labels, or cannot hold all `n_labels`."""
    known = "1 label" if n_labels == 1 else f"{n_labels} labels"
    if each > n_labels:
        raise DataError(
            f"data.clients.labels_per_client = {each}, but the table has {known}; set it to at most {n_labels}."
        )
    if each * count < n_labels:
        raise DataError(
            f'data.clients.split = "pathological": {count} clients with labels_per_client = {each} cannot hold '
            f"the {known} of the table. Raise data.clients.labels_per_client to at least "
            f"{-(-n_labels // count)}, or data.clients.count to at least {-(-n_labels // each)}."
        )


def file_names(names: Sequence[str]) -> list[str]:
    """Convert names to valid file names that are unique even on case-insensitive file systems."""
    safe: dict[str, str] = {}
    for name in names:
        base = re.sub(r"[^\w.-]+", "-", name).strip(".-")[:60] or "client"
        candidate, number = base, 2
        while candidate.lower() in safe:
            candidate, number = f"{base}-{number}", number + 1
        safe[candidate.lower()] = candidate
    return list(safe.values())


def split_rows(
    labels: NDArray[np.int64],
    valid_fraction: float,
    test_fraction: float,
    rng: np.random.Generator,
    holdout: Holdout = "stratified",
) -> tuple[Rows, Rows, Rows]:
    """Split rows into train, validation and test.

    Stratified by label, at least one example of every label stays in train, so a label that occurs once is never
    held out. A part with a positive fraction gets at least one example, if any label has one to spare. By the
    other rules, at least one example stays in train.

    Args:
        labels: (n,).
        valid_fraction: Share of the examples in validation.
        test_fraction: Share of the examples in test.
        rng: Source of the random order.
        holdout: Equal shares of every label, rows at random, or in order: train, then validation, then test.

    Returns:
        The rows of train, validation and test: ascending, disjoint, together 0 … n-1.
    """
    n = len(labels)
    if holdout != "stratified":
        order = np.arange(n) if holdout == "last" else rng.permutation(n)
        tested = min(_target(n, test_fraction), max(0, n - 1))
        checked = min(_target(n, valid_fraction), max(0, n - 1 - tested))
        ends = (n - tested - checked, n - tested)
        first, second, third = (np.sort(rows).astype(np.int64) for rows in np.split(order, ends))
        return first, second, third
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
