"""`trifed report`, `track`, `watch` and `privacy`: what the folder of a run holds."""

from __future__ import annotations

import json
import shlex
import time
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.text import Text

from trifed.cli.flags import Run
from trifed.common.console import PlainConsole
from trifed.common.errors import damage_in
from trifed.common.text import printable

# Functions import what needs torch and matplotlib, so that --help need not wait for it.

VIEW = {
    "tensorboard": "tensorboard --logdir {place}",
    "mlflow": "mlflow server --backend-store-uri {place}",
    "wandb": "wandb sync {place}",
}
"""Command that shows the logs, by tracker."""
POLL_SECONDS = 0.5


def report_command(
    path: Annotated[Path, typer.Argument(help="Folder of a run, a comparison or an audit.", show_default=False)],
    out: Annotated[Path | None, typer.Option(help="The new file. Default: report.FORMAT in that folder.")] = None,
    format: Annotated[  # noqa: A002 - the flag's name
        str | None, typer.Option(help="html, md, json or csv. Default: the ending of --out, or html.")
    ] = None,
) -> None:
    """Write a report about a run, a comparison or an audit: one page to read and to share.

    It has a verdict, at most three cautions, and the numbers behind every plot.

    The page is one file that loads nothing from the network. An unfinished run can be reported too.

    [bold]Examples[/bold]

    \b
      trifed report runs/demo
    \b
      trifed report runs/demo --out results.md
    \b
      trifed report runs/demo --format csv
      trifed report audits/demo/audit.json
    """
    from trifed.reports.report import report

    console = PlainConsole(stderr=True)
    with console.status("reading") as status:

        def progress(text: str) -> None:
            status.update(Text(text)) if console.is_terminal else console.print(text)

        target = report(path, out, format, progress)
    typer.echo(printable(f"The report is {target}"))


def track_command(
    folder: Run,
    to: Annotated[
        Literal["tensorboard", "mlflow", "wandb"],
        typer.Option("--to", help="The tracker.", show_default=False),
    ],
    into: Annotated[
        Path | None, typer.Option(help="Folder of the logs. Default: the run's own folder.", show_default=False)
    ] = None,
) -> None:
    """Log a finished or interrupted run and its baselines to a tracker.

    Trackers are TensorBoard, MLflow, and Weights & Biases (wandb).

    Logs accuracy, training loss and bytes for each complete round and client, and
    the configuration as parameters. Logging a run twice does not duplicate
    points. To log a run from the start, set trackers = ["tensorboard"] in its
    file.

    Each tracker is an extra: in your copy of trifed's repository,
    pip install '.\\[tensorboard]', '.\\[mlflow]' or '.\\[wandb]'. With
    WANDB_MODE=offline, wandb writes files that `wandb sync` uploads.

    [bold]Examples[/bold]

      trifed track runs/demo --to tensorboard
    \b
      trifed track runs/demo --to mlflow --into tracked
    """
    console = PlainConsole(stderr=True)
    with console.status(Text(f"Logging {folder} to {to}")):
        from trifed.reports.tracking import track

        done = track(folder, to, into)
    for item in done:
        typer.echo(f"{item.method}: {item.points} points of {item.rounds} rounds, in {item.place}")
    place = done[0].place
    address = place.startswith(("https://", "http://")) and to == "wandb"
    typer.echo(f"To view it: {place if address else VIEW[to].format(place=shlex.quote(place))}")


def watch_command(
    folder: Run,
    wait: Annotated[bool, typer.Option(help="Wait for new events until the run is finished.")] = True,
) -> None:
    """Follow a run: print rounds, clients, bytes and scores as they happen.

    RUN is the folder of a run by `trifed run`, or at the server of a run between
    sites. The command ends with the run.

    [bold]Examples[/bold]

      trifed watch server/runs/tickets
    \b
      trifed watch runs/demo --no-wait
    """
    from trifed.federation.events import line_of
    from trifed.federation.run_folder import RunFolder

    run, seen = RunFolder.open(folder), 0
    while True:
        events = run.events()
        seen = min(seen, len(events))  # a resumed run drops the events after its last complete round
        with damage_in(folder / "events.jsonl", "put the whole file back"):
            lines = [line_of(event) for event in events[seen:]]
        for line in filter(None, lines):
            typer.echo(line)
        seen = len(events)
        if not wait or any(event["event"] == "finished" for event in events):
            return
        time.sleep(POLL_SECONDS)


def privacy_command(
    folder: Run,
    as_json: Annotated[bool, typer.Option("--json", help="Print every entry as JSON.")] = False,
) -> None:
    """Show the privacy budget that a run has spent, from its ledgers.

    RUN is the folder of a simulated run (all clients' ledgers), a site's folder
    (its own ledgers, of one run or of all), or a run's folder at the server of a
    run between sites. The server has no ledger; it shows the cost for a client
    that takes part in every round.

    An ε holds between two data sets that differ. Here they differ by one training
    example of the client, or by all of its updates.

    [bold]Examples[/bold]

      trifed privacy runs/tickets
    \b
      trifed privacy site --json
    """
    from trifed.federation.privacy_report import accounts_in
    from trifed.privacy import ledger
    from trifed.reports import privacy
    from trifed.reports.terminal import to_terminal

    accounts = accounts_in(folder)
    if as_json:
        typer.echo(json.dumps([{"run": a.run, **ledger.as_json(a.book)} for a in accounts], indent=2))
        return
    console = PlainConsole()
    table = privacy.privacy_table(accounts) if accounts else privacy.promise_table(folder)
    console.print(to_terminal(table))
    for remark in privacy.remarks(folder, accounts):
        console.print(remark)
