"""The one table type of all reports, and its forms: Markdown, CSV, records; HTML is a template."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from trifed.common.text import csv_row, markdown_text
from trifed.reports.format import percent, points, size, span

if TYPE_CHECKING:
    import pandas as pd

KINDS: dict[str, Callable[[Any], str]] = {
    "text": str,
    "name": str,
    "prose": str,
    "right": str,
    "verdict": lambda value: "✓ holds" if value else "✗ does not hold",
    "count": lambda value: f"{value:,}",
    "number": lambda value: f"{value:.4g}",
    "percent": percent,
    "points": points,
    "bytes": lambda value: size(value) if value else "nothing",
    "ratio": lambda value: f"{value:.2f}",
    "signed ratio": lambda value: f"{value:+.2f}".replace("-", "−"),
    "interval": span,
    "points interval": lambda value: span(value, signed=True),
    "ratio interval": lambda value: f"{value[0]:.2f} to {value[1]:.2f}",
    "signed ratio interval": lambda value: f"{value[0]:+.2f} to {value[1]:+.2f}".replace("-", "−"),
    "number interval": lambda value: f"{value[0]:.4g} to {value[1]:.4g}",
}
"""Kind of a column -> how one of its values is written. None is written as a dash."""

AS_RATIO = {
    "percent": "ratio",
    "points": "signed ratio",
    "interval": "ratio interval",
    "points interval": "signed ratio interval",
}
"""Kind of a column of percentages -> kind for the same values of a metric that is no percentage."""

NAME = "name"
"""Kind of a column with names of methods, clients or data sets, which are never broken."""
TEXT_KINDS = ("text", NAME, "prose", "verdict")
NARROW = 4
"""Most columns of a table that fits on a phone."""
WIDE = 13
"""Most columns of a table that fits on a page of a large screen."""


@dataclass(frozen=True)
class Column:
    """A column: `key` for machines, `label` for people, `kind` one of `KINDS`."""

    key: str
    label: str
    kind: str = "text"

    @property
    def is_number(self) -> bool:
        """Return True for kinds that are aligned to the right."""
        return self.kind not in TEXT_KINDS

    @property
    def side(self) -> Literal["left", "right"]:
        """Return the side to which the cells are aligned."""
        return "right" if self.is_number else "left"

    @property
    def css(self) -> str:
        """Return the CSS class of the cells."""
        return "n" if self.is_number else {"prose": "prose"}.get(self.kind, "")


@dataclass(frozen=True)
class Table:
    """Rows of raw values by column key. A key that a row lacks counts as None; further keys are not shown."""

    title: str
    columns: Sequence[Column]
    rows: Sequence[Mapping[str, Any]]
    note: str = ""

    @property
    def is_narrow(self) -> bool:
        """Return True if the table fits beside a figure, and on a phone."""
        return len(self.columns) <= NARROW and not any(column.kind == "prose" for column in self.columns)

    @property
    def scrolls(self) -> bool:
        """Return True if the table is likely wider than a phone; a column of prose takes the room that is left."""
        return len(self.columns) > NARROW or (len(self.columns) > 2 and not self.is_narrow)

    @property
    def is_wide(self) -> bool:
        """Return True if the table may be wider than the page on a large screen."""
        return len(self.columns) > WIDE

    def cells(self) -> list[list[str]]:
        """Return every row as text."""
        return [
            ["-" if row.get(c.key) is None else KINDS[c.kind](row[c.key]) for c in self.columns]
            for row in self.rows
        ]

    def records(self) -> list[dict[str, Any]]:
        """Return every row as a dictionary of raw values."""
        return [{column.key: row.get(column.key) for column in self.columns} for row in self.rows]

    def only(self, *keys: str, title: str = "") -> Table:
        """Return the rows with these columns, if they exist, in this order; a new title drops the note."""
        known = {column.key: column for column in self.columns}
        columns = [known[key] for key in keys if key in known]
        return Table(title, columns, self.rows) if title else replace(self, columns=columns)

    def without_empty(self) -> Table:
        """Return the same rows without columns that hold no value, and without bytes that are all zero."""
        values = {c: [row.get(c.key) for row in self.rows] for c in self.columns}
        kept = [c for c, found in values.items() if any(v or (v is not None and c.kind != "bytes") for v in found)]
        return replace(self, columns=kept)


def as_ratios(table: Table) -> Table:
    """Return a table whose percentages are shown as plain numbers."""
    columns = [
        replace(column, kind=AS_RATIO.get(column.kind, column.kind), label=column.label.removesuffix(", %"))
        for column in table.columns
    ]
    named = [replace(column, label="difference") if column.label == "points" else column for column in columns]
    return replace(table, columns=named, title=table.title.removesuffix(", %"))


def to_markdown(table: Table) -> str:
    """Render as a Markdown table."""
    rule = "|" + "|".join("--:" if column.is_number else ":--" for column in table.columns) + "|"
    head, *rows = [[column.label for column in table.columns], *table.cells()]
    lines = [f"| {' | '.join(map(markdown_text, row))} |" for row in (head, *rows)]
    return "\n".join([lines[0], rule, *lines[1:]])


def to_csv(table: Table) -> str:
    """Render as CSV with raw values; an interval fills two columns, `KEY_low` and `KEY_high`."""
    return write_csv(_flat_records(table), [name for column in table.columns for name in _flat_names(column)])


def to_frame(table: Table, *index: str) -> pd.DataFrame:
    """Return the rows with raw values as a DataFrame; an interval becomes `KEY_low` and `KEY_high`."""
    import pandas as pd

    names = [name for column in table.columns for name in _flat_names(column)]
    return pd.DataFrame(_flat_records(table), columns=names).set_index(list(index))


def _flat_records(table: Table) -> list[dict[str, Any]]:
    return [
        {
            name: value
            for column in table.columns
            for name, value in zip(_flat_names(column), _flat_values(column, row.get(column.key)), strict=True)
        }
        for row in table.rows
    ]


def _flat_names(column: Column) -> list[str]:
    interval = column.kind.endswith("interval")
    return [f"{column.key}_low", f"{column.key}_high"] if interval else [column.key]


def _flat_values(column: Column, value: Any) -> Sequence[Any]:
    return (value or (None, None)) if column.kind.endswith("interval") else (value,)


def write_csv(rows: Iterable[Mapping[str, Any]], fields: Sequence[str]) -> str:
    """Write the `fields` of all rows as CSV, with a header."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fields, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(map(csv_row, rows))
    return text.getvalue()
