"""When and how the server reports whom it waits for, so that a run without progress shows the reason."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from trifed.federation import events

FIRST, LONGEST = 60.0, 600.0
"""Seconds of a wait before its second notice, and the longest time between two notices."""
MOST_NAMES = 5
"""Clients that one notice names."""


@dataclass
class WaitNotices:
    """Notices about one wait, which begins when the object is made.

    The first is due after `first` seconds. The time between two notices doubles from `FIRST` to `LONGEST` seconds.
    """

    log: events.Log
    first: float = FIRST
    clock: Callable[[], float] = time.monotonic
    since: datetime = field(default_factory=lambda: datetime.now(UTC))

    def __post_init__(self) -> None:
        self.began, self.due = self.clock(), self.first

    def give(self, subject: Callable[[], str], clients: Collection[str] = (), number: int | None = None) -> None:
        """Log a notice if one is due.

        Args:
            subject: Returns what the server waits for, such as "basil to connect".
            clients: Names of the clients it waits for, as far as they are known.
            number: The round, if there is one.
        """
        waited = self.clock() - self.began
        if waited < self.due:
            return
        self.due = waited + min(max(waited, FIRST), LONGEST)
        text = f"waiting since {self.since:%Y-%m-%d %H:%M:%S} UTC for {subject()}"
        since = self.since.isoformat(timespec="seconds")
        self.log(events.Waiting(text, since, sorted(clients), number))


def name_some(names: Sequence[str]) -> str:
    """Return names as a list in a sentence, the first few of many."""
    more = len(names) - MOST_NAMES
    return ", ".join(names[:MOST_NAMES]) + (f" and {more} more" if more > 0 else "")
