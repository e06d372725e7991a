"""How a prompt stands before its answer: in a template, or as the tokenizer's chat template writes it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from trifed.common.errors import ModelError
from trifed.config.settings import ModelSettings

WITH_INPUT = "### Instruction:\n{prompt}\n\n### Input:\n{input}\n\n### Response:\n"
WITHOUT = "### Instruction:\n{prompt}\n\n### Response:\n"
CHAT = "chat"


def asked(prompt: str, context: str, settings: ModelSettings) -> str:
    """What stands before the answer."""
    template = settings.template if settings.template is not None else WITH_INPUT if context else WITHOUT
    return template.replace("{prompt}", prompt).replace("{input}", context)


def question(prompt: str, context: str) -> str:
    """What a user says in a chat."""
    return f"{prompt}\n\n{context}" if context else prompt


def rendered(tokenizer: Any, messages: Sequence[dict[str, Any]], *, answer: bool) -> str:
    """A conversation as the chat template writes it; with `answer` up to where the assistant begins.

    `tokenizer`: or the processor of a model that also reads images.

    Raises:
        ModelError: it has no chat template.
    """
    if tokenizer.chat_template is None:
        raise ModelError(
            "model.name: its tokenizer has no chat template, which conversations need; name columns of prompts "
            "and answers (data.prompt, data.answer), or take a model that was tuned for chats"
        )
    text: str = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=answer)
    return text


def prompted(
    tokenizer: Any, prompts: Sequence[str], inputs: Sequence[str], settings: ModelSettings
) -> list[list[int]]:
    """The tokens of each prompt, cut at its beginning where it is longer than `settings.max_length`."""
    both = zip(prompts, inputs, strict=True)
    if settings.template == CHAT:
        turns = [[{"role": "user", "content": question(*one)}] for one in both]
        texts = [rendered(tokenizer, messages, answer=True) for messages in turns]
        rows: list[list[int]] = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    else:
        texts = [asked(*one, settings) for one in both]
        rows = [_without_end(tokenizer(text)["input_ids"], tokenizer.eos_token_id) for text in texts]
    return [row if len(row) <= settings.max_length else row[:1] + row[1 - settings.max_length :] for row in rows]


def _without_end(ids: list[int], end: int | None) -> list[int]:
    return ids[:-1] if ids and ids[-1] == end else ids
