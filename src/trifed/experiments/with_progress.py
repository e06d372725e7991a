"""`run`, `resume` and `compare` for Python and notebooks: they show their progress unless they are told not to.

A terminal, and a notebook with ipywidgets, get a bar; anything else gets lines of text. Both go to standard error,
so that a program's own output stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from trifed.common.console import PlainConsole
from trifed.config.run import RunConfig, make_config
from trifed.config.toml_files import read_toml
from trifed.experiments import compare as comparisons
from trifed.experiments import runner
from trifed.experiments.compare_config import CompareConfig
from trifed.experiments.run_result import RunResult
from trifed.federation import preparation
from trifed.federation.events import Listener
from trifed.federation.run_folder import RunFolder

if TYPE_CHECKING:
    from rich.console import Console

    from trifed.reports.progress_bar import CompareWatch, Watch


def run(
    config: RunConfig,
    folder: str | Path | None = None,
    listener: Listener | None = None,
    *,
    quiet: bool | None = None,
) -> RunResult:
    """Run a configuration, and its baselines on the same split, in a new folder, and show the progress.

    Args:
        config: The run's settings.
        folder: The new folder; `runs/NAME` unless given.
        listener: Receives each event, and takes the place of the display.
        quiet: True to show nothing; False to show the progress beside a `listener`.

    Raises:
        TrifedError: The user can correct it; the message says how, and nothing is written.
    """
    with _shown(lambda console: _watch(config, console), listener, quiet) as listen:
        return runner.run(config, folder, listen)


def resume(
    folder: str | Path,
    listener: Listener | None = None,
    from_round: int | None = None,
    rounds: int | None = None,
    *,
    quiet: bool | None = None,
) -> RunResult:
    """Continue a run; the numbers of one that was interrupted are those of an uninterrupted one.

    Args:
        folder: The run's folder.
        listener: Receives each event, and takes the place of the display.
        from_round: A round whose checkpoint is kept: the run goes back to its end, and is repeated from there.
        rounds: Another number of rounds, which is written into the run's configuration. Given or changed there, a
            finished run has more rounds too.
        quiet: True to show nothing; False to show the progress beside a `listener`.

    Raises:
        RunError: The folder holds no run, another process writes to it, the data, the base model or settings
            changed, the checkpoint of `from_round` is not kept, or the run was planned for its number of rounds.
    """

    def display(console: Console) -> Watch:
        path = RunFolder.open(Path(folder)).path / "config.toml"
        config = make_config(read_toml(path), str(path))
        return _watch(config if rounds is None else config.model_copy(update={"rounds": rounds}), console)

    with _shown(display, listener, quiet) as listen:
        return runner.resume(folder, listen, from_round, rounds)


def compare(
    config: CompareConfig,
    folder: str | Path | None = None,
    *,
    jobs: int = 1,
    listener: Listener | None = None,
    quiet: bool | None = None,
) -> comparisons.ComparisonResult:
    """Run a comparison in `folder` (`runs/NAME` unless given), `jobs` runs at a time, and show the progress.

    A repeated call with the same folder runs what is missing. Methods, seeds and partitions can be added; a run
    that is there with other settings is refused. However the call ends, comparison.json has all finished runs.

    Args:
        config: The comparison's settings.
        folder: Its folder.
        jobs: Number of runs at a time; they share the cores.
        listener: Receives each event, and takes the place of the display.
        quiet: True to show nothing; False to show the progress beside a `listener`.

    Raises:
        TrifedError: The user can correct it; the message says how.
    """

    def display(console: Console) -> CompareWatch:
        from trifed.reports.progress_bar import CompareWatch

        return CompareWatch(console)

    with _shown(display, listener, quiet) as listen:
        return comparisons.compare(config, folder, jobs=jobs, listener=listen)


def _watch(config: RunConfig, console: Console) -> Watch:
    from trifed.reports.progress_bar import Watch

    return Watch(config, console)


@contextmanager
def _shown(
    display: Callable[[Console], Watch | CompareWatch], listener: Listener | None, quiet: bool | None
) -> Iterator[Listener]:
    """Yield a listener that shows every event, as far as that is wanted, and passes it on to `listener`."""
    own = listener or preparation.quiet
    if quiet if quiet is not None else listener is not None:
        yield own
        return
    watch = display(PlainConsole(stderr=True))

    def both(event: dict[str, object]) -> None:
        watch(event)
        own(event)

    try:
        yield both
    finally:
        watch.close()
