"""`trifed watch`: a run as it goes, from its event log."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

HELP = """Follow a run: rounds, clients, bytes and scores as they come.

Of a run by Flower at the server, or of one that `trifed run` carries out. Ends when the run is finished.

[bold]Examples[/bold]

  trifed watch server/runs/tickets
\b
  trifed watch runs/demo --no-wait
"""
LOOK_AGAIN = 0.5


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("watch", help=HELP)(watch_command)


def watch_command(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder.", show_default=False)],
    wait: Annotated[bool, typer.Option(help="For what comes, until the run is finished.")] = True,
) -> None:
    """Follow a run."""
    from trifed.deployment.event_format import line_of
    from trifed.federation.run_folder import RunFolder

    run, seen = RunFolder.open(folder), 0
    while True:
        events = run.events()
        seen = min(seen, len(events))  # a run that goes on begins after its last whole round
        for event in events[seen:]:
            line = line_of(event)
            if line:
                typer.echo(line)
        seen = len(events)
        if not wait or any(event["event"] == "finished" for event in events):
            return
        time.sleep(LOOK_AGAIN)
