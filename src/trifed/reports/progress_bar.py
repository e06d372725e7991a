"""A bar on standard error for work that takes a while, in a terminal only: standard output stays for results."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


@contextmanager
def counting(what: str, total: int | None, hidden: bool = False) -> Iterator[Callable[[int], None]]:
    """Gives a function that is told how many more are done.

    `total`: None where nobody knows; `hidden`: results are printed meanwhile, and a bar would get between them.
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
    """A sign of life in a terminal."""
    with Console(stderr=True).status(what):
        yield
