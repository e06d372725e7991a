"""Text classification: a frozen encoder with an adapter, and a linear head on its pooled last hidden state."""

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
from trifed.tasks.base_model import LoadedBase, ModelRequirement, load_base
from trifed.tasks.headed import HeadedModel
from trifed.tasks.padding import TokenSequences, masked_mean, pad_right

ENCODER = ModelRequirement(
    "text-classification", "an encoder, such as BERT, RoBERTa, DistilBERT, MPNet or DeBERTa", AutoTokenizer,
    "tokenizer files",
)  # fmt: skip


def load_encoder(name: str, dtype: BaseDtype = "float32") -> LoadedBase:
    """Load a frozen encoder of texts and its tokenizer.

    Raises:
        ModelError: There is no encoder of this name, or its tokenizer has no words or no pad token.
    """
    base = load_base(ENCODER, name, dtype)
    if len(base.processor) <= len(base.processor.all_special_tokens):
        raise ModelError(
            f"model.name: the tokenizer of '{name}' has no words; put its tokenizer files beside config.json"
        )
    if base.processor.pad_token_id is None:
        raise ModelError(f"model.name: the tokenizer of '{name}' has no pad token; set one in its folder")
    return base


@dataclass(frozen=True)
class EncodedText(TokenSequences):
    """Tokenized examples of an encoder.

    Attributes:
        ids: Token ids of each example.
        types: Token types of each example, if the model has them.
        labels: Class of each example, (n,).
        pad_id: The token id of the padding.
        cut: Number of truncated examples.
    """

    ids: list[list[int]]
    types: list[list[int]] | None
    labels: NDArray[np.int64]
    pad_id: int
    cut: int

    def inputs(self, row: int) -> dict[str, set[int]]:
        """Return the distinct tokens of an example."""
        return {"": set(self.ids[row])}

    def batch(self, rows: NDArray[np.int64], device: torch.device) -> Batch:
        """Return the given rows on `device`, padded on the right."""
        arrays = {**self.token_arrays(rows, self.pad_id), "labels": self.labels[rows]}
        if self.types is not None:
            arrays["token_type_ids"] = pad_right([self.types[row] for row in rows])
        return {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}


def encode(tokenizer: PreTrainedTokenizerBase, examples: Examples, max_length: int) -> EncodedText:
    """Tokenize examples without padding; those over `max_length` tokens are truncated and counted."""
    pad_id = int(tokenizer.pad_token_id)
    if not len(examples):
        return EncodedText([], None, examples.labels, pad_id, 0)
    texts = (examples.texts,) if examples.pairs is None else (examples.texts, examples.pairs)
    whole = tokenizer(*texts, truncation=False, verbose=False)["input_ids"]
    kept = tokenizer(*texts, truncation=True, max_length=max_length)
    cut = sum(len(row) > max_length for row in whole)
    return EncodedText(kept["input_ids"], kept.get("token_type_ids"), examples.labels, pad_id, cut)


class TextClassifier(HeadedModel):
    """A PEFT-wrapped encoder and a linear head on its pooled last hidden state.

    The default pooling is the masked mean: the poolers of sentence encoders are practically untrained, so a head
    on them would measure the head alone.
    """

    def __init__(self, encoder: nn.Module, hidden: int, n_labels: int, pooling: Pooling) -> None:
        super().__init__(encoder, hidden, n_labels)
        self.pooling = pooling

    def features(self, batch: Batch) -> Tensor:
        """Return the pooled last hidden state, (n, hidden), float32."""
        inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
        output = self.encoder(**inputs)
        if self.pooling == "pooler":
            pooled: Tensor = output.pooler_output
            return pooled.float()
        hidden: Tensor = output.last_hidden_state
        return hidden[:, 0].float() if self.pooling == "cls" else masked_mean(hidden, batch["attention_mask"])


def encode_for(base: LoadedBase, examples: Examples, settings: ModelSettings) -> EncodedText:
    """Tokenize examples for a base model.

    Raises:
        ModelError: The model has too few positions or tokens for the tokenizer's output.
    """
    encoded = encode(base.processor, examples, settings.max_length)
    longest, most = int(encoded.lengths.max(initial=0)), positions(base.model)
    if longest > most:
        raise ModelError(
            f"model.max_length: got {settings.max_length} with a text of {longest} tokens, expected at most "
            f"{most}, the limit of this model; set it to {most} or less"
        )
    words = base.model.get_input_embeddings().num_embeddings
    largest = max((max(ids) for ids in encoded.ids), default=0)
    if largest >= words:
        raise ModelError(
            f"model.name: got the token {largest} from its tokenizer, expected one of the model's {words} tokens; "
            f"put the tokenizer files that belong to the weights beside them"
        )
    return encoded


def positions(model: nn.Module) -> int:
    """Return the most tokens that a model can read at once."""
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            # RoBERTa-like models count positions from the one after the padding's.
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
    native_class=AutoModelForSequenceClassification,
    probe=PROBE,
    snippet=SNIPPET,
)
