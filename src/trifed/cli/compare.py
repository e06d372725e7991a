"""`trifed compare`: methods × partitions × seeds under equal conditions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

INTERRUPTED = 130

HELP = """Run methods on the same splits, batches and budget, and set them side by side with intervals.

What is finished is kept and what was broken off is resumed: the same command, again, goes on.

[bold]Examples[/bold]

\b
  trifed compare rivals.toml
\b
  trifed compare rivals.toml --jobs 2
\b
  trifed compare rivals.toml --show      # what there is so far; runs nothing

[bold]A file to start from[/bold]

\b
  name = "rivals"
  methods = ["local", "fedavg-lora", "ce-lora", "own-prior"]   # the first is the reference
  seeds = [0, 1]
  \\[run]                       # as for trifed run
  rounds = 20
  \\[run.data]
  source = "tickets.csv"
  label = "queue"
  \\[partitions.by-site.data.clients]
  split = "column"
  column = "site"
  \\[partitions.skewed.data.clients]
  split = "dirichlet"
  alpha = 0.1
  count = 10
  \\[tuning]                    # a learning rate for each method, on validation data
  learning_rates = \\[1e-3, 3e-3, 1e-2]
"""


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command("compare", help=HELP)
    def compare_command(
        config: Annotated[Path, typer.Argument(help="A TOML file.", show_default=False)],
        jobs: Annotated[int, typer.Option(min=1, help="Runs at a time; the cores are shared out.")] = 1,
        runs: Annotated[Path, typer.Option(help="Where runs are kept.")] = Path("runs"),
        method_file: Annotated[
            list[Path] | None,
            typer.Option(
                metavar="FILE.py", help="Python file that defines METHOD, for `methods` to name; repeatable."
            ),
        ] = None,
        show: Annotated[bool, typer.Option("--show", help="Only show what there is so far.")] = False,
    ) -> None:
        # Imported late: --help should not wait for torch.
        from trifed.experiments.compare import compare, load_comparison
        from trifed.experiments.compare_config import read_comparison
        from trifed.methods import use_method_files
        from trifed.reports.comparison.terminal import CompareWatch, render_comparison

        console = Console()
        use_method_files(method_file or [])
        wanted = read_comparison(config)
        folder = runs / wanted.name
        if show:
            console.print(render_comparison(load_comparison(folder).data))
            return
        with CompareWatch(console) as watch:
            try:
                result = compare(wanted, folder, jobs=jobs, listener=watch)
            except KeyboardInterrupt:
                watch.close()
                typer.echo("\nStopped. All whole rounds are kept; the same command goes on.", err=True)
                raise typer.Exit(INTERRUPTED) from None
        console.print(render_comparison(result.data))
        console.print(f"Everything is in {folder}; a page to show: trifed report {folder}", soft_wrap=True)
