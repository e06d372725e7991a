"""Carry out a run for the command line: a live display, the tables at the end, and how to continue."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from trifed.cli.continuing import continuable
from trifed.common.console import PlainConsole

if TYPE_CHECKING:
    from trifed.config.run import RunConfig
    from trifed.reports.results import Source

# Functions import what they need, so that a mistake need not wait for torch or matplotlib.


def carry_out(
    config: RunConfig, path: Path, resumed: dict[str, int | None] | None = None, explain: bool = False
) -> None:
    """Run, or resume with options of `resume`, with a live display; then print the tables and draw the plot.

    With `explain`, as in the demo, a picture for newcomers is drawn as well, and three sentences end the output.
    """
    with continuable(lambda: _how_to_continue(path)):
        from trifed.experiments.runner import resume, run
        from trifed.reports.progress_bar import Watch

        console = PlainConsole()
        display = Watch(config, console)
        try:
            result = run(config, path, display) if resumed is None else resume(path, display, **resumed)
            display.close()
            from trifed.reports.comparison.plots import plot_result  # a mistake need not wait for matplotlib
            from trifed.reports.comparison.report import render_result
            from trifed.reports.read import read_source

            source = read_source(result.path)
            console.print(render_result(source))
            picture = result.path / "curves.png"
            plot_result(source, picture)
            display.say(f"Everything is in {result.path}; the plot is {picture}.")
            display.say(f"For a page to share: trifed report {shlex.quote(str(result.path))}")
            for sentence in _explanation(source, result.path) if explain else []:
                display.say(sentence)
        finally:
            display.close()


def _explanation(source: Source, path: Path) -> list[str]:
    """Draw what each site gained and sent into the run's folder; return the sentences that go with it."""
    from trifed.reports.comparison.gain import closing_sentences, write_gain
    from trifed.reports.comparison.worth import worth_of_sharing

    partition = next(iter(source.study.results.values()))
    worth = worth_of_sharing(partition)
    if worth is None:
        return []
    picture = path / "gain.png"
    write_gain(partition, worth, picture)
    return [f"Each site, separate and federated training: {picture}", "", *closing_sentences(worth, path)]


def estimate(config: RunConfig) -> None:
    """Print what a run would take, without running it."""
    from trifed.experiments.dry_run import dry_run
    from trifed.reports.progress_bar import Watch

    display = Watch(config, PlainConsole())
    try:
        display.say(str(dry_run(config, display)))
    finally:
        display.close()


def _how_to_continue(path: Path) -> str:
    if not (path / "config.toml").is_file():
        return "Nothing was written; the same command starts again."
    return f"All complete rounds are kept; to continue: trifed run --resume {shlex.quote(str(path))}"
