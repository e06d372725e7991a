"""Row numbers of each client from the partitioners of flwr-datasets.

Importing this module imports flwr-datasets, which takes seconds, so `partition` imports it on first use.
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


def _rows(partitioner: Partitioner, order: Rows, labels: Rows) -> list[Rows]:
    """Run a partitioner over the rows in the given order, (n,), and return each client's rows, ascending."""
    partitioner.dataset = Dataset.from_dict({"row": order, "label": labels[order]})
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")  # warnings of further attempts; a final failure is an error
        parts = [partitioner.load_partition(i)[:]["row"] for i in range(partitioner.num_partitions)]
    return [np.sort(np.asarray(part, dtype=np.int64)) for part in parts]


def iid(order: Rows, labels: Rows, count: int) -> list[Rows]:
    """Assign rows evenly, with sizes that differ by at most one."""
    return _rows(IidPartitioner(count), order, labels)


def sized(order: Rows, labels: Rows, sizes: Sequence[int]) -> list[Rows]:
    """Assign `sizes[i]` rows to client i; sizes are at least one and sum to n."""
    return _rows(SizePartitioner([int(size) for size in sizes]), order, labels)


def natural(groups: Rows, n_groups: int) -> list[Rows]:
    """Assign the rows whose group, (n,), is g to client g."""
    partitioner = NaturalIdPartitioner("label")
    parts = _rows(partitioner, np.arange(len(groups), dtype=np.int64), groups)
    present = {int(group): parts[i] for i, group in partitioner.partition_id_to_natural_id.items()}
    return [present.get(group, np.zeros(0, dtype=np.int64)) for group in range(n_groups)]


def dirichlet(
    order: Rows, labels: Rows, count: int, alpha: float, smallest: int, seeds: Sequence[int]
) -> list[Rows] | None:
    """Divide each label's rows by proportions drawn from Dirichlet(alpha).

    Returns:
        Each client's rows, or None if no draw with any seed gave every client `smallest` rows.
    """
    for seed in seeds:
        partitioner = DirichletPartitioner(
            count, "label", alpha, min_partition_size=smallest, self_balancing=False, shuffle=False, seed=seed
        )
        try:
            return _rows(partitioner, order, labels)
        except ValueError:  # all attempts of this seed failed
            continue
    return None


def pathological(order: Rows, labels: Rows, count: int, labels_per_client: int, seed: int) -> list[Rows]:
    """Assign each client a few labels, and divide each label's rows among its clients.

    Raises:
        ValueError: A label has fewer rows than clients.
    """
    partitioner = DealtLabelPartitioner(count, "label", labels_per_client, shuffle=False, seed=seed)
    return _rows(partitioner, order, labels)
