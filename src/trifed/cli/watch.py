"""`trifed watch`: follow a run by its event log."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from trifed.cli.flags import Run

POLL_SECONDS = 0.5


def watch_command(
    folder: Run,
    wait: Annotated[bool, typer.Option(help="Wait for new events until the run is finished.")] = True,
) -> None:
    """Follow a run: print rounds, clients, bytes and scores as they happen.

    RUN is the folder of a run by `trifed run`, or at the server of a run between sites. The command ends with the
    run.

    [bold]Examples[/bold]

      trifed watch server/runs/tickets
    \b
      trifed watch runs/demo --no-wait
    """
    from trifed.deployment.event_format import line_of
    from trifed.federation.run_folder import RunFolder

    run, seen = RunFolder.open(folder), 0
    while True:
        events = run.events()
        seen = min(seen, len(events))  # a resumed run drops the events after its last complete round
        for event in events[seen:]:
            line = line_of(event)
            if line:
                typer.echo(line)
        seen = len(events)
        if not wait or any(event["event"] == "finished" for event in events):
            return
        time.sleep(POLL_SECONDS)
