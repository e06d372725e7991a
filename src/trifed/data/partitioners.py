"""The partitioners of flwr-datasets, asked for row numbers only.

Importing this module imports flwr-datasets, which takes seconds: `partition` does so when it first needs it.
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
    NaturalIdPartitioner,
    Partitioner,
    PathologicalPartitioner,
    SizePartitioner,
)
from numpy.typing import NDArray

Rows = NDArray[np.int64]


class DealtLabelPartitioner(PathologicalPartitioner):  # type: ignore[misc]
    """A pathological split whose label sets are dealt like cards, so that no label is left out.

    The stock modes draw each client's labels without regard to the others': labels that nobody drew lose
    their rows.
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


def _rows(partitioner: Partitioner, order: Rows, labels: Rows) -> list[Rows]:
    """Run a partitioner over the rows in the given order, (n,), and return each client's rows, ascending."""
    partitioner.dataset = Dataset.from_dict({"row": order, "label": labels[order]})
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")  # it warns of every further attempt; a last failure is an error anyway
        parts = [partitioner.load_partition(i)[:]["row"] for i in range(partitioner.num_partitions)]
    return [np.sort(np.asarray(part, dtype=np.int64)) for part in parts]


def iid(order: Rows, labels: Rows, count: int) -> list[Rows]:
    """Deal rows evenly: sizes differ by at most one."""
    return _rows(IidPartitioner(count), order, labels)


def sized(order: Rows, labels: Rows, sizes: Sequence[int]) -> list[Rows]:
    """Deal `sizes[i]` rows, each at least one and n together, to client i."""
    return _rows(SizePartitioner([int(size) for size in sizes]), order, labels)


def natural(groups: Rows, n_groups: int) -> list[Rows]:
    """Give client g the rows whose group, (n,), is g; a group without rows gets none."""
    partitioner = NaturalIdPartitioner("label")
    parts = _rows(partitioner, np.arange(len(groups), dtype=np.int64), groups)
    present = {int(group): parts[i] for i, group in partitioner.partition_id_to_natural_id.items()}
    return [present.get(group, np.zeros(0, dtype=np.int64)) for group in range(n_groups)]


def dirichlet(
    order: Rows, labels: Rows, count: int, alpha: float, smallest: int, seeds: Sequence[int]
) -> list[Rows] | None:
    """Divide each label's rows by proportions drawn from Dirichlet(alpha).

    Draws again, several times a seed, until every client has `smallest` rows; None where no seed got there.
    """
    for seed in seeds:
        partitioner = DirichletPartitioner(
            count, "label", alpha, min_partition_size=smallest, self_balancing=False, shuffle=False, seed=seed
        )
        try:
            return _rows(partitioner, order, labels)
        except ValueError:  # its own attempts are spent
            continue
    return None


def pathological(order: Rows, labels: Rows, count: int, labels_per_client: int, seed: int) -> list[Rows]:
    """Give each client the rows of a few labels; every label's rows are shared out among those who hold it.

    Raises ValueError where a label has fewer rows than clients that hold it.
    """
    partitioner = DealtLabelPartitioner(count, "label", labels_per_client, shuffle=False, seed=seed)
    return _rows(partitioner, order, labels)
