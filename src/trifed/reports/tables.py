"""A table as data: columns with a kind, rows with raw values. Every format shows the same grids."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.table import Table as RichTable
from rich.text import Text

from trifed.reports.format import percent, points, size, span

KINDS: dict[str, Callable[[Any], str]] = {
    "text": str,
    "count": lambda value: f"{value:,}",
    "number": lambda value: f"{value:.4g}",
    "percent": percent,
    "points": points,
    "bytes": lambda value: size(value) if value else "nothing",
    "interval": span,
    "points interval": lambda value: span(value, signed=True),
    "ratio": lambda value: f"{value:.2f}",
    "ratio interval": lambda value: f"{value[0]:.2f} to {value[1]:.2f}",
    "number interval": lambda value: f"{value[0]:.4g} to {value[1]:.4g}",
    "prose": str,
    "verdict": lambda value: "✓ holds" if value else "✗ does not hold",
}
TEXTS = ("text", "prose", "verdict")
"""How a value of each kind is written; None is a dash whatever the kind."""


@dataclass(frozen=True)
class Column:
    """`key`: for machines; `label`: for people; `kind`: one of `KINDS`."""

    key: str
    label: str
    kind: str = "text"

    def show(self, value: Any) -> str:
        """A value as text."""
        return "-" if value is None else KINDS[self.kind](value)

    @property
    def is_number(self) -> bool:
        """Belongs to the right edge?"""
        return self.kind not in TEXTS

    @property
    def css(self) -> str:
        """The class of its cells: numbers stand right, sentences wrap."""
        return "n" if self.is_number else {"prose": "prose"}.get(self.kind, "")


@dataclass(frozen=True)
class Grid:
    """A table: rows of raw values, one for each column."""

    title: str
    columns: Sequence[Column]
    rows: list[list[Any]]
    note: str = field(default="")

    def cells(self) -> list[list[str]]:
        """Every row as text."""
        return [[column.show(value) for column, value in zip(self.columns, row, strict=True)] for row in self.rows]

    def only(self, *keys: str) -> Grid:
        """The same rows with these columns, in this order."""
        places = {column.key: place for place, column in enumerate(self.columns)}
        chosen = [places[key] for key in keys]
        return Grid(
            self.title,
            [self.columns[place] for place in chosen],
            [[row[place] for place in chosen] for row in self.rows],
            self.note,
        )

    def without_empty(self) -> Grid:
        """The same rows without the columns that hold nothing: no value, or bytes that never flow."""
        kept = [
            column.key
            for place, column in enumerate(self.columns)
            if any(row[place] if column.kind == "bytes" else row[place] is not None for row in self.rows)
        ]
        return self.only(*kept)


def to_terminal(grid: Grid) -> RichTable:
    """Render a table for the terminal; cells are shown as they are, whatever brackets they hold."""
    table = RichTable(title=Text(grid.title), title_justify="left")
    for column in grid.columns:
        table.add_column(Text(column.label), justify="right" if column.is_number else "left", overflow="fold")
    for row in grid.cells():
        table.add_row(*map(Text, row))
    return table
