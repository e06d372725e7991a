"""A language model's answers: prompts as it was trained to read them, then always the most probable token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from trifed.settings import ModelSettings
from trifed.tasks.base_model import LoadedBase
from trifed.tasks.causal_lm import CHAT, asked, rendered


def prompted(base: LoadedBase, prompts: list[str], inputs: list[str], settings: ModelSettings) -> list[list[int]]:
    """The tokens of each prompt, cut at its beginning where it is longer than `settings.max_length`."""
    tokenizer = base.processor
    if settings.template == CHAT:
        questions = [f"{p}\n\n{i}" if i else p for p, i in zip(prompts, inputs, strict=True)]
        texts = [rendered(tokenizer, [{"role": "user", "content": q}], answer=True) for q in questions]
        rows: list[list[int]] = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    else:
        texts = [asked(p, i, settings) for p, i in zip(prompts, inputs, strict=True)]
        rows = [_without_end(tokenizer(text)["input_ids"], tokenizer.eos_token_id) for text in texts]
    return [row if len(row) <= settings.max_length else row[:1] + row[1 - settings.max_length :] for row in rows]


def _without_end(ids: list[int], end: int | None) -> list[int]:
    return ids[:-1] if ids and ids[-1] == end else ids


def generate(encoder: Any, base: LoadedBase, rows: Sequence[list[int]], tokens: int) -> list[str]:
    """The text behind each row of tokens, greedily, up to the end token or `tokens` tokens."""
    device = next(encoder.parameters()).device
    width = max(len(row) for row in rows)
    end = base.processor.eos_token_id
    # Padded on the left, so that all rows go on at the same place; what stands there is not read.
    ids = torch.tensor([[end or 0] * (width - len(row)) + row for row in rows], device=device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)
    made = encoder.generate(
        input_ids=ids, attention_mask=mask, max_new_tokens=tokens, do_sample=False, pad_token_id=end or 0
    )
    found: list[str] = base.processor.batch_decode(made[:, width:], skip_special_tokens=True)
    return [text.strip() for text in found]
