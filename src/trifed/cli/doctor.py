"""`trifed doctor`: whether a machine, a run or a folder is fit to be used."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

PROBLEM = 1
"""Exit code if there is a problem."""
STYLES = {"ok": "green", "warning": "yellow", "problem": "bold red", "skipped": "dim"}


def doctor_command(
    path: Annotated[
        Path | None, typer.Argument(metavar="[PATH]", help="A run's file, or a folder.", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print every result as JSON.")] = False,
) -> None:
    """Check a machine, a run or a folder, and say how to fix each problem.

    Without PATH: this machine. Otherwise PATH is a run's TOML file, a run's
    folder, a server's folder (trifed flower init) or a site's folder (trifed
    flower join).

    Nothing is changed on the disk. The exit code is 1 if there is a problem, 2 for a wrong path, else 0.

    [bold]Examples[/bold]

      trifed doctor
    \b
      trifed doctor my.toml
    \b
      trifed doctor runs/tickets
    \b
      trifed doctor site --json
    """
    # Imported late: --help should not wait for torch.
    from trifed.reports.doctor import diagnose
    from trifed.reports.format import plural

    checks = diagnose(path)
    counts = Counter(check.state for check in checks)
    if as_json:
        facts = {"problems": counts["problem"], "warnings": counts["warning"], "checks": [*map(asdict, checks)]}
        typer.echo(json.dumps(facts, indent=2))
    else:
        table, console = Table("state", "check", Column("found", overflow="fold")), Console()
        for check in checks:
            table.add_row(Text(check.state, STYLES[check.state]), Text(check.name), Text(check.found))
        console.print(table)
        for check in filter(lambda check: check.mend, checks):  # below the table, so that a command can be copied
            console.print(Text(f"{check.name}: {check.mend}", STYLES[check.state]), soft_wrap=True)
        console.print(f"{plural(counts['problem'], 'problem')}, {plural(counts['warning'], 'warning')}.")
    if counts["problem"]:
        raise typer.Exit(PROBLEM)
