"""`trifed track`: a run's numbers in TensorBoard or MLflow, after the fact."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from trifed.config.settings import TrackerName

HELP = """Write a finished or broken-off run and its baselines to TensorBoard or MLflow.

Accuracy, training loss and bytes, for each whole round and client; the configuration as parameters. Doing it again
doubles nothing. To follow a run while it runs: trackers = ["tensorboard"] in its file.

Each is an extra: pip install 'trifed\\[tensorboard]' or 'trifed\\[mlflow]'.

[bold]Examples[/bold]

  trifed track runs/demo --to tensorboard
\b
  trifed track runs/demo --to mlflow --into tracked
"""

LOOK = {
    "tensorboard": "tensorboard --logdir {place}",
    "mlflow": "mlflow server --backend-store-uri {place}",
}

Flag = typer.Option


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command("track", help=HELP)(track_command)


def track_command(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder.", show_default=False)],
    to: Annotated[TrackerName, Flag("--to", help="Which tracker.", show_default=False)],
    into: Annotated[
        Path | None, Flag(help="Where to keep it. Default: the run's own folder.", show_default=False)
    ] = None,
) -> None:
    """Write a run to a tracker."""
    console = Console(stderr=True)
    with console.status(f"Writing {folder} to {to}"):
        # Imported late: --help should not wait for torch.
        from trifed.reports.tracking import track

        done = track(folder, to, into)
    for item in done:
        typer.echo(f"{item.method}: {item.points} points of {item.rounds} rounds, in {item.place}")
    typer.echo(f"To look: {LOOK[to].format(place=shlex.quote(done[0].place))}")
