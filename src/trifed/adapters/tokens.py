"""Tokens whose embeddings train beside the adapter, such as those that were added to a model's tokenizer.

PEFT keeps the embeddings of these tokens in the adapter (`trainable_token_indices`), and its folders hold them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from trifed.common.errors import ModelError, nearest

_PLACE = ".token_adapter."


def is_token_embedding(name: str) -> bool:
    """Return whether a parameter holds the trained embeddings of tokens, (n_tokens, hidden)."""
    return f"{_PLACE}trainable_tokens_delta" in name


def is_embedding_matrix(name: str) -> bool:
    """Return whether a parameter is the frozen matrix of all embeddings beside trained ones."""
    return f"{_PLACE}base_layer." in name


def token_ids(base: PreTrainedModel, processor: Any, tokens: Sequence[str]) -> list[int]:
    """Return the ids of the tokens whose embeddings train, in ascending order.

    Raises:
        ModelError: The model reads no texts, its tokenizer has no such token, or it has no embedding of one.
    """
    if not tokens:
        return []
    tokenizer = getattr(processor, "tokenizer", processor)
    try:
        embeddings = base.get_input_embeddings()
    except NotImplementedError:  # as for models with two towers
        embeddings = None
    if not isinstance(embeddings, nn.Embedding) or not hasattr(tokenizer, "get_vocab"):
        raise ModelError(
            f"adapter.train_tokens: a '{base.config.model_type}' model has no embeddings of tokens that could "
            "train by themselves; leave it out"
        )
    known = tokenizer.get_vocab()
    found = []
    for token in tokens:
        if token not in known:
            raise ModelError(
                f"adapter.train_tokens: the model's tokenizer has no token {token!r}{nearest(token, known)}; add "
                "it to the tokenizer, resize the model's embeddings and save both, or correct it"
            )
        if known[token] >= embeddings.num_embeddings:
            raise ModelError(
                f"adapter.train_tokens: {token!r} is token {known[token]}, and the model has embeddings of "
                f"{embeddings.num_embeddings}; resize them (model.resize_token_embeddings) and save the model"
            )
        found.append(int(known[token]))
    return sorted(set(found))
