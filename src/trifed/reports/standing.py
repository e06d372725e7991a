"""How the sites of a run stand, as a table for a terminal."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from trifed.deployment.status import RunStatus


def render_status(run: RunStatus) -> RenderableType:
    """One row a site; below it why nodes were refused."""
    state = "finished" if run.finished else f"round {run.round} of {run.rounds} is done"
    table = Table(title=state, title_justify="left")
    table.add_column("site", overflow="fold")
    for column in ("examples", "last round", "took, s", "left out", "sent, KB"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("why not since")
    for site in run.clients:
        took = "" if site.seconds is None else f"{site.seconds:.1f}"
        numbers = (f"{site.examples:,}", str(site.last), took, str(site.left_out), f"{site.sent / 1000:.1f}")
        table.add_row(Text(site.name), *numbers, Text(site.reason))
    return Group(table, *(Text(f"refused: {reason}") for reason in run.refused))
