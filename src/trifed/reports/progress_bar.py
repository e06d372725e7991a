"""A bar on standard error for long work, in a terminal only: standard output is for results."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


@contextmanager
def counting(what: str, total: int | None, hidden: bool = False) -> Iterator[Callable[[int], None]]:
    """Show a bar; yields a function that takes how many more items are done.

    Args:
        what: Text beside the bar.
        total: Number of items; None if unknown.
        hidden: True to show nothing, because results are printed meanwhile.
    """
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn())
    with Progress(
        *columns, TimeRemainingColumn(), console=console, transient=True, disable=hidden or not console.is_terminal
    ) as progress:
        task = progress.add_task(what, total=total)
        yield lambda count: progress.advance(task, count)


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """Show a spinner in a terminal."""
    with Console(stderr=True).status(what):
        yield
