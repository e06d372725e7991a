"""`trifed audit`: attack a configuration, and say what a curious server could recover."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

INTERRUPTED = 130

HELP = """Attack a run or a configuration, and say what a curious server could recover.

A run is attacked where it stands, a file of settings after a few rounds of
warm-up. Beside the method there are controls: federated averaging of the
whole model, whose tokens must come back, plain LoRA, and a guesser who sees
nothing. Span and matching attacks, members of updates and of summaries,
labels: docs/threat-model.md says who knows what.

The result is a page, audit.html, and audit.json beside it. Ctrl-C stops; the
same command goes on. So far for text and image classification.

[bold]Examples[/bold]

  trifed audit runs/tickets
\b
  trifed audit tickets.toml --client berlin --into audits/tickets
\b
  trifed audit runs/tickets --full     # every batch size, every control: hours
\b
  trifed audit runs/tickets --batch 1 --batch 4 --trials 20 --control ce-lora
"""

Flag = typer.Option


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command("audit", help=HELP)(audit_command)


def audit_command(
    source: Annotated[
        Path, typer.Argument(metavar="RUN|CONFIG", help="A run's folder, or a TOML file.", show_default=False)
    ],
    client: Annotated[str | None, Flag(help="Whose examples are attacked. Default: the first.")] = None,
    into: Annotated[
        Path | None, Flag(help="Where to write. Default: RUN/audit, or audits/NAME.", show_default=False)
    ] = None,
    full: Annotated[bool, Flag("--full", help="Everything; says first how long that takes.")] = False,
    batch: Annotated[list[int] | None, Flag(min=1, help="Batch size to attack; repeatable.")] = None,
    trials: Annotated[int | None, Flag(min=1, help="Batches of each size.")] = None,
    rounds: Annotated[int | None, Flag(min=1, help="Of warm-up.")] = None,
    control: Annotated[list[str] | None, Flag(help="A method beside the own one; repeatable.")] = None,
) -> None:
    """Audit a run or a configuration."""
    console = Console(stderr=True)
    with console.status("Reading") as status:
        # Imported late: --help should not wait for torch.
        from trifed.attacks.audit import audit, read_source
        from trifed.attacks.plan import make_plan

        config, folder = read_source(source)
        place = into or (folder / "audit" if folder else Path("audits") / config.name)
        plan = make_plan(full, batch, trials, rounds, control)

        def progress(text: str) -> None:
            status.update(text)
            if not console.is_terminal or text.startswith("about"):
                console.print(text, highlight=False, markup=False)

        try:
            found = audit(source, place, plan, client, progress)
        except KeyboardInterrupt:
            kept = (
                f"What is finished is in {place}"
                if (place / "audit.json").is_file()
                else "Nothing is finished yet"
            )
            console.print(
                f"\nStopped. {kept}; to go on, the same again:\n  {shlex.join(['trifed', *sys.argv[1:]])}",
                highlight=False,
                markup=False,
            )
            raise typer.Exit(INTERRUPTED) from None
        from trifed.common.files import whole_file
        from trifed.reports.audit.report import audit_lines, audit_page

        status.update("Drawing")
        with whole_file(place / "audit.html") as scratch:
            scratch.write_text(audit_page(found, status.update), encoding="utf-8")
    Console().print(audit_lines(found))
    typer.echo(f"The page to look at is {place / 'audit.html'}; the numbers are in {place / 'audit.json'}.")
