"""Conversations as a model's chat template writes them, and the parts of that text that the assistant wrote.

The text is the template's rendering of the whole conversation, once. A template may write a turn otherwise when
it is the last one (Qwen3 drops the reasoning of earlier turns), and may begin an answer otherwise when it asks for
one (DeepSeek-R1 opens a block of reasoning). So a turn is not found by comparing renderings of parts of the
conversation: its content is replaced by a mark, and its place is where the text around the mark ends and begins.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from trifed.common.errors import ModelError
from trifed.tasks.prompts import render_chat

PRIVATE = [chr(code) for code in range(0xE000, 0xE010)]
"""Characters for private use; one that a conversation does not have marks a message's place."""

Message = dict[str, Any]


@dataclass(frozen=True)
class RenderedChat:
    """A conversation as text.

    Attributes:
        text: The template's rendering.
        learned: Beginning and end of each part that the assistant wrote, with the end of its turn.
    """

    text: str
    learned: list[tuple[int, int]]


def render_conversation(tokenizer: Any, messages: Sequence[Message]) -> RenderedChat:
    """Render a conversation, and find the assistant's turns in it.

    A turn is learned from where the template stops when it asks for an answer, if the conversation has that text
    too, and otherwise from its content on.

    Args:
        tokenizer: The tokenizer, whose chat template is used.
        messages: Messages with `role` and `content`, a text.

    Raises:
        ModelError: There is no chat template, it refuses the conversation, or it does not show a turn.
    """
    text = render_chat(tokenizer, messages)
    learned = []
    for index, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        place = _place(tokenizer, messages, index, text)
        if place is None or not _shown(message["content"], text[slice(*place)]):
            raise ModelError(
                f"model.template: the chat template of this model does not show message {index + 1} of a "
                f"conversation ({_roles(messages)}), so that it cannot be learned; leave out such messages, or "
                "give columns of prompts and answers (data.prompt, data.answer) with a model.template of your own"
            )
        start, end = place
        before = _place(tokenizer, messages, index - 1, text) if index else (0, 0)
        opening = _opening(tokenizer, messages[:index])
        asked = text.rfind(opening, before[1] if before else start, start) if opening else -1
        begins = start if asked < 0 else asked + len(opening)
        learned.append((begins, end + _alike(closing_text(tokenizer, messages[: index + 1]), text[end:])))
    return RenderedChat(text, learned)


def closing_text(tokenizer: Any, messages: Sequence[Message]) -> str:
    """Return what the template writes after the content of the last message, which is a text."""
    sign = mark_for(messages)
    return render_chat(tokenizer, [*messages[:-1], {**messages[-1], "content": sign}]).partition(sign)[2]


def mark_for(messages: Sequence[Message]) -> str:
    """Return a character that no message has."""
    text = str(messages)
    return next((sign for sign in PRIVATE if sign not in text and ascii(sign)[1:-1] not in text), PRIVATE[0])


def _place(tokenizer: Any, messages: Sequence[Message], index: int, text: str) -> tuple[int, int] | None:
    """Return beginning and end of a message's content in `text`, or None if the template does not show it once."""
    marked, sign = [*messages], mark_for(messages)
    marked[index] = {**messages[index], "content": sign}
    before, mark, after = render_chat(tokenizer, marked).partition(sign)
    if not mark or sign in after:
        return None
    start = _alike(text, before)
    return start, len(text) - _alike(text[start:][::-1], after[::-1])


def _shown(content: str, part: str) -> bool:
    """Return whether the text that stands for a message ends as it does; a template may drop its beginning."""
    end = content.strip()
    return not end or _alike(end[::-1], part.strip()[::-1]) > 0


def _opening(tokenizer: Any, messages: Sequence[Message]) -> str:
    """Return what the template writes to ask for an answer to `messages`; "" if it adds nothing to them."""
    if not messages:
        return ""
    plain, asking = (render_chat(tokenizer, messages, answer=answer) for answer in (False, True))
    return asking.removeprefix(plain) if asking.startswith(plain) else ""


def _alike(one: str, other: str) -> int:
    """Return the number of characters with which two texts begin alike."""
    return next(
        (place for place, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
    )


def _roles(messages: Sequence[Message]) -> str:
    return ", ".join(str(message["role"]) for message in messages[:6]) + (", …" if len(messages) > 6 else "")
