"""Exit codes of a process that is stopped, and the handler that lets SIGTERM stop it as Ctrl-C does."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

MISTAKE = 2
"""Exit code after an error that the user can correct."""
INTERRUPTED = 130
"""Exit code after Ctrl-C."""
TERMINATED = 143
"""Exit code after SIGTERM."""


class Terminated(KeyboardInterrupt):
    """Raised when the process gets SIGTERM."""


def stop_on_sigterm() -> None:
    """Let SIGTERM raise `Terminated` in this process."""
    signal.signal(signal.SIGTERM, _terminate)


def _terminate(number: int, frame: FrameType | None) -> None:
    raise Terminated


@contextmanager
def stopped_later() -> Iterator[None]:
    """Let SIGTERM and Ctrl-C wait until the end of the block.

    A library of C++ that gets an exception while it is imported aborts the process, without any clean-up.
    """
    seen: list[int] = []
    # A mask of this thread would not do: the system hands the signal to any thread that does not block it.
    before = {
        number: signal.signal(number, lambda got, _: seen.append(got))
        for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if seen:
            signal.raise_signal(seen[0])


def exit_code(stop: BaseException) -> int:
    """Return the exit code of a process that was stopped."""
    return INTERRUPTED if isinstance(stop, KeyboardInterrupt) and not isinstance(stop, Terminated) else TERMINATED
