"""`trifed report`: a run, a comparison or an audit as HTML, Markdown, JSON or CSV."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console


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
    # Imported late: --help should not wait for matplotlib.
    from trifed.reports.report import report

    console = Console(stderr=True)
    with console.status("reading") as status:
        say = status.update if console.is_terminal else console.print
        target = report(path, out, format, say)
    typer.echo(f"The report is {target}")
