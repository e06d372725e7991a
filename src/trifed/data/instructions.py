"""Training data of language models: plain texts, prompts with answers, or conversations."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from trifed.common.errors import DataError
from trifed.data.columns import Cell, place, read_texts
from trifed.data.roles import Role, Roles
from trifed.data.settings import DataSettings

SPEAKERS = ("system", "user", "assistant")


def read_maybe(column: Sequence[Cell], name: str) -> list[str]:
    """Return a column's texts, (n,), with empty texts for missing ones."""
    return ["" if _is_empty(cell[2]) else read_texts([cell], name)[0] for cell in column]


def _is_empty(value: Any) -> bool:
    return value is None or (isinstance(value, str) and not value.strip())


def read_conversations(column: Sequence[Cell], name: str) -> list[str]:
    """Return conversations, (n,), as JSON lists of messages with `role` and `content`.

    Raises:
        DataError: A cell is no conversation, or has no message of the assistant.
    """
    return [_conversation(cell, name) for cell in column]


def _conversation(cell: Cell, name: str) -> str:
    value = cell[2]
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise DataError(f"{place(cell)}: column {name!r} holds no JSON ({error.msg}); {_WANTED}") from error
    if not isinstance(value, list) or not value:
        raise DataError(f"{place(cell)}: column {name!r} holds a {type(value).__name__}; {_WANTED}")
    messages = [_message(cell, name, message) for message in value]
    if not any(message["role"] == "assistant" for message in messages):
        raise DataError(
            f"{place(cell)}: got a conversation without the role 'assistant' in column {name!r}; {_WANTED}"
        )
    return json.dumps(messages, ensure_ascii=False)


_WANTED = 'expected a list of messages such as {"role": "user", "content": "..."}'


def _message(cell: Cell, name: str, message: Any) -> dict[str, str]:
    if not isinstance(message, Mapping) or not {"role", "content"} <= set(message):
        raise DataError(f"{place(cell)}: a message in column {name!r} is {message!r:.60}; {_WANTED}")
    role, content = message["role"], message["content"]
    if role not in SPEAKERS or not isinstance(content, str):
        raise DataError(
            f"{place(cell)}: a message in column {name!r} has the role {role!r:.30}, expected one of "
            f"{', '.join(SPEAKERS)}, with a text as content"
        )
    return {"role": role, "content": content}


def _only_texts(settings: DataSettings) -> bool:
    return settings.answer is None and settings.messages is None


LANGUAGE: Roles = (
    Role("messages", read_conversations),
    Role("prompt", read_texts),
    Role("input", read_maybe),
    Role("answer", read_texts),
    Role("text", read_texts, when=_only_texts),
)
"""A conversation, or a prompt with an optional input and an answer, or a text."""

QUESTIONS: Roles = (Role("prompt", read_texts), Role("input", read_maybe), Role("answer", read_texts))
"""A prompt with an optional input, and its answer."""
