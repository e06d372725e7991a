"""Roles of columns: each is a setting that names a column, and a reader of its cells."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from trifed.data.columns import read_conversations, read_optional_texts, read_texts
from trifed.data.images import encoded, read_images
from trifed.data.settings import DataSettings
from trifed.data.tags import TAGS, read_tags, read_words, words_of
from trifed.data.targets import read_label_lists, read_numbers


@dataclass(frozen=True)
class Role:
    """A column that a model reads.

    Attributes:
        setting: Name of the setting in `[data]`, and of the role unless it has another `name`.
        read: Converts cells and the column's name to values, (n,): texts, bytes, or `Unusable` for a row that may
            be skipped.
        given: Converts a caller's value to the form that `read` returns.
        when: Returns True for settings with which the column is read.
        name: Name of the role, if it differs from the setting's.
        options: Returns further arguments of `read` from the settings.
    """

    setting: str
    read: Callable[..., list[Any]]
    given: Callable[[Any], Any] = lambda value: value
    when: Callable[[DataSettings], bool] = lambda settings: True
    name: str = ""
    options: Callable[[DataSettings], dict[str, Any]] = lambda settings: {}

    @property
    def key(self) -> str:
        """Name of the role, under which `Examples.inputs` has its values."""
        return self.name or self.setting

    def column(self, settings: DataSettings) -> str | None:
        """Return the column with this role, or None if the settings name none or do not read it."""
        column: str | None = getattr(settings, self.setting)
        return column if self.when(settings) else None


Roles = tuple[Role, ...]

TARGET = "label"
"""The role of a label that is no class; the model does not read it."""

TEXT = Role("text", read_texts)
TEXTS: Roles = (TEXT, Role("text_pair", read_texts))
"""One text, and a second one if `data.text_pair` names its column."""

TAGGED: Roles = (Role("text", read_words, words_of), Role("label", read_tags, name=TAGS))
"""The words of a sentence, and a tag for each word."""

NUMBER = Role(TARGET, read_numbers)
"""A number as label."""
LABEL_LIST = Role(TARGET, read_label_lists, options=lambda settings: {"separator": settings.label_separator})
"""A list of labels as label."""

IMAGES: Roles = (Role("image", read_images, encoded),)
"""One image per row."""

QUESTIONS: Roles = (Role("prompt", read_texts), Role("input", read_optional_texts), Role("answer", read_texts))
"""A prompt with an optional input, and its answer."""

LANGUAGE: Roles = (
    Role("messages", read_conversations),
    *QUESTIONS,
    Role("text", read_texts, when=lambda settings: settings.answer is None and settings.messages is None),
)
"""A conversation, or a prompt with an optional input and an answer, or a text."""
