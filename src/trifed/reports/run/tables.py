"""The end of a run as tables and sentences for a terminal."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.text import Text

from trifed.reports.comparison.tables import client_grid, main_grid
from trifed.reports.comparison.verdict import bytes_sentence, controls_sentence, headline
from trifed.reports.results import Source
from trifed.reports.tables import to_terminal

OVERVIEW = ("method", "mean", "worst", "best", "up_per_round", "total_bytes")


def render_result(source: Source) -> RenderableType:
    """Of a run: clients, methods and controls side by side, and what that says."""
    parts: list[RenderableType] = []
    for name, partition in source.study.results.items():
        methods = partition.model_copy(update={"controls": {}})
        parts.append(to_terminal(client_grid(methods, source.details.get(name))))
        parts.append(to_terminal(main_grid({name: partition}).only(*OVERVIEW).without_empty()))
        said = (headline(source.study), bytes_sentence(partition), controls_sentence(partition))
        parts += [Text(sentence) for sentence in said if sentence]
    return Group(*parts)
