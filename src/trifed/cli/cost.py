"""`trifed cost`: what every method would send on a model, before anything is downloaded or trained."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, cast, get_args

import typer
from rich.console import Console

from trifed.adapters.settings import AdapterSettings
from trifed.config.settings import Bits

HELP = """What every method would send on a model, for each client and round. No weights are loaded.

MODEL is a shape (roberta-base, roberta-large, llama-7b, mistral-7b, clip-vit-b32, vit-base), 'demo', a folder with
a config.json, or a hub name.

[bold]Examples[/bold]

  trifed cost roberta-base
\b
  trifed cost llama-7b --rank 16 --target-modules all-linear
\b
  trifed cost demo --labels 12 --bits 1 --format md
"""

Flag = typer.Option


Words = Literal["auto", "all-linear"]


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command("cost", help=HELP)(cost_command)


def cost_command(
    model: Annotated[str, typer.Argument(help="Shape, folder, hub name or 'demo'.", show_default=False)],
    rank: Annotated[
        int | None,
        Flag(min=1, show_default=False, help="Rank of all adapters. Default: each method's own, mostly 8."),
    ] = None,
    target_modules: Annotated[
        str, Flag(help="Endings of module names, with commas; or auto, all-linear.")
    ] = "auto",
    labels: Annotated[
        int | None,
        Flag(min=0, show_default=False, help="Outputs of the head. Default: 2, or 0 for a causal LM."),
    ] = None,
    bits: Annotated[
        Literal["1", "2", "4", "8", "32"] | None,
        Flag(show_default=False, help="Of a number that travels. Default: each method's own, mostly 32."),
    ] = None,
    form: Annotated[Literal["table", "json", "csv", "md"], Flag("--format", help="How to print it.")] = "table",
    plot: Annotated[Path | None, Flag(show_default=False, help="Also draw it: .png, .svg or .pdf.")] = None,
) -> None:
    """What every method would send on a model."""
    # Imported late: --help should not wait for torch and transformers.
    messages = Console(stderr=True)
    with messages.status(f"Reading the shape of {model}"):
        from trifed.federation.cost import estimate_cost
        from trifed.reports.cost import TEXTS, check_picture, plot_cost, render_cost

        if plot is not None:
            check_picture(plot)
        given = {} if rank is None else {"rank": rank}
        adapter = AdapterSettings(**given, target_modules=_targets(target_modules))
        cost = estimate_cost(model, adapter, labels, cast(Bits | None, bits and int(bits)))
    if form in TEXTS:
        typer.echo(TEXTS[form](cost))
    else:
        Console().print(render_cost(cost))
    if plot is not None:
        plot_cost(cost, plot)
        messages.print(f"The picture is {plot}.")


def _targets(given: str) -> list[str] | Words:
    if given in get_args(Words):
        return cast(Words, given)
    return [ending.strip() for ending in given.split(",") if ending.strip()]
