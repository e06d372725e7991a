"""Token sequences of different lengths, and their padded arrays."""

from __future__ import annotations

import sys
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel

from trifed.common.errors import ModelError
from trifed.tasks.base import Batch

MULTIPLE = {"cpu": 2, "cuda": 8}
"""Padded widths are multiples of this, by type of device: a GPU's kernels are fastest for multiples of 8, and on a
CPU every position costs time."""


@dataclass(frozen=True)
class EncodedTokens:
    """Examples that are token sequences.

    Attributes:
        ids: Token ids of each example.
        labels: Class of each example, (n,).
        cut: Number of truncated examples.
        pad_id: The token id of the padding.
        more: Further values of each token, such as its type, by their name in a batch; padded with 0.
        targets: What the loss compares the model's outputs with, (n, n_outputs), if labels are no classes.
    """

    ids: list[list[int]]
    labels: NDArray[np.int64]
    cut: int = 0
    pad_id: int = 0
    more: Mapping[str, list[list[int]]] = field(default_factory=dict)
    targets: NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Number of tokens of each example, (n,)."""
        return np.array([len(ids) for ids in self.ids], np.int64)

    def inputs(self, row: int) -> Mapping[str, set[Hashable]]:
        """Return the distinct tokens of an example."""
        return {"": set(self.ids[row])}

    def batch(self, rows: NDArray[np.int64], device: torch.device) -> Batch:
        """Return the given rows on `device`, padded on the right; the attention mask excludes the padding."""
        ids, multiple = [self.ids[row] for row in rows], MULTIPLE.get(device.type, 1)
        arrays: dict[str, NDArray[Any]] = {
            "input_ids": pad_right(ids, self.pad_id, multiple),
            "attention_mask": pad_right([[1] * len(row) for row in ids], 0, multiple),
            "labels": self.labels[rows],
            **{name: pad_right([v[row] for row in rows], 0, multiple) for name, v in self.more.items()},
        }
        if self.targets is not None:
            arrays["targets"] = self.targets[rows]
        return {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}


def check_vocabulary(
    model: PreTrainedModel, rows: Iterable[Sequence[int]], texts: Sequence[str] | None = None
) -> None:
    """Raise `ModelError` for a token that the model has no embedding of, or a text without any token.

    Args:
        model: The model.
        rows: Tokens of each example, (n,).
        texts: The examples' texts, for the message, (n,).
    """
    words = _embeddings(model)
    for number, row in enumerate(rows, 1):
        if not len(row):
            shown = f"the text {texts[number - 1]!a:.40}" if texts else f"example {number}"
            raise ModelError(
                f"model.name: its tokenizer makes no token of {shown}, such as of signs that it does not know; "
                "leave out such rows, or choose a model with a token for unknown signs"
            )
        if max(row) >= words:
            raise ModelError(
                f"model.name: got the token {max(row)} from its tokenizer, expected one of the model's {words} "
                "tokens, 0 and up; put the tokenizer files that belong to the weights beside them"
            )


def _embeddings(model: PreTrainedModel) -> int:
    """Return the number of tokens that a model has embeddings of."""
    try:
        found = model.get_input_embeddings()
    except NotImplementedError:  # a model with two towers may have no embeddings of its own
        found = None
    if isinstance(found, nn.Embedding):
        return found.num_embeddings
    return int(getattr(model.config.get_text_config(), "vocab_size", sys.maxsize))


def pad_right(rows: Sequence[Sequence[int]], fill: int = 0, multiple: int = 1) -> NDArray[np.int64]:
    """Pad at least one row with `fill` on the right to (n, width); the width is a multiple of `multiple`."""
    width = -(-max(map(len, rows)) // multiple) * multiple
    return np.array([[*row, *[fill] * (width - len(row))] for row in rows], np.int64)


def pad_left(rows: Sequence[Sequence[int]], fill: int = 0) -> Tensor:
    """Pad rows with `fill` on the left, so that generation continues all of them at the same position."""
    width = max(map(len, rows))
    return torch.tensor([[*[fill] * (width - len(row)), *row] for row in rows])


def masked_mean(hidden: Tensor, mask: Tensor) -> Tensor:
    """Return the mean of `hidden`, (n, length, size), where `mask`, (n, length), is 1, as float32 (n, size)."""
    weights = mask.unsqueeze(-1).float()
    return (hidden.float() * weights).sum(1) / weights.sum(1)
