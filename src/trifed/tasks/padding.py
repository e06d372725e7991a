"""Rows of token ids of different lengths, and their padded arrays."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

MULTIPLE = 8
"""Padded widths are multiples of this, because kernels are fastest for them."""


class TokenSequences:
    """Base of encoded examples that are token sequences; `ids` holds one list of token ids per example."""

    ids: list[list[int]]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Number of tokens of each example, (n,)."""
        return np.array([len(ids) for ids in self.ids], np.int64)

    def token_arrays(self, rows: NDArray[np.int64], fill: int = 0) -> dict[str, NDArray[np.int64]]:
        """Return `input_ids`, padded with `fill` on the right, and `attention_mask` of the given rows."""
        ids = [self.ids[row] for row in rows]
        return {"input_ids": pad_right(ids, fill), "attention_mask": pad_right([[1] * len(row) for row in ids])}


def pad_right(rows: Sequence[Sequence[int]], fill: int = 0) -> NDArray[np.int64]:
    """Pad at least one row with `fill` on the right to (n, width), width a multiple of 8."""
    width = -(-max(map(len, rows)) // MULTIPLE) * MULTIPLE
    padded = np.full((len(rows), width), fill, np.int64)
    for place, row in enumerate(rows):
        padded[place, : len(row)] = row
    return padded


def masked_mean(hidden: Tensor, mask: Tensor) -> Tensor:
    """Return the mean of `hidden`, (n, length, size), where `mask`, (n, length), is 1, as float32 (n, size)."""
    weights = mask.unsqueeze(-1).float()
    return (hidden.float() * weights).sum(1) / weights.sum(1)
