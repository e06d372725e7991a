"""Greedy generation with a language model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

NO_INPUTS: Mapping[str, Tensor] = MappingProxyType({})


def generate(
    encoder: Any,
    tokenizer: Any,
    rows: Sequence[Sequence[int]],
    tokens: int,
    more: Mapping[str, Tensor] = NO_INPUTS,
) -> list[str]:
    """Generate a continuation of each row of tokens.

    Args:
        encoder: The language model.
        tokenizer: Its tokenizer.
        rows: Token ids of each prompt.
        tokens: The most new tokens; generation stops earlier at the end token.
        more: Additional inputs of the model, such as pixels.
    """
    device = next(encoder.parameters()).device
    end = tokenizer.eos_token_id
    ids = torch.tensor(pad_left(rows, end or 0), device=device)
    generated = encoder.generate(
        input_ids=ids,
        attention_mask=torch.tensor(pad_left([[1] * len(row) for row in rows], 0), device=device),
        **{name: tensor.to(device) for name, tensor in more.items()},
        max_new_tokens=tokens,
        do_sample=False,
        pad_token_id=end or 0,
    )
    return [
        text.strip() for text in tokenizer.batch_decode(generated[:, ids.shape[1] :], skip_special_tokens=True)
    ]


def pad_left(rows: Sequence[Sequence[int]], fill: int) -> list[list[int]]:
    """Pad rows with `fill` on the left, so that generation continues all of them at the same position."""
    width = max(len(row) for row in rows)
    return [[fill] * (width - len(row)) + list(row) for row in rows]
