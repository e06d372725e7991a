"""Text classification: a frozen encoder with an adapter, and one linear head on its pooled last hidden state."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedTokenizerBase

from trifed.common.errors import ModelError
from trifed.config.settings import BaseDtype, ModelSettings, Pooling
from trifed.data import TEXTS, Examples
from trifed.tasks.base import Batch, Snippet, Task
from trifed.tasks.base_model import LoadedBase, Wanted, load_base
from trifed.tasks.headed import HeadedModel
from trifed.tasks.padding import padded

ENCODER = Wanted(
    "text-classification", "an encoder, such as BERT, RoBERTa, DistilBERT, MPNet or DeBERTa", AutoTokenizer,
    "tokenizer files",
)  # fmt: skip


def load_encoder(name: str, dtype: BaseDtype = "float32") -> LoadedBase:
    """A frozen encoder of texts and its tokenizer; ModelError where it is none, or the tokenizer is unfit."""
    base = load_base(name, ENCODER, dtype)
    if len(base.processor) <= len(base.processor.all_special_tokens):
        raise ModelError(
            f"model.name: the tokenizer of '{name}' knows no words; put its tokenizer files beside config.json"
        )
    if base.processor.pad_token_id is None:
        raise ModelError(f"model.name: the tokenizer of '{name}' has no pad token; set one in its folder")
    return base


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

    def inputs(self, row: int) -> dict[str, set[int]]:
        """The tokens of an example, equal ones once."""
        return {"": set(self.ids[row])}

    def batch(self, rows: NDArray[np.int64], device: torch.device) -> Batch:
        """The given rows, padded to the longest of them (and to a multiple of 8, which kernels like)."""
        ids = [self.ids[row] for row in rows]
        arrays = {
            "input_ids": padded(ids, self.pad_id),
            "attention_mask": padded([[1] * len(row) for row in ids]),
            "labels": self.labels[rows],
        }
        if self.types is not None:
            arrays["token_type_ids"] = padded([self.types[row] for row in rows])
        return {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}


def encode(tokenizer: PreTrainedTokenizerBase, examples: Examples, max_length: int) -> EncodedText:
    """Tokenise once, without padding; examples over `max_length` tokens are cut, and counted."""
    pad_id = int(tokenizer.pad_token_id)
    if not len(examples):
        return EncodedText([], None, examples.labels, pad_id, 0)
    texts = (examples.texts,) if examples.pairs is None else (examples.texts, examples.pairs)
    whole = tokenizer(*texts, truncation=False, verbose=False)["input_ids"]
    kept = tokenizer(*texts, truncation=True, max_length=max_length)
    cut = sum(len(row) > max_length for row in whole)
    return EncodedText(kept["input_ids"], kept.get("token_type_ids"), examples.labels, pad_id, cut)


class TextClassifier(HeadedModel):
    """A PEFT-wrapped encoder and a linear head over its pooled last hidden state.

    The head reads the mask-weighted mean unless another pooling is chosen: the poolers that sentence encoders
    carry are untrained in effect, and a head on them measures the head.
    """

    def __init__(self, encoder: nn.Module, hidden: int, n_labels: int, pooling: Pooling) -> None:
        super().__init__(encoder, hidden, n_labels)
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


def encode_for(base: LoadedBase, examples: Examples, settings: ModelSettings) -> EncodedText:
    """Tokenise once for a base model.

    Raises:
        ModelError: the model has too few positions or words for what the tokenizer made.
    """
    encoded = encode(base.processor, examples, settings.max_length)
    longest, most = int(encoded.lengths.max(initial=0)), positions(base.model)
    if longest > most:
        raise ModelError(
            f"model.max_length: got {settings.max_length}, and a text has {longest} tokens, but this model reads "
            f"at most {most}; set model.max_length to {most} or less"
        )
    words = base.model.get_input_embeddings().num_embeddings
    largest = max((max(ids) for ids in encoded.ids), default=0)
    if largest >= words:
        raise ModelError(
            f"model.name: its tokenizer gives the token {largest}, but the model knows {words} tokens; "
            f"put the tokenizer files that belong to the weights beside them"
        )
    return encoded


def positions(model: nn.Module) -> int:
    """The most tokens that a model can read at once."""
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            # RoBERTa and its kin count positions from the one after the padding's.
            return module.num_embeddings - (0 if module.padding_idx is None else module.padding_idx + 1)
    return sys.maxsize


def _build(encoder: nn.Module, base: LoadedBase, labels: Sequence[str], settings: ModelSettings) -> TextClassifier:
    return TextClassifier(encoder, base.model.config.hidden_size, len(labels), settings.pooling)


PROBE = ("yes", "a text of some more words than the other one, so that padding matters")
SNIPPET = Snippet(
    processor="AutoTokenizer",
    arguments="texts, pairs=None",
    batch='processor(texts, pairs, padding=True, truncation=True, max_length={length}, return_tensors="pt")',
    pool={
        "mean": (
            '    mask = batch["attention_mask"].unsqueeze(-1)\n'
            "    pooled = (output.last_hidden_state * mask).sum(1) / mask.sum(1)\n"
        ),
        "cls": "    pooled = output.last_hidden_state[:, 0]\n",
        "pooler": "    pooled = output.pooler_output\n",
    },
    example='["a text"]',
    pair_example='["a text"], ["its second text"]',
)
TASK = Task(
    name="text-classification",
    metric="accuracy",
    roles=TEXTS,
    load=load_encoder,
    encode=encode_for,
    build=_build,
    stock=AutoModelForSequenceClassification,
    probe=PROBE,
    snippet=SNIPPET,
)
