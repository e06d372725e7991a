"""The best round of a run by a metric on the clients' validation data, and the end of a run without progress."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from trifed.common.errors import RunError
from trifed.config.run import RunConfig
from trifed.federation import events
from trifed.federation.training.metrics import best_of, spread_of
from trifed.methods.base import logged_stage

if TYPE_CHECKING:
    from trifed.federation.client_update import ClientDataset


@dataclass
class EvaluatedRounds:
    """The evaluated rounds of a run, with the mean over clients of the deciding metric on validation data.

    It reads events, those of a log too, so that a run that continues decides as an uninterrupted one.

    Attributes:
        config: The run's settings.
        stage: The model that is evaluated.
        parts: Round → the clients' scores on validation data, as logged.
        known: Round → its value, of so many parts.
    """

    config: RunConfig
    stage: str
    parts: dict[int, list[Any]] = field(default_factory=dict)
    known: dict[int, tuple[int, float | None]] = field(default_factory=dict)

    def read(self, found: Iterable[events.Event]) -> None:
        """Take the scores of rounds from events; the start, round 0, is none."""
        for event in found:
            if event["event"] == "scores" and event["round"] and event["stage"] == logged_stage(self.stage):
                self.parts.setdefault(event["round"], []).append(event["valid"])

    def values(self) -> dict[int, float | None]:
        """Return the value of each evaluated round; None without any number."""
        for number, parts in self.parts.items():
            if self.known.get(number, (0, None))[0] != len(parts):
                self.known[number] = (len(parts), spread_of(self.config.metric, parts)["mean"])
        return {number: value for number, (_, value) in self.known.items()}

    def best(self, until: int | None = None) -> int | None:
        """Return the best evaluated round up to round `until`, the first of equal ones; None without a value."""
        values = self.values()
        return best_of(self.config.metric, {n: v for n, v in values.items() if until is None or n <= until})

    def note_of(self, number: int) -> events.BestSoFar | None:
        """Return the event that round `number` is the best so far; None if it is not, or nothing depends on it."""
        value = self.values().get(number)
        if not self.config.chooses or value is None or self.best() != number:
            return None
        return events.BestSoFar(number, self.config.metric, value)

    def end(self) -> events.EndedEarly | None:
        """Return the event that the run ends without progress; None if it goes on."""
        patience, best = self.config.patience, self.best() or 0
        since = [number for number, value in self.values().items() if value is not None and number > best]
        if patience is None or len(since) < patience:
            return None
        return events.EndedEarly(max(since), self.config.metric, len(since))

    def kept(self, last: int) -> events.KeptRound | None:
        """Return the event that names the round whose models are the result; None if that is always the last.

        Args:
            last: The last round.
        """
        best, metric = self.best(), self.config.metric
        if self.config.keep == "last":
            return None
        return events.KeptRound(last if best is None else best, last, metric, self.values().get(best or 0))

    def needed(self, number: int) -> set[int]:
        """Return the rounds whose checkpoints may be the result, of the run and of one that goes back.

        Args:
            number: The round that has just ended.
        """
        if self.config.keep == "last":
            return set()
        first = max(1, number - self.config.keep_checkpoints + 1)
        return {best for until in range(first, number + 1) if (best := self.best(until)) is not None}


def refuse_without_validation(config: RunConfig, clients: Sequence[ClientDataset]) -> None:
    """Check that there are data by which a run can choose its best round.

    Raises:
        RunError: No client has validation data.
    """
    if config.chooses and not any(len(client.valid) for client in clients):
        setting = 'keep = "best"' if config.keep == "best" else "patience"
        raise RunError(
            f"{setting}: chooses by validation data, and no client has any; raise data.valid_fraction, or leave "
            f"{setting.split()[0]} out"
        )
