"""The end of a run as tables and sentences for a terminal."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from trifed.reports.grid import Grid
from trifed.reports.grids import client_grid, main_grid
from trifed.reports.study import Source
from trifed.reports.verdicts import bytes_sentence, controls_sentence, headline

OVERVIEW = ("method", "mean", "worst", "best", "up_per_round", "total_bytes")


def render_result(source: Source) -> RenderableType:
    """Of a run: clients, methods and controls side by side, and what that says."""
    parts: list[RenderableType] = []
    for name, partition in source.study.results.items():
        methods = partition.model_copy(update={"controls": {}})
        parts.append(render_grid(client_grid(methods, source.details.get(name))))
        parts.append(render_grid(main_grid({name: partition}).only(*OVERVIEW).without_empty()))
        said = (headline(source.study), bytes_sentence(partition), controls_sentence(partition))
        parts += [Text(sentence) for sentence in said if sentence]
    return Group(*parts)


def render_grid(grid: Grid) -> Table:
    """A grid as a table for the terminal; names are shown as they are, whatever brackets they hold."""
    table = Table(title=Text(grid.title), title_justify="left")
    for column in grid.columns:
        table.add_column(Text(column.label), justify="right" if column.is_number else "left", overflow="fold")
    for row in grid.cells():
        table.add_row(*map(Text, row))
    return table
