"""One client's ledger: every release, written before it leaves, and what all of them have cost.

::

    ledger.json     {"client": …, "budget": the run's [privacy], "entries": [{"what": "update", "round": 3,
                     "multiplier": 8.1, "digest": "…"}, …]}

`multiplier` is the noise's standard deviation in sensitivities, null where a release had no noise. `digest` is of
the released numbers: the same message sent again tells nothing new, and is no new entry. Anything else is.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from trifed.common.errors import BudgetError, RunError
from trifed.common.files import write_for_good
from trifed.config.settings import PrivacySettings
from trifed.privacy.accounting import (
    Sampled,
    epsilon_of,
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
    """One release. `round`: 0 for a summary; `multiplier`: None without noise; `digest`: of what was released.

    `rate`, `steps`: of the training whose result an upload is, where its steps are noised.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    what: What
    round: int
    multiplier: float | None = Field(ge=0)
    digest: str
    rate: float = 1.0
    steps: int = 1


class Book(BaseModel):
    """What the file holds. `lost`: entries were lost, so every round before the next counts as one."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    client: str
    budget: PrivacySettings
    entries: tuple[Entry, ...] = ()
    lost: bool = False


class Spent(NamedTuple):
    """ε at δ, and between which data sets it holds: `relation`. `covers`: of which releases, and how many."""

    relation: str
    covers: str
    releases: int
    epsilon: float
    delta: float


class Ledger:
    """The ledger in a folder, begun where there is none.

    Raises:
        RunError: there is one that cannot be read, or one of another client or budget.
    """

    def __init__(self, folder: Path, client: str, budget: PrivacySettings) -> None:
        self.path = folder / FILE
        new = Book(client=client, budget=budget)
        self.book = read_ledger(self.path) if self.path.exists() else new
        if self.book.model_copy(update={"entries": (), "lost": False}) != new:
            raise RunError(
                f"{self.path}: this ledger is of {self.book.client} with another [privacy] than this run has; put "
                f"the settings back, or start a new run"
            )

    def check(self, entry: Entry) -> None:
        """Before anything is computed for a release: would it go over the budget? Its digest does not matter.

        What is there already may be about to be sent again; whether it is the same, `enter` sees.

        Raises:
            RunError: it would.
        """
        if not self._has(entry):
            self.check_new(entry)

    def check_new(self, entry: Entry) -> None:
        """As `check`, of what is not there yet."""
        self._within(entry)

    def enter(self, entry: Entry) -> None:
        """Write an entry, so that it is on the disk before what it stands for leaves.

        Raises:
            RunError: the release would go over the budget. Nothing is written then, and it must not leave.
        """
        if entry in self.book.entries:
            return
        self._within(entry)
        self._write(entries=(*self.book.entries, entry))

    def enter_missing(self, entry: Entry) -> None:
        """As `enter`, unless there is any entry for that round."""
        if not self._has(entry):
            self.enter(entry)

    def _has(self, entry: Entry) -> bool:
        return any((known.what, known.round) == (entry.what, entry.round) for known in self.book.entries)

    def lose(self) -> None:
        """Note that entries may have been lost with a disk, or taken back by a backup."""
        self._write(lost=True)

    def _write(self, **changes: object) -> None:
        book = self.book.model_copy(update=changes)
        write_for_good(self.path, book.model_dump_json(indent=1) + "\n")
        self.book = book

    def _within(self, entry: Entry) -> None:
        budget = self.book.budget
        limits = {SUMMARY: budget.summary, UPDATE: budget.update, TRAINING: budget.training}
        limit = limits[entry.what]
        if limit is None or entry.multiplier is None:
            return
        alike = [known for known in (*self.book.entries, entry) if known.what == entry.what]
        found = (
            epsilon_with_steps([], _steps(alike), limit.delta)
            if entry.what == TRAINING
            else epsilon_of(_noise(alike, entry.what), limit.delta)
        )
        if found <= limit.epsilon:
            return
        made, most = len(alike) - 1, f"{limit.epsilon:g} (δ = {limit.delta:g})"
        more = "privacy.summary.releases" if entry.what == SUMMARY else "rounds"
        raise BudgetError(
            f"privacy.{entry.what}: {self.book.client} has made {made} releases, and one more would bring ε to "
            f"{found:.2f}, over its {most}; it is not made. A new run with more {more} or a larger ε plans for "
            f"it; what was spent stays spent"
        )


def read_ledger(path: Path) -> Book:
    """A ledger's file.

    Raises:
        RunError: there is none, or it is damaged.
    """
    try:
        return Book.model_validate_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RunError(f"{path}: no ledger there; only runs with [privacy] keep one") from error
    except (ValidationError, UnicodeDecodeError) as error:
        raise RunError(
            f"{path}: this ledger is damaged, so what was spent is not known; put a copy back. Without one, start "
            f"a new run, and count what was spent here in full"
        ) from error


def spent(entries: Sequence[Entry], budget: PrivacySettings) -> list[Spent]:
    """What releases have cost, by relation.

    `RECORD`: a summary has its own sensitivity. An update whose training was noised is made of that training
    alone; any other may move anywhere in the ball of radius `clip`, which is twice the sensitivity of leaving it
    out, so its noise counts half. `CLIENT`: updates alone, which a summary is no part of. A release without noise
    makes ε infinite.
    """
    deltas = [part.delta for part in (budget.summary, budget.update, budget.training) if part is not None]
    delta = min(deltas, default=1e-5)
    summaries, updates, steps = _noise(entries, SUMMARY), _noise(entries, UPDATE), _steps(entries)
    trained = {(entry.round, entry.digest) for entry in entries if entry.what == TRAINING}
    others = [entry for entry in entries if (entry.round, entry.digest) not in trained]
    known = [*summaries, *(z / 2 for z in _noise(others, UPDATE))]
    both = epsilon_with_steps(known, steps, delta)
    return [
        Spent(RECORD, "the summary alone", len(summaries), epsilon_of(summaries, delta), delta),
        Spent(RECORD, EVERYTHING, len(summaries) + len(updates), both, delta),
        Spent(CLIENT, "updates; not the summary", len(updates), epsilon_of(updates, delta), delta),
    ]


def promised(
    budget: PrivacySettings, rounds: int, steps: int | None, *, summarises: bool, uploads: bool
) -> list[Spent]:
    """What a run costs a client that takes part in every round and tells all summaries that its budget is for.

    `steps`: of training in a round; `summarises`, `uploads`: does the run's method tell summaries, does it send
    updates?
    """
    planned: list[Entry] = []
    told, sent, learned = budget.summary, budget.update, budget.training
    if summarises:
        z = noise_multiplier(told.epsilon, told.delta, told.releases) if told else None
        planned += [_planned(SUMMARY, z, number) for number in range(told.releases if told else 1)]
    for number in range(1, rounds + 1) if uploads else ():
        z = noise_multiplier(sent.epsilon, sent.delta, rounds) if sent else None
        planned.append(_planned(UPDATE, z, number))
        if learned and steps:
            noise = steps_multiplier(learned.epsilon, learned.delta, learned.rate, rounds * steps)
            found = _planned(TRAINING, noise, number)
            planned.append(found.model_copy(update={"rate": learned.rate, "steps": steps}))
    return spent(planned, budget)


def facts_of(found: Iterable[Spent]) -> list[dict[str, str | int | float | None]]:
    """For JSON; an infinite ε is null."""
    return [{**line._asdict(), "epsilon": line.epsilon if math.isfinite(line.epsilon) else None} for line in found]


def _planned(what: What, multiplier: float | None, number: int) -> Entry:
    return Entry(what=what, round=number, multiplier=multiplier, digest="")


def _steps(entries: Iterable[Entry]) -> list[Sampled]:
    """Training steps behind entries."""
    trained = (entry for entry in entries if entry.what == TRAINING)
    return [Sampled(entry.multiplier or 0.0, entry.rate, entry.steps) for entry in trained]


def _noise(entries: Iterable[Entry], what: What) -> list[float]:
    """Multipliers of one kind of release, 0 for none."""
    return [entry.multiplier or 0.0 for entry in entries if entry.what == what]


def as_json(book: Book) -> dict[str, object]:
    """A ledger and what it adds up to."""
    found: dict[str, object] = json.loads(book.model_dump_json())
    return {**found, "spent": facts_of(spent(book.entries, book.budget))}
