"""`trifed cost`: the bytes that every method would send for a model, without downloading or training."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast

import typer
from rich.text import Text

from trifed.common.console import PlainConsole
from trifed.common.imports import quick_imports

if TYPE_CHECKING:
    from trifed.config.settings import Bits


def cost_command(
    model: Annotated[str, typer.Argument(help="Shape, folder, hub name or 'demo'.", show_default=False)],
    rank: Annotated[
        int | None,
        typer.Option(
            min=1, show_default=False, help="Rank of the adapters. Default: each method's own, mostly 8."
        ),
    ] = None,
    target_modules: Annotated[
        str, typer.Option(help="Endings of module names, separated by commas; or auto, all-linear.")
    ] = "auto",
    labels: Annotated[
        int | None,
        typer.Option(min=0, show_default=False, help="Number of labels. Default: 2, or 0 for a causal LM."),
    ] = None,
    examples: Annotated[
        int, typer.Option(min=1, help="Training examples of a client, which limit its summary before round 1.")
    ] = 100,
    bits: Annotated[
        Literal["1", "2", "4", "8", "32"] | None,
        typer.Option(
            show_default=False, help="Bits for each number that is sent. Default: each method's own, mostly 32."
        ),
    ] = None,
    sealed: Annotated[
        int | None,
        typer.Option(
            min=3,
            show_default=False,
            help="Number of clients in a sealed sum: show the bytes of a sealed run (levels = 1, no noise on "
            "updates) for methods that can be sealed.",
        ),
    ] = None,
    form: Annotated[
        Literal["table", "json", "csv", "md"], typer.Option("--format", help="Format of the output.")
    ] = "table",
    plot: Annotated[
        Path | None, typer.Option(show_default=False, help="Also draw a plot: .png, .svg or .pdf.")
    ] = None,
) -> None:
    """Count the bytes that each method would send for a model, per client and round. No weights are loaded.

    MODEL is a shape (roberta-base, roberta-large, llama-7b, mistral-7b,
    clip-vit-b32, vit-base), 'demo', a folder with a config.json, or a hub name.

    [bold]Examples[/bold]

      trifed cost roberta-base
    \b
      trifed cost llama-7b --rank 16 --target-modules all-linear
    \b
      trifed cost demo --labels 12 --examples 200 --bits 1 --format md
    """
    # Imported late: --help should not wait for torch and transformers.
    messages = PlainConsole(stderr=True)
    with messages.status(Text(f"Reading the shape of {model}")):
        with quick_imports():
            from trifed.federation.cost import estimate_cost
        from trifed.adapters.settings import AdapterSettings
        from trifed.reports.cost import TEXTS, check_picture, plot_cost, render_cost

        if plot is not None:
            check_picture(plot)
        endings = [ending.strip() for ending in target_modules.split(",") if ending.strip()]
        targets = target_modules if target_modules in ("auto", "all-linear") else endings
        ranks = {} if rank is None else {"rank": rank}
        adapter = AdapterSettings.model_validate({"target_modules": targets, **ranks})
        cost = estimate_cost(model, adapter, labels, cast("Bits | None", bits and int(bits)), sealed, examples)
    if form in TEXTS:
        typer.echo(TEXTS[form](cost))
    else:
        PlainConsole().print(render_cost(cost))
    if plot is not None:
        plot_cost(cost, plot)
        messages.print(f"The picture is {plot}.")
