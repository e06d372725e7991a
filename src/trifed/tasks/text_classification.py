"""Text classification: a frozen encoder with an adapter, and a linear head on its pooled last hidden state."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from trifed.common.errors import ModelError
from trifed.config.settings import BaseDtype, ModelSettings, Pooling, TaskName
from trifed.data import TEXTS, Examples
from trifed.tasks.base import Batch, HeadedModel, Task, inputs_of
from trifed.tasks.base_model import LoadedBase, fitting_tasks, load_base
from trifed.tasks.tokens import EncodedTokens, check_vocabulary, masked_mean


def load_encoder(
    name: str,
    dtype: BaseDtype = "float32",
    *,
    task: TaskName = "text-classification",
    description: str = "an encoder, such as BERT, RoBERTa, DistilBERT, MPNet or DeBERTa, or a decoder, such as "
    "Llama, Mistral, Qwen or GPT-2",
) -> LoadedBase:
    """Load a frozen encoder of texts, or a decoder, and its tokenizer.

    The tokenizers of decoders often have no pad token; the end token stands for it then, which no head reads.

    Args:
        name: Folder or hub name.
        dtype: The type of the weights.
        task: The task that the model must fit.
        description: Kind of model that fits the task, for error messages.

    Raises:
        ModelError: There is no such model of this name, or its tokenizer has no words or no pad token.
    """
    base = load_base(
        name,
        dtype,
        task=task,
        description=description,
        processor=AutoTokenizer,
        files="tokenizer files",
    )
    if len(base.processor) <= len(base.processor.all_special_tokens):
        raise ModelError(
            f"model.name: the tokenizer of '{name}' has no words; put its tokenizer files beside config.json"
        )
    if base.processor.pad_token_id is None and is_decoder(base):
        base.processor.pad_token = base.processor.eos_token
    if base.processor.pad_token_id is None:
        raise ModelError(f"model.name: the tokenizer of '{name}' has no pad token; set one in its folder")
    return base


def is_decoder(base: LoadedBase) -> bool:
    """Return whether a base reads each token with those before it alone."""
    return "causal-lm" in fitting_tasks(base.model.config)


class TextClassifier(HeadedModel):
    """A PEFT-wrapped encoder or decoder, and a linear head on its pooled last hidden state.

    The default pooling is the masked mean: the poolers of sentence encoders are practically untrained, so a head
    on them would measure the head alone.
    """

    def __init__(
        self, encoder: nn.Module, hidden: int, n_labels: int, pooling: Pooling, decoder: bool = False
    ) -> None:
        super().__init__(encoder, hidden, n_labels, pooling)
        self.options = {"use_cache": False} if decoder else {}

    def features(self, batch: Batch) -> Tensor:
        """Return the pooled last hidden state, (n, hidden), float32."""
        output, mask = self.encoder(**inputs_of(batch), **self.options), batch["attention_mask"]
        if self.pooling == "mean":
            return masked_mean(output.last_hidden_state, mask)
        if self.pooling == "pooler":
            pooled: Tensor = output.pooler_output
        else:
            places = mask.sum(1) - 1 if self.pooling == "last" else torch.zeros_like(mask[:, 0])
            pooled = output.last_hidden_state[torch.arange(len(mask), device=mask.device), places]
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
    check_positions(base.model, ids, limit)
    check_vocabulary(base.model, ids, examples.texts)
    return EncodedTokens(ids, examples.labels, len(long), tokenizer.pad_token_id, types)


def check_positions(model: nn.Module, ids: Sequence[Sequence[int]], limit: int) -> None:
    """Raise `ModelError` if one of some token sequences, cut to `limit`, is longer than the model reads."""
    longest, most = max(map(len, ids)), positions(model)
    if longest > most:
        raise ModelError(
            f"model.max_length: got {limit} with a text of {longest} tokens, expected at most {most}, the limit "
            f"of this model; set it to {most} or less"
        )


def positions(model: nn.Module) -> int:
    """Return the most tokens that a model can read at once."""
    config = getattr(model, "config", None)
    if config is not None and "causal-lm" in fitting_tasks(config):
        return int(getattr(config, "max_position_embeddings", None) or sys.maxsize)
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            # RoBERTa-like models count positions from the one after the padding's.
            return module.num_embeddings - (0 if module.padding_idx is None else module.padding_idx + 1)
    return sys.maxsize


def _build(encoder: nn.Module, base: LoadedBase, labels: Sequence[str], settings: ModelSettings) -> TextClassifier:
    """Build the classifier around an encoder; raises as `check_pooling` does."""
    check_pooling(base, settings)
    return TextClassifier(encoder, base.model.config.hidden_size, len(labels), settings.pooling, is_decoder(base))


def check_pooling(base: LoadedBase, settings: ModelSettings) -> None:
    """Raise `ModelError` if `model.pooling` needs what a base has not."""
    if settings.pooling == "pooler" and getattr(base.model, "pooler", None) is None:
        raise ModelError(
            f"model.pooling: got 'pooler', but a '{base.model.config.model_type}' model has no pooler; set it to "
            "'mean' or 'cls'"
        )
    if settings.pooling == "cls" and is_decoder(base):
        raise ModelError(
            f"model.pooling: got 'cls', but the first token of a '{base.model.config.model_type}' model has read "
            "nothing of the text; set it to 'last' or 'mean'"
        )


TASK = Task(
    name="text-classification",
    roles=TEXTS,
    load=load_encoder,
    encode=encode,
    build=_build,
    code="classifier",
    native_class=AutoModelForSequenceClassification,
    probe=("yes", "a text of some more words than the other one, so that padding matters"),
)
