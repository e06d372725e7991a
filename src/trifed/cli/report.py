"""`trifed report`: a run, a comparison or an audit as a page, as Markdown, as JSON or as CSV."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

HELP = """A run, a comparison or an audit as one page to look at and to show.

It has a verdict, at most three cautions, and the numbers behind every picture.

The page is one file that fetches nothing. Of a run that was broken off it shows what there is.

[bold]Examples[/bold]

\b
  trifed report runs/demo
\b
  trifed report runs/demo --out results.md
\b
  trifed report runs/demo --format csv
  trifed report audits/demo/audit.json
"""


def register(app: typer.Typer) -> None:
    """Add `trifed report`."""
    app.command("report", help=HELP)(report_command)


def report_command(
    path: Annotated[Path, typer.Argument(help="Folder of a run, a comparison or an audit.", show_default=False)],
    out: Annotated[Path | None, typer.Option(help="Where to; report.FORMAT in that folder unless given.")] = None,
    format: Annotated[  # noqa: A002 - the flag's name
        str | None, typer.Option(help="html, md, json or csv; else what --out ends with, else html.")
    ] = None,
) -> None:
    """Write the report and say where it is."""
    # Imported late: --help should not wait for matplotlib.
    from trifed.reports.report import report

    console = Console(stderr=True)
    with console.status("reading") as status:
        say = status.update if console.is_terminal else console.print
        target = report(path, out, format, say)
    typer.echo(f"The report is {target}")
