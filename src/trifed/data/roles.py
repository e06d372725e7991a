"""What a model reads of a row: each role is a setting that names a column, and the way its cells are read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from trifed.data.columns import Cell, read_texts
from trifed.data.settings import DataSettings


@dataclass(frozen=True)
class Unusable:
    """A cell that cannot be used: `place`: "file, row 3"; `reason`: in words."""

    place: str
    reason: str


@dataclass(frozen=True)
class Role:
    """`setting`: of `[data]`, also the name of what is read; `read`: cells and column → values, (n,).

    A value is a text or bytes; or `Unusable`, where the row may be left out. `given`: one value as a caller has it
    → as it is read; `when`: is it read at all, with these settings?
    """

    setting: str
    read: Callable[[Sequence[Cell], str], list[Any]]
    given: Callable[[Any], Any] = lambda value: value
    when: Callable[[DataSettings], bool] = lambda settings: True

    def column(self, settings: DataSettings) -> str | None:
        """The column that stands in this role; None where the user named none and it can be left out."""
        found: str | None = getattr(settings, self.setting)
        return found if self.when(settings) else None


Roles = tuple[Role, ...]

TEXT = Role("text", read_texts)
TEXTS: Roles = (TEXT, Role("text_pair", read_texts))
"""One text, and a second one where `data.text_pair` names its column."""
