"""What a language model writes behind a row of tokens: always the most probable next one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

NOTHING: Mapping[str, Tensor] = MappingProxyType({})


def generate(
    encoder: Any, tokenizer: Any, rows: Sequence[Sequence[int]], tokens: int, more: Mapping[str, Tensor] = NOTHING
) -> list[str]:
    """The text behind each row, up to the end token or `tokens` tokens. `more`: what else the model reads."""
    device = next(encoder.parameters()).device
    end = tokenizer.eos_token_id
    ids = torch.tensor(on_the_left(rows, end or 0), device=device)
    made = encoder.generate(
        input_ids=ids,
        attention_mask=torch.tensor(on_the_left([[1] * len(row) for row in rows], 0), device=device),
        **{name: tensor.to(device) for name, tensor in more.items()},
        max_new_tokens=tokens,
        do_sample=False,
        pad_token_id=end or 0,
    )
    found: list[str] = tokenizer.batch_decode(made[:, ids.shape[1] :], skip_special_tokens=True)
    return [text.strip() for text in found]


def on_the_left(rows: Sequence[Sequence[int]], fill: int) -> list[list[int]]:
    """The rows, padded on the left, so that all go on at the same place; what stands there is not read."""
    width = max(len(row) for row in rows)
    return [[fill] * (width - len(row)) + list(row) for row in rows]
