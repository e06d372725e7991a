"""The text before an answer: a template, or the chat template of the model's tokenizer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jinja2.exceptions import TemplateError

from trifed.common.errors import ModelError
from trifed.config.settings import ModelSettings

WITH_INPUT = "### Instruction:\n{prompt}\n\n### Input:\n{input}\n\n### Response:\n"
WITHOUT = "### Instruction:\n{prompt}\n\n### Response:\n"
CHAT = "chat"


def format_prompt(prompt: str, context: str, settings: ModelSettings) -> str:
    """Return the text before the answer by `model.template`, or the default template if it is not set."""
    template = settings.template if settings.template is not None else WITH_INPUT if context else WITHOUT
    return template.replace("{prompt}", prompt).replace("{input}", context)


def chat_question(prompt: str, context: str) -> str:
    """Return the user's message in a chat."""
    return f"{prompt}\n\n{context}" if context else prompt


def render_chat(tokenizer: Any, messages: Sequence[dict[str, Any]], *, answer: bool = False) -> str:
    """Render a conversation with the chat template.

    Args:
        tokenizer: The tokenizer, or the processor of a model that also reads images.
        messages: The conversation.
        answer: End with the beginning of the assistant's next message.

    Raises:
        ModelError: The tokenizer has no chat template, or the template refuses the conversation.
    """
    if tokenizer.chat_template is None:
        raise ModelError(
            "model.name: its tokenizer has no chat template, which conversations need; name columns of prompts "
            "and answers (data.prompt, data.answer), or choose a model that was tuned for chats"
        )
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=answer))
    except (TemplateError, TypeError) as error:  # a TypeError is what a template's own arithmetic may end in
        roles = ", ".join(str(message["role"]) for message in messages[:6])
        raise ModelError(
            f"model.template: the chat template of this model refuses a conversation of the roles {roles}"
            f"{', …' if len(messages) > 6 else ''}: {str(error).strip()[:200]}; leave out or change such "
            "messages, or choose a model whose template allows them"
        ) from error


def prompt_rows(inputs: Mapping[str, Sequence[Any]], *more: str) -> Iterator[tuple[Any, ...]]:
    """Yield (prompt, context, …) for each example; the context is empty if there is no "input".

    `more` names the roles that follow, such as "answer".
    """
    contexts = inputs.get("input") or [""] * len(inputs["prompt"])
    return zip(inputs["prompt"], contexts, *(inputs[role] for role in more), strict=True)


def end_tokens(tokenizer: Any) -> list[int]:
    """Return the end token as a list, which is empty if the tokenizer has none."""
    return [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]


def without_end(ids: list[int], tokenizer: Any) -> list[int]:
    """Return token ids without a final end token."""
    return ids[:-1] if ids and ids[-1:] == end_tokens(tokenizer) else ids
