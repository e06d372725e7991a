"""`trifed audit`: attack a run or a configuration, and report what a curious server could recover."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from trifed.cli.continuing import continuable
from trifed.common.console import PlainConsole
from trifed.common.files import whole_file


def audit_command(
    source: Annotated[
        Path, typer.Argument(metavar="RUN|CONFIG", help="A run's folder, or a TOML file.", show_default=False)
    ],
    client: Annotated[str | None, typer.Option(help="Client to attack. Default: the first.")] = None,
    into: Annotated[
        Path | None, typer.Option(help="Default: RUN/audit, or audits/NAME.", show_default=False)
    ] = None,
    full: Annotated[
        bool, typer.Option("--full", help="Run every attack; the expected time is shown first.")
    ] = False,
    batch: Annotated[list[int] | None, typer.Option(min=1, help="Batch size to attack; repeatable.")] = None,
    trials: Annotated[int | None, typer.Option(min=1, help="Number of batches of each size.")] = None,
    rounds: Annotated[int | None, typer.Option(min=1, help="Rounds of warm-up.")] = None,
    control: Annotated[list[str] | None, typer.Option(help="Method to attack as a control; repeatable.")] = None,
) -> None:
    """Attack a run or a configuration, and report what a curious server could recover.

    A run is attacked in its last state; a file of settings, after a few rounds of
    warm-up. The same attacks on controls show what the numbers mean: federated
    averaging of the whole model, from which a working attack recovers tokens,
    plain LoRA, and guesses without any upload. The attacks recover tokens, images
    and labels, and test who was a member of an update or a summary;
    docs/threat-model.md says what each attacker knows. Sums of several clients
    are attacked too. In a sealed run (`sealing.on`) the server sees only sums;
    single uploads are then a control.

    The results are a page, audit.html, and audit.json. After Ctrl-C, the same
    command continues. Text and image classification can be audited so far.

    [bold]Examples[/bold]

      trifed audit runs/tickets
    \b
      trifed audit tickets.toml --client berlin --into audits/tickets
    \b
      trifed audit runs/tickets --full     # every batch size, every control: hours
    \b
      trifed audit runs/tickets --batch 1 --batch 4 --trials 20 --control ce-lora
    """
    console = PlainConsole(stderr=True)
    with console.status("Reading") as status:
        # Imported late: --help should not wait for torch.
        from trifed.attacks.audit import audit, read_source
        from trifed.attacks.plan import make_plan

        config, folder = read_source(source)
        target = into or (folder / "audit" if folder else Path("audits") / config.name)
        plan = make_plan(full, batch, trials, rounds, control)

        def progress(text: str) -> None:
            status.update(Text(text))
            if not console.is_terminal or "minutes in all" in text:
                console.print(text, highlight=False)

        def how() -> str:
            done = (target / "audit.json").is_file()
            kept = f"Finished parts: {target}" if done else "Nothing is finished yet"
            return f"{kept}; to continue:\n  {shlex.join(['trifed', *sys.argv[1:]])}"

        with continuable(how):
            found = audit(source, target, plan, client, progress)
        from trifed.reports.audit.report import audit_lines, audit_page

        status.update("Drawing")
        with whole_file(target / "audit.html") as scratch:
            scratch.write_text(audit_page(found, lambda text: status.update(Text(text))), encoding="utf-8")
    PlainConsole().print(audit_lines(found))
    typer.echo(f"The page to look at is {target / 'audit.html'}; the numbers are in {target / 'audit.json'}.")
