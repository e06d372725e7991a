"""`trifed compare`: methods × partitions × seeds under equal conditions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trifed.cli.continuing import continuable
from trifed.cli.flags import MethodFile, Runs
from trifed.common.console import PlainConsole


def compare_command(
    config: Annotated[Path, typer.Argument(help="A TOML file.", show_default=False)],
    jobs: Annotated[int, typer.Option(min=1, help="Number of runs at a time; they share the cores.")] = 1,
    runs: Runs = Path("runs"),
    method_file: MethodFile = None,
    show: Annotated[bool, typer.Option("--show", help="Only show the results so far.")] = False,
) -> None:
    """Run methods on the same splits, batches and budget, and compare them with confidence intervals.

    Finished runs are kept. The same command again resumes a comparison that was interrupted.

    [bold]Examples[/bold]

    \b
      trifed compare rivals.toml
    \b
      trifed compare rivals.toml --jobs 2
    \b
      trifed compare rivals.toml --show      # results so far, without running anything

    [bold]A file to start from[/bold]

    \b
      name = "rivals"
      methods = ["local", "fedavg-lora", "ce-lora", "own-prior"]   # the first one is the reference
      seeds = [0, 1]
      \\[run]                       # settings of trifed run
      rounds = 20
      \\[run.data]
      source = "requests.csv"
      text = "message"          # names of the columns in your table
      label = "queue"
      \\[partitions.by-site.data.clients]
      split = "column"
      column = "site"
      \\[partitions.skewed.data.clients]
      split = "dirichlet"
      alpha = 0.1
      count = 10
      \\[tuning]                    # choose each learning rate on validation data
      learning_rates = \\[1e-3, 3e-3, 1e-2]
      \\[method_settings.fedavg-lora.personalization]   # a rival with a part of another method
      label_prior = true

    \\[method_settings.NAME] may hold a method's own options, adapter,
    personalization, aggregation, wire, and training.learning_rate. Everything
    else is equal for all methods and belongs under \\[run].
    """
    # Imported late: --help should not wait for torch.
    from trifed.experiments.compare import compare, load_comparison
    from trifed.experiments.compare_config import read_comparison
    from trifed.methods import use_method_files
    from trifed.reports.progress_bar import CompareWatch

    console = PlainConsole()
    use_method_files(method_file or [])
    comparison = read_comparison(config)
    folder = runs / comparison.name
    if show:
        from trifed.reports.comparison.report import render_comparison

        console.print(render_comparison(load_comparison(folder).data))
        return
    how = "All complete rounds are kept; the same command continues."
    with continuable(lambda: how), CompareWatch(console) as watch:
        result = compare(comparison, folder, jobs=jobs, listener=watch)
    from trifed.reports.comparison.report import render_comparison  # a mistake need not wait for matplotlib

    console.print(render_comparison(result.data))
    console.print(f"Everything is in {folder}; for a page to share: trifed report {folder}", soft_wrap=True)
