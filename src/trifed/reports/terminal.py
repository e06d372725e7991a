"""Tables in a terminal, which break no number and no name, however narrow the terminal is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from textwrap import fill

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions
from rich.measure import Measurement
from rich.table import Table as RichTable
from rich.text import Text

from trifed.reports.tables import NAME, Column, Table

LABEL_WIDTH = 12
"""Characters that a number column's label may have even if its numbers are shorter."""
WORD = 20
"""Characters from which a word of a text that is no name may be broken."""
FRAME, COMPACT = 3, 1
"""Characters that a column takes beside its text, with lines and spaces around it and without lines."""


def to_terminal(table: Table) -> TerminalTable:
    """Render for the terminal. Texts may fold, numbers and names never; brackets in names are no markup."""
    return TerminalTable(table)


@dataclass(frozen=True)
class TerminalTable:
    """A table that adapts to the width of the terminal.

    If it is too wide, texts fold at spaces, then labels of numbers do, then it has no lines between columns. If
    that is not enough, it becomes several tables, which begin with the same names.
    """

    table: Table

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        """Return the width that the table has if nothing folds, or that of the terminal."""
        columns = _fitted(self.table, LABEL_WIDTH, options.max_width)
        width = min(1 + sum(FRAME + column.natural for column in columns), options.max_width)
        return Measurement(width, width)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RichTable]:
        """Yield the table, or the tables that it is divided into."""
        title, width = self.table.title, options.max_width
        loose, narrow = (_fitted(self.table, label_width, width) for label_width in (LABEL_WIDTH, 1))
        for columns, frame in ((loose, FRAME), (narrow, FRAME), (loose, COMPACT), (narrow, COMPACT)):
            if _least(columns, frame) <= width:
                yield _rendered(title, columns, width, frame)
                return
        for columns in _divided(loose, narrow, width):
            yield _rendered(title, columns, width, FRAME)
            title = ""


@dataclass(frozen=True)
class _FittedColumn:
    """A column as text.

    Attributes:
        column: What it holds.
        label: Its label, of several lines if it is folded.
        cells: Its cells.
        least: Fewest characters in which no number, name or usual word is broken.
        natural: Characters in which nothing folds.
    """

    column: Column
    label: str
    cells: Sequence[str]
    least: int
    natural: int


def _fitted(table: Table, label_width: int, most: int) -> list[_FittedColumn]:
    """Return the columns as text.

    Args:
        table: The table.
        label_width: Characters of a number column's label, if its numbers and the words of the label are shorter.
        most: Characters of the terminal, half of which a name may take.
    """
    rows, found = table.cells(), []
    for place, column in enumerate(table.columns):
        cells, label = [row[place] for row in rows], column.label
        if column.is_number:
            width = max([label_width, *map(len, cells)])
            label = fill(label, width, break_long_words=False, break_on_hyphens=False)
        natural = max(1, *(cell_len(line) for text in (label, *cells) for line in text.split("\n")))
        least = natural
        if not column.is_number:
            longest = max((cell_len(word) for text in (label, *cells) for word in text.split()), default=1)
            least = min(longest, most // 2 if column.kind == NAME else WORD)
        found.append(_FittedColumn(column, label, cells, least, natural))
    return found


def _least(columns: Sequence[_FittedColumn], frame: int = FRAME) -> int:
    return 1 + sum(frame + column.least for column in columns)


def _divided(loose: list[_FittedColumn], narrow: list[_FittedColumn], width: int) -> list[list[_FittedColumn]]:
    """Return the columns of each of the tables into which a table is divided.

    Args:
        loose: Its columns.
        narrow: Its columns with labels as narrow as possible, in case a column of `loose` is too wide.
        width: Characters of the terminal.
    """
    names = max(1, next((n for n, each in enumerate(loose) if each.column.kind != NAME), len(loose)))
    fits = all(_least([*loose[:names], column]) <= width for column in loose[names:])
    columns = loose if fits else narrow
    first, others = columns[:names], columns[names:]
    parts = _packed(first, others, width)
    for narrower in range(width - 1, 0, -1):  # as many tables, but none of them with a column or two only
        alike = _packed(first, others, narrower)
        if len(alike) > len(parts):
            break
        parts = alike
    return parts


def _packed(first: list[_FittedColumn], others: list[_FittedColumn], width: int) -> list[list[_FittedColumn]]:
    """Return `others` in groups that fit into `width` together with `first`, which each group begins with."""
    parts: list[list[_FittedColumn]] = [[*first]]
    for column in others:
        if len(parts[-1]) > len(first) and _least([*parts[-1], column]) > width:
            parts.append([*first])
        parts[-1].append(column)
    return parts


def _rendered(title: str, columns: Sequence[_FittedColumn], width: int, frame: int) -> RichTable:
    """Return the table of these columns, whose texts share the width that is left."""
    shown = RichTable(title=Text(title) if title else None, title_justify="left")
    if frame == COMPACT:
        shown.box, shown.show_edge, shown.padding = SIMPLE_HEAD, False, (0, 0)
    room = width - _least(columns, frame)
    wanted = sum(column.natural - column.least for column in columns)
    for column in columns:
        more = column.natural - column.least
        own = column.least + (more if wanted <= room else max(0, room) * more // max(1, wanted))
        number = column.column.is_number
        shown.add_column(
            Text(column.label),
            justify=column.column.side,
            overflow="fold",
            no_wrap=number,
            width=None if number else own,
        )
    for row in zip(*(column.cells for column in columns), strict=True):
        shown.add_row(*map(Text, row))
    return shown
