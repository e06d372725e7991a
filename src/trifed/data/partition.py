"""Assign every row of a table to exactly one client."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from trifed.common.errors import DataError
from trifed.data.settings import ClientSettings

PARTITION_STREAM = 101
"""Separates the partition's random numbers from all others of the same seed."""

_DIRICHLET_SEEDS = 10


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
    from trifed.data import partitioners

    n = len(labels)
    if settings.split in ("column", "files"):
        if groups is None:
            raise DataError(f'data.clients.split = "{settings.split}" needs the client of each row, got none.')
        ordered = _sorted_names(set(groups) | set(group_names or ()))
        index = {name: i for i, name in enumerate(ordered)}
        parts = partitioners.natural(np.array([index[group] for group in groups], dtype=np.int64), len(ordered))
        return _ids(parts, n), file_names(ordered)
    count = len(settings.sizes or ()) if settings.split == "sizes" else settings.count
    _check_enough_rows(n, count, settings)
    parts = _drawn(labels, settings, seed)
    width = max(2, len(str(count - 1)))
    return _ids(parts, n), [f"client-{i:0{width}d}" for i in range(count)]


def _drawn(labels: NDArray[np.int64], settings: ClientSettings, seed: int) -> list[NDArray[np.int64]]:
    """Return each client's rows for the random splits."""
    from trifed.data import partitioners

    rng = np.random.default_rng([seed, PARTITION_STREAM])
    order = rng.permutation(len(labels)).astype(np.int64)
    seeds = rng.integers(2**31, size=_DIRICHLET_SEEDS).tolist()
    if settings.split == "iid":
        return partitioners.iid(order, labels, settings.count)
    if settings.split == "sizes":
        return partitioners.sized(order, labels, _whole_sizes(settings.sizes or [], len(labels)))
    if settings.split == "dirichlet":
        parts = partitioners.dirichlet(order, labels, settings.count, settings.alpha, settings.min_examples, seeds)
        if parts is None:
            raise DataError(
                f'data.clients.split = "dirichlet": no draw with alpha = {settings.alpha:g} gave each of the '
                f"{settings.count} clients {settings.min_examples} of {len(labels)} examples. "
                "Raise data.clients.alpha, or lower data.clients.min_examples or data.clients.count."
            )
        return parts
    return _pathological(order, labels, settings, seeds[0])


def _pathological(
    order: NDArray[np.int64], labels: NDArray[np.int64], settings: ClientSettings, seed: int
) -> list[NDArray[np.int64]]:
    from trifed.data import partitioners

    n_labels, each, count = len(np.unique(labels)), settings.labels_per_client, settings.count
    if each > n_labels:
        raise DataError(
            f"data.clients.labels_per_client = {each}, but the table has {n_labels} labels; set it to at most "
            f"{n_labels}."
        )
    if each * count < n_labels:
        raise DataError(
            f'data.clients.split = "pathological": {count} clients with {each} labels each cannot hold the '
            f"{n_labels} labels of the table. Raise data.clients.labels_per_client to at least "
            f"{-(-n_labels // count)}, or data.clients.count to at least {-(-n_labels // each)}."
        )
    try:
        return partitioners.pathological(order, labels, count, each, seed)
    except ValueError as error:
        rarest = int(np.unique(labels, return_counts=True)[1].min())
        raise DataError(
            'data.clients.split = "pathological": a label has fewer examples than clients to share them (the '
            f"rarest has {rarest}). Lower data.clients.count or data.clients.labels_per_client, or add examples."
        ) from error


def _check_enough_rows(n: int, count: int, settings: ClientSettings) -> None:
    least = settings.min_examples if settings.split == "dirichlet" else 0
    if n < count * max(1, least):
        raise DataError(
            f"{n} examples are too few for {count} clients with at least {max(1, least)} each. "
            "Lower the number of clients or data.clients.min_examples, or add examples."
        )


def _whole_sizes(sizes: Sequence[float], n: int) -> list[int]:
    """Return whole numbers in proportion to `sizes`, (k,), each at least 1, that sum to `n`."""
    shares = np.asarray(sizes, dtype=np.float64) / np.sum(sizes) * (n - len(sizes))
    whole = np.floor(shares).astype(np.int64)
    short = n - len(sizes) - int(whole.sum())
    whole[np.argsort(whole - shares, kind="stable")[:short]] += 1
    return [int(size) for size in whole + 1]


def _ids(parts: Sequence[NDArray[np.int64]], n: int) -> NDArray[np.int64]:
    ids = np.full(n, -1, dtype=np.int64)
    for client, rows in enumerate(parts):
        ids[rows] = client
    return ids


def _sorted_names(names: set[str]) -> list[str]:
    if all(re.fullmatch(r"-?\d+", name) for name in names):
        return sorted(names, key=lambda name: (int(name), name))
    return sorted(names)


def file_names(names: Sequence[str]) -> list[str]:
    """Convert names to valid file names that are unique even on case-insensitive file systems."""
    taken: set[str] = set()
    safe: list[str] = []
    for name in names:
        base = re.sub(r"[^\w.-]+", "-", name).strip(".-")[:60] or "client"
        candidate, number = base, 2
        while candidate.lower() in taken:
            candidate, number = f"{base}-{number}", number + 1
        taken.add(candidate.lower())
        safe.append(candidate)
    return safe
