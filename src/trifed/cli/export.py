"""`trifed export`: a client's model as a folder that works without its run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from trifed.cli.flags import Base
from trifed.common.errors import RunError

Form = Literal["tri-matrix", "lora", "lora-no-head", "merged"]
"""Form of an exported model; also written here, so that --help does not wait for torch."""


def export_command(
    run: Annotated[Path, typer.Argument(help="A finished run's folder.", show_default=False)],
    form: Annotated[Form, typer.Option(help="Form of the model.")] = "lora",
    client: Annotated[str | None, typer.Option(help="The client's name.")] = None,
    every: Annotated[
        bool, typer.Option("--all", help="Export every client, each to a folder of its name.")
    ] = False,
    to: Annotated[
        Path | None, typer.Option(help="The new folder. Default: RUN/exports/FORM, with the client's name.")
    ] = None,
    base: Base = None,
) -> None:
    """Write a client's model as a new folder that works without this run.

    [bold]Forms[/bold]

    \b
      tri-matrix     the adapter as it was trained, W0 + s·B·C·A
      lora           plain PEFT LoRA, C folded into B; the head in its own file
      lora-no-head   plain PEFT LoRA without the head, for adapter servers
      merged         full weights for plain transformers; no base model needed

    Each folder has a README.md, which says where the model comes from and has
    Python code that loads it without trifed. To export a baseline's client, give
    RUN/baselines/METHOD as the run.

    [bold]Examples[/bold]

      trifed export runs/tickets --client berlin --form merged --to berlin
    \b
      trifed export runs/tickets --all --form lora
    """
    # Imported late: --help should not wait for torch.
    from trifed.export.export import export_client, export_clients
    from trifed.export.locate import join_names, open_run
    from trifed.reports.progress_bar import counting, waiting

    if every == (client is not None):
        names = join_names(open_run(run).names)
        raise RunError(f"{run}: give either --client NAME or --all; the clients are {names}")
    if client is not None:
        with waiting(f"exporting {client}"):
            written = export_client(run, client, form, to, base)
    else:
        total = len(open_run(run).names)
        with counting("exporting clients", total) as progress:
            written = export_clients(run, form, to, base, lambda done, *_: progress(1 if done else 0))
    Console().print(f"{written}: {form}; how to load it is in its README.md", markup=False, soft_wrap=True)
