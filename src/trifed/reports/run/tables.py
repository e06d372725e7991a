"""The end of a run for a terminal: clients, methods and controls side by side, and the verdict."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.text import Text

from trifed.reports.comparison.tables import client_table, main_table
from trifed.reports.comparison.verdict import study_verdict
from trifed.reports.results import Details, Source
from trifed.reports.tables import to_terminal

OVERVIEW = ("method", "mean", "worst", "best", "up_per_round", "total_bytes", "fedavg_lora_would_send")


def render_result(source: Source) -> RenderableType:
    """Render a run's result: one table of its clients, one of its methods and controls, one sentence."""
    parts: list[RenderableType] = []
    for name, partition in source.study.results.items():
        overview = main_table({name: partition}).only(*OVERVIEW).without_empty()
        clients = client_table(partition, source.details.get(name, Details()), controls=False)
        parts += [to_terminal(clients), to_terminal(overview)]
    return Group(*parts, Text(study_verdict(source.study)))
