"""Text classification: a frozen encoder with an adapter, and one linear head on its pooled last hidden state."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from trifed.data import Examples
from trifed.settings import Pooling

Batch = dict[str, Tensor]
PAD_MULTIPLE = 8


@dataclass(frozen=True)
class EncodedText:
    """Tokenised examples.

    `ids`, `types`: one list of ints an example; `labels`: (n,) int64; `cut`: how many were longer than allowed.
    """

    ids: list[list[int]]
    types: list[list[int]] | None
    labels: NDArray[np.int64]
    pad_id: int
    cut: int

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each example, (n,)."""
        return np.array([len(ids) for ids in self.ids], np.int64)

    def batch(self, rows: NDArray[np.int64], device: torch.device) -> Batch:
        """The given rows, padded to the longest of them (and to a multiple of 8, which kernels like)."""
        longest = max(len(self.ids[row]) for row in rows)
        width = -(-longest // PAD_MULTIPLE) * PAD_MULTIPLE
        ids = np.full((len(rows), width), self.pad_id, np.int64)
        mask = np.zeros((len(rows), width), np.int64)
        types = np.zeros((len(rows), width), np.int64)
        for place, row in enumerate(rows):
            size = len(self.ids[row])
            ids[place, :size] = self.ids[row]
            mask[place, :size] = 1
            if self.types is not None:
                types[place, :size] = self.types[row]
        arrays = {"input_ids": ids, "attention_mask": mask, "labels": self.labels[rows]}
        if self.types is not None:
            arrays["token_type_ids"] = types
        return {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}


def encode(tokenizer: PreTrainedTokenizerBase, examples: Examples, max_length: int) -> EncodedText:
    """Tokenise once, without padding; examples over `max_length` tokens are cut, and counted."""
    pad_id = int(tokenizer.pad_token_id)
    if not examples.texts:
        return EncodedText([], None, examples.labels, pad_id, 0)
    texts = (examples.texts,) if examples.pairs is None else (examples.texts, examples.pairs)
    whole = tokenizer(*texts, truncation=False, verbose=False)["input_ids"]
    kept = tokenizer(*texts, truncation=True, max_length=max_length)
    cut = sum(len(row) > max_length for row in whole)
    return EncodedText(kept["input_ids"], kept.get("token_type_ids"), examples.labels, pad_id, cut)


class TextClassifier(nn.Module):
    """A PEFT-wrapped encoder and a linear head over its pooled last hidden state.

    The head reads the mask-weighted mean unless another pooling is chosen: the poolers that sentence encoders
    carry are untrained in effect, and a head on them measures the head.
    """

    def __init__(self, encoder: nn.Module, hidden: int, n_labels: int, pooling: Pooling) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(hidden, n_labels)
        self.pooling = pooling

    def features(self, batch: Batch) -> Tensor:
        """The pooled last hidden state, (n, hidden), float32."""
        inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
        output = self.encoder(**inputs)
        if self.pooling == "pooler":
            pooled: Tensor = output.pooler_output
            return pooled.float()
        hidden: Tensor = output.last_hidden_state.float()
        if self.pooling == "cls":
            return hidden[:, 0]
        mask = batch["attention_mask"].unsqueeze(-1).float()
        return (hidden * mask).sum(1) / mask.sum(1)

    def forward(self, batch: Batch) -> Tensor:
        """Logits, (n, n_labels), float32."""
        logits: Tensor = self.head(self.features(batch))
        return logits.float()

    def loss(self, batch: Batch) -> Tensor:
        """Mean cross-entropy of the batch, in nats, a scalar."""
        return nn.functional.cross_entropy(self(batch), batch["labels"])

    def score(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Summed cross-entropy (a scalar, nats) and predicted labels (n,)."""
        logits = self(batch)
        return nn.functional.cross_entropy(logits, batch["labels"], reduction="sum"), logits.argmax(-1)
