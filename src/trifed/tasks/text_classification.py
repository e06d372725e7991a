"""Text classification: a frozen encoder with an adapter, and a linear head on its pooled last hidden state."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from trifed.common.errors import ModelError
from trifed.config.settings import BaseDtype, ModelSettings
from trifed.data import TEXTS, Examples
from trifed.tasks.base import Batch, HeadedModel, Task
from trifed.tasks.base_model import LoadedBase, load_base
from trifed.tasks.tokens import EncodedTokens, masked_mean


def load_encoder(name: str, dtype: BaseDtype = "float32") -> LoadedBase:
    """Load a frozen encoder of texts and its tokenizer.

    Raises:
        ModelError: There is no encoder of this name, or its tokenizer has no words or no pad token.
    """
    base = load_base(
        name,
        dtype,
        task="text-classification",
        description="an encoder, such as BERT, RoBERTa, DistilBERT, MPNet or DeBERTa",
        processor=AutoTokenizer,
        files="tokenizer files",
    )
    if len(base.processor) <= len(base.processor.all_special_tokens):
        raise ModelError(
            f"model.name: the tokenizer of '{name}' has no words; put its tokenizer files beside config.json"
        )
    if base.processor.pad_token_id is None:
        raise ModelError(f"model.name: the tokenizer of '{name}' has no pad token; set one in its folder")
    return base


class TextClassifier(HeadedModel):
    """A PEFT-wrapped encoder and a linear head on its pooled last hidden state.

    The default pooling is the masked mean: the poolers of sentence encoders are practically untrained, so a head
    on them would measure the head alone.
    """

    def features(self, batch: Batch) -> Tensor:
        """Return the pooled last hidden state, (n, hidden), float32."""
        output = self.encoder(**{name: tensor for name, tensor in batch.items() if name != "labels"})
        if self.pooling == "mean":
            return masked_mean(output.last_hidden_state, batch["attention_mask"])
        pooled: Tensor = output.pooler_output if self.pooling == "pooler" else output.last_hidden_state[:, 0]
        return pooled.float()


def encode(base: LoadedBase, examples: Examples, settings: ModelSettings) -> EncodedTokens:
    """Tokenize examples without padding; those over `settings.max_length` tokens are truncated and counted.

    Raises:
        ModelError: The model has too few positions or tokens for the tokenizer's output.
    """
    tokenizer, limit = base.processor, settings.max_length
    if not len(examples):
        return EncodedTokens([], examples.labels, pad_id=tokenizer.pad_token_id)
    texts = (examples.texts,) if examples.pairs is None else (examples.texts, examples.pairs)
    whole = tokenizer(*texts, truncation=False, verbose=False)
    ids, types = whole["input_ids"], {name: whole[name] for name in ("token_type_ids",) if name in whole}
    long = [row for row, tokens in enumerate(ids) if len(tokens) > limit]
    if long:
        cut = tokenizer(*([part[row] for row in long] for part in texts), truncation=True, max_length=limit)
        for place, row in enumerate(long):
            ids[row] = cut["input_ids"][place]
            for name, values in types.items():
                values[row] = cut[name][place]
    longest, most = max(map(len, ids)), positions(base.model)
    if longest > most:
        raise ModelError(
            f"model.max_length: got {limit} with a text of {longest} tokens, expected at most {most}, the limit "
            f"of this model; set it to {most} or less"
        )
    largest, words = max(map(max, ids)), base.model.get_input_embeddings().num_embeddings
    if largest >= words:
        raise ModelError(
            f"model.name: got the token {largest} from its tokenizer, expected one of the model's {words} tokens; "
            f"put the tokenizer files that belong to the weights beside them"
        )
    return EncodedTokens(ids, examples.labels, len(long), tokenizer.pad_token_id, types)


def positions(model: nn.Module) -> int:
    """Return the most tokens that a model can read at once."""
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            # RoBERTa-like models count positions from the one after the padding's.
            return module.num_embeddings - (0 if module.padding_idx is None else module.padding_idx + 1)
    return sys.maxsize


def _build(encoder: nn.Module, base: LoadedBase, labels: Sequence[str], settings: ModelSettings) -> TextClassifier:
    return TextClassifier(encoder, base.model.config.hidden_size, len(labels), settings.pooling)


TASK = Task(
    name="text-classification",
    metric="accuracy",
    roles=TEXTS,
    load=load_encoder,
    encode=encode,
    build=_build,
    code="classifier",
    native_class=AutoModelForSequenceClassification,
    probe=("yes", "a text of some more words than the other one, so that padding matters"),
)
