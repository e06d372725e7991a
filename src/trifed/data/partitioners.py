"""Random splits of a table into clients, by the partitioners of flwr-datasets.

Importing this module imports flwr-datasets, which needs seconds, so `partition` imports it on first use.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Sequence

import numpy as np
from datasets import Dataset
from flwr_datasets.partitioner import (
    DirichletPartitioner,
    IidPartitioner,
    Partitioner,
    PathologicalPartitioner,
    SizePartitioner,
)
from numpy.typing import NDArray

from trifed.common.errors import DataError
from trifed.data.settings import ClientSettings

Rows = NDArray[np.int64]

PARTITION_STREAM = 101
"""Separates the partition's random numbers from all others of the same seed."""

_DIRICHLET_SEEDS = 10


class DealtLabelPartitioner(PathologicalPartitioner):  # type: ignore[misc]
    """A pathological split that deals label sets like cards, so that every label has a client.

    The modes of flwr-datasets draw each client's labels independently, and the rows of labels without any client
    are lost.
    """

    def _determine_partition_id_to_unique_labels(self) -> None:
        self._unique_labels = sorted(self.dataset.unique(self._partition_by))
        deck: list[int] = []
        for client in range(self._num_partitions):
            hand: list[int] = []
            while len(hand) < self._num_classes_per_partition:
                if all(card in hand for card in deck):
                    deck.extend(self._rng.permutation(len(self._unique_labels)).tolist())
                hand.append(deck.pop(next(i for i, card in enumerate(deck) if card not in hand)))
            self._partition_id_to_unique_labels[client] = [self._unique_labels[card] for card in hand]


def draw_clients(labels: Rows, settings: ClientSettings, seed: int) -> list[Rows]:
    """Return each client's rows, ascending, for the random splits that the labels, (n,), are enough for.

    Raises:
        DataError: The table does not allow this split.
    """
    rng = np.random.default_rng([seed, PARTITION_STREAM])
    order = rng.permutation(len(labels)).astype(np.int64)
    seeds = rng.integers(2**31, size=_DIRICHLET_SEEDS).tolist()
    if settings.split == "dirichlet":
        return _dirichlet(order, labels, settings, seeds)
    if settings.split == "pathological":
        return _pathological(order, labels, settings, seeds[0])
    if settings.split == "sizes":
        return _rows(SizePartitioner(_whole_sizes(settings.sizes or [], len(labels))), order, labels)
    return _rows(IidPartitioner(settings.count), order, labels)


def _rows(partitioner: Partitioner, order: Rows, labels: Rows) -> list[Rows]:
    """Run a partitioner over the rows in the given order, (n,), and return each client's rows, ascending."""
    partitioner.dataset = Dataset.from_dict({"row": order, "label": labels[order]})
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")  # warnings of further attempts; a final failure is an error
        parts = [partitioner.load_partition(i)[:]["row"] for i in range(partitioner.num_partitions)]
    return [np.sort(np.asarray(part, dtype=np.int64)) for part in parts]


def _dirichlet(order: Rows, labels: Rows, settings: ClientSettings, seeds: Sequence[int]) -> list[Rows]:
    """Divide each label's rows by proportions drawn from Dirichlet(alpha), with the first seed that works."""
    count, alpha, least = settings.count, settings.alpha, settings.min_examples
    for seed in seeds:
        partitioner = DirichletPartitioner(
            count, "label", alpha, min_partition_size=least, self_balancing=False, shuffle=False, seed=seed
        )
        with contextlib.suppress(ValueError):  # all attempts of this seed failed
            return _rows(partitioner, order, labels)
    raise DataError(
        f'data.clients.split = "dirichlet": no draw with alpha = {alpha:g} gave each of the {count} clients '
        f"{least} of {len(labels)} examples. Raise data.clients.alpha, or lower data.clients.min_examples or "
        "data.clients.count."
    )


def _pathological(order: Rows, labels: Rows, settings: ClientSettings, seed: int) -> list[Rows]:
    """Assign each client a few labels, and divide each label's rows among its clients."""
    count, each = settings.count, settings.labels_per_client
    try:
        return _rows(DealtLabelPartitioner(count, "label", each, shuffle=False, seed=seed), order, labels)
    except ValueError as error:
        rarest = np.unique(labels, return_counts=True)[1].min()
        raise DataError(
            'data.clients.split = "pathological": a label has fewer examples than clients to share them (the '
            f"rarest has {rarest}). Lower data.clients.count or data.clients.labels_per_client, or add "
            "examples."
        ) from error


def _whole_sizes(sizes: Sequence[float], n: int) -> list[int]:
    """Return whole numbers in proportion to `sizes`, (k,), each at least 1, that sum to `n`."""
    shares = np.asarray(sizes, dtype=np.float64) / np.sum(sizes) * (n - len(sizes))
    whole = np.floor(shares).astype(np.int64)
    short = n - len(sizes) - int(whole.sum())
    whole[np.argsort(whole - shares, kind="stable")[:short]] += 1
    return [int(size) for size in whole + 1]
