"""Early ends of a command that can be continued: Ctrl-C, SIGTERM, or files that cannot be written."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import typer

from trifed.common.errors import RunError
from trifed.common.stopping import exit_code


@contextmanager
def continuable(how: Callable[[], str]) -> Iterator[None]:
    """End the block's command with one message; `how` returns the sentence that says how to continue.

    Raises:
        RunError: A file cannot be read or written: no space, a read-only folder, a lost mount.
        typer.Exit: The command was stopped.
    """
    try:
        yield
    except KeyboardInterrupt as stop:
        typer.echo(f"\nStopped. {how()}", err=True)
        raise typer.Exit(exit_code(stop)) from None
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        raise RunError(f"{place}{error.strerror or error}. Correct that first. {how()}") from error
