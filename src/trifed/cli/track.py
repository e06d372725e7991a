"""`trifed track`: log a finished run to TensorBoard or MLflow."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from trifed.cli.flags import Run
from trifed.config.settings import TrackerName

VIEW = {
    "tensorboard": "tensorboard --logdir {place}",
    "mlflow": "mlflow server --backend-store-uri {place}",
}


def track_command(
    folder: Run,
    to: Annotated[TrackerName, typer.Option("--to", help="The tracker.", show_default=False)],
    into: Annotated[
        Path | None, typer.Option(help="Folder of the logs. Default: the run's own folder.", show_default=False)
    ] = None,
) -> None:
    """Log a finished or interrupted run and its baselines to TensorBoard or MLflow.

    Logs accuracy, training loss and bytes for each complete round and client, and the configuration as parameters.
    Logging a run twice does not duplicate points. To log a run from the start, set trackers = ["tensorboard"] in
    its file.

    Each tracker is an extra: pip install 'trifed\\[tensorboard]' or 'trifed\\[mlflow]'.

    [bold]Examples[/bold]

      trifed track runs/demo --to tensorboard
    \b
      trifed track runs/demo --to mlflow --into tracked
    """
    console = Console(stderr=True)
    with console.status(f"Logging {folder} to {to}"):
        # Imported late: --help should not wait for torch.
        from trifed.reports.tracking import track

        done = track(folder, to, into)
    for item in done:
        typer.echo(f"{item.method}: {item.points} points of {item.rounds} rounds, in {item.place}")
    typer.echo(f"To view it: {VIEW[to].format(place=shlex.quote(done[0].place))}")
