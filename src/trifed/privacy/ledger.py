"""One client's ledger: every release, written before it is sent, and the privacy loss of all of them.

::

    ledger.json     {"client": …, "budget": the run's [privacy], "entries": [{"what": "update", "round": 3,
                     "multiplier": 8.1, "digest": "…"}, …]}

`multiplier` is the noise's standard deviation in sensitivities, or null for a release without noise. `digest` is a
hash of the released numbers: sending the same message again reveals nothing new and adds no entry.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from trifed.common.errors import BudgetError, RunError
from trifed.common.files import whole_file
from trifed.config.settings import PrivacySettings
from trifed.privacy.accounting import (
    Sampled,
    epsilon_of,
    epsilon_of_sums,
    epsilon_with_steps,
    noise_multiplier,
    steps_multiplier,
)

RECORD = "one training example of the client added or removed"
CLIENT = "all updates of the client added or removed"

What = Literal["summary", "update", "training"]
SUMMARY: What = "summary"
UPDATE: What = "update"
TRAINING: What = "training"
FILE = "ledger.json"
EVERYTHING = "summary and updates"


class Entry(BaseModel):
    """One release.

    Attributes:
        what: Kind of release.
        round: Round of the release; 0 for a summary.
        multiplier: Standard deviation of the noise in sensitivities; None without noise.
        digest: Hash of the released numbers.
        rate: Sampling rate of private training steps.
        steps: Number of private training steps behind an upload.
        clients: Clients of a sealed sum whose noise together has this multiplier; 1 for a release with all of the
            noise in it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    what: What
    round: int
    multiplier: float | None = Field(ge=0)
    digest: str
    rate: float = 1.0
    steps: int = 1
    clients: int = Field(1, ge=1)


class Book(BaseModel):
    """The content of a ledger's file; `lost` marks lost entries, so that every earlier round counts as one."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    client: str
    budget: PrivacySettings
    entries: tuple[Entry, ...] = ()
    lost: bool = False


class Spent(NamedTuple):
    """The privacy loss of some releases.

    Attributes:
        relation: The neighbouring data sets for which it holds.
        covers: The kinds of releases.
        releases: Number of releases.
        epsilon: ε of all of them.
        delta: δ.
    """

    relation: str
    covers: str
    releases: int
    epsilon: float
    delta: float


class Ledger:
    """The ledger in a folder, which is new if the folder has none.

    Raises:
        RunError: The folder's ledger cannot be read, or is of another client or budget.
    """

    def __init__(self, folder: Path, client: str, budget: PrivacySettings) -> None:
        self.path = folder / FILE
        new = Book(client=client, budget=budget)
        self.book = read_ledger(self.path) if self.path.exists() else new
        if self.book.model_copy(update={"entries": (), "lost": False}) != new:
            raise RunError(
                f"{self.path}: got a ledger of {self.book.client}, expected one of {client} with this run's "
                f"[privacy]; restore the settings, or start a new run"
            )

    def check(self, entry: Entry) -> None:
        """Check that a release stays within the budget, before it is computed; its digest does not matter.

        A release of a round that is in the ledger passes, because it may be sent again; `enter` then compares.

        Raises:
            RunError: The release would exceed the budget.
        """
        if not self._has(entry):
            self.check_new(entry)

    def enter(self, entry: Entry) -> None:
        """Write an entry to the disk, before its release is sent.

        Raises:
            RunError: The release would exceed the budget. Nothing is written, and it must not be sent.
        """
        if entry in self.book.entries:
            return
        self.check_new(entry)
        self._write(entries=(*self.book.entries, entry))

    def enter_missing(self, entry: Entry) -> None:
        """Write an entry unless the ledger has one of the same kind and round; raises as `enter` does."""
        if not self._has(entry):
            self.enter(entry)

    def _has(self, entry: Entry) -> bool:
        return any((known.what, known.round) == (entry.what, entry.round) for known in self.book.entries)

    def lose(self) -> None:
        """Record that entries may have been lost with a disk or by restoring a backup."""
        self._write(lost=True)

    def _write(self, **changes: object) -> None:
        book = self.book.model_copy(update=changes)
        with whole_file(self.path, durable=True) as path:
            path.write_text(book.model_dump_json(indent=1) + "\n", encoding="utf-8")
        self.book = book

    def check_new(self, entry: Entry) -> None:
        """Check that a release in addition to all entries stays within the budget.

        Raises:
            RunError: The release would exceed the budget.
        """
        limit = getattr(self.book.budget, entry.what)
        if limit is None or entry.multiplier is None:
            return
        alike = [known for known in (*self.book.entries, entry) if known.what == entry.what]
        total = (
            epsilon_with_steps([], _steps(alike), limit.delta)
            if entry.what == TRAINING
            else _epsilon(_noise(alike, entry.what), [], limit.delta, in_sums=entry.clients > 1)
        )
        if total <= limit.epsilon:
            return
        more = "privacy.summary.releases" if entry.what == SUMMARY else "rounds"
        raise BudgetError(
            f"privacy.{entry.what}: {self.book.client} has made {len(alike) - 1} releases, and one more would "
            f"bring ε to {total:.2f}, over its {limit.epsilon:g} (δ = {limit.delta:g}); it is not made. Start a "
            f"new run with more {more} or a larger ε; the privacy loss so far remains"
        )


def read_ledger(path: Path) -> Book:
    """Read a ledger's file.

    Raises:
        RunError: The file does not exist or is damaged.
    """
    try:
        return Book.model_validate_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RunError(
            f"{path}: no such file, expected the ledger of a run with [privacy]; check the path"
        ) from error
    except (ValidationError, UnicodeDecodeError) as error:
        raise RunError(
            f"{path}: this ledger is damaged, so the privacy loss is unknown; restore a copy. Without one, start "
            f"a new run, and count this run's whole budget as spent"
        ) from error


def spent(entries: Sequence[Entry], budget: PrivacySettings) -> list[Spent]:
    """Return the privacy loss of releases, by relation and kind of release.

    For `RECORD`, a summary counts with its own sensitivity, and an update after private training steps with these
    steps alone. Any other update may change anywhere in the ball of radius `clip`, twice the sensitivity of
    omitting it, so its noise counts half. For `CLIENT`, only updates count. A release without noise makes ε
    infinite. Entries of sealed sums count for the sum, whose noise is that of `Entry.clients` clients.
    """
    deltas = [part.delta for part in (budget.summary, budget.update, budget.training) if part is not None]
    delta = min(deltas, default=1e-5)
    summaries, updates, steps = _noise(entries, SUMMARY), _noise(entries, UPDATE), _steps(entries)
    trained = {entry.round for entry in entries if entry.what == TRAINING}
    others = [entry for entry in entries if entry.round not in trained]
    known = [*summaries, *(z / 2 for z in _noise(others, UPDATE))]
    in_sums = any(entry.clients > 1 for entry in entries)
    both = _epsilon(known, steps, delta, in_sums=in_sums)
    return [
        Spent(RECORD, "the summary alone", len(summaries), epsilon_of(summaries, delta), delta),
        Spent(RECORD, EVERYTHING, len(summaries) + len(updates), both, delta),
        Spent(
            CLIENT, "updates; not the summary", len(updates), _epsilon(updates, [], delta, in_sums=in_sums), delta
        ),
    ]


def promised(
    budget: PrivacySettings, rounds: int, steps: int | None, *, summarises: bool, uploads: bool, clients: int = 1
) -> list[Spent]:
    """Return the privacy loss of a client that takes part in every round and releases all planned summaries.

    Args:
        budget: The run's budget.
        rounds: Number of rounds.
        steps: Training steps per round, if they are known.
        summarises: The run's method uses summaries.
        uploads: The run's method sends updates.
        clients: See `Entry.clients`, of updates.
    """
    planned: list[Entry] = []
    summary, update, training = budget.summary, budget.update, budget.training
    numbers = range(1, rounds + 1)
    if summarises:
        z = noise_multiplier(summary.epsilon, summary.delta, summary.releases) if summary else None
        planned += [_planned(SUMMARY, z, number) for number in range(summary.releases if summary else 1)]
    if uploads:
        z = noise_multiplier(update.epsilon, update.delta, rounds, in_sums=clients > 1) if update else None
        planned += [_planned(UPDATE, z, number, clients=clients if update else 1) for number in numbers]
    if uploads and training and steps:
        z = steps_multiplier(training.epsilon, training.delta, training.rate, rounds * steps)
        planned += [_planned(TRAINING, z, number, rate=training.rate, steps=steps) for number in numbers]
    return spent(planned, budget)


def facts_of(found: Iterable[Spent]) -> list[dict[str, str | int | float | None]]:
    """Return privacy losses as plain values for JSON; an infinite ε is None."""
    return [{**line._asdict(), "epsilon": line.epsilon if math.isfinite(line.epsilon) else None} for line in found]


def _planned(
    what: What, multiplier: float | None, number: int, *, rate: float = 1.0, steps: int = 1, clients: int = 1
) -> Entry:
    return Entry(
        what=what, round=number, multiplier=multiplier, digest="", rate=rate, steps=steps, clients=clients
    )


def _epsilon(multipliers: Iterable[float], steps: Iterable[Sampled], delta: float, *, in_sums: bool) -> float:
    """Return ε of releases; `in_sums`: some of them are sealed sums with discrete noise."""
    return (epsilon_of_sums if in_sums else epsilon_with_steps)(multipliers, steps, delta)


def _steps(entries: Iterable[Entry]) -> list[Sampled]:
    """Return the private training steps of entries."""
    return [Sampled(e.multiplier or 0.0, e.rate, e.steps) for e in entries if e.what == TRAINING]


def _noise(entries: Iterable[Entry], what: What) -> list[float]:
    """Return the noise multipliers of one kind of release, 0 for no noise."""
    return [entry.multiplier or 0.0 for entry in entries if entry.what == what]


def as_json(book: Book) -> dict[str, object]:
    """Return a ledger and its privacy loss as plain values for JSON."""
    return {**json.loads(book.model_dump_json()), "spent": facts_of(spent(book.entries, book.budget))}
