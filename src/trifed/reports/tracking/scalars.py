"""Turn a run's events into points on curves, one batch for each whole round."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from trifed.federation.results import spread
from trifed.federation.run_folder import Event
from trifed.federation.training.metrics import further_metrics, spread_of


class Point(NamedTuple):
    """One number of one round. `tag`: name of its curve, for example `client accuracy/amber`."""

    tag: str
    step: int
    value: float


@dataclass
class Scalars:
    """A reader of events, in their order, that returns the points of every round as soon as it is over.

    Step 0 is the start. Curves: `accuracy/mean`, `/worst` and `/best` over the clients' test data, for the model
    that the method is evaluated by; `training loss/mean` in nats; `bytes/up` and `bytes/down`, cumulative, with
    envelopes; `client accuracy/NAME` and `client training loss/NAME`; `METRIC/mean`, `/worst` and `/best` of the
    metrics that the run computes. A missing measurement has no point.
    """

    evaluated_model: str = ""
    round: int = 0
    up: int = 0
    down: int = 0
    losses: dict[str, float | None] = field(default_factory=dict)
    tests: dict[str, Event] = field(default_factory=dict)

    def read(self, event: Event) -> list[Point]:
        """Read the next event; return the points of the round that it ends, if any."""
        kind, points = event["event"], []
        if kind in ("started", "resumed"):
            self.evaluated_model = event["scored"]
        elif kind in ("trained", "scores") and event["round"] > self.round:  # a delivery ends no round
            points = self.close()
            self.round = event["round"]
        self.up += sum(event.get("up", {}).values())
        self.down += sum(event.get("down", {}).values())
        if kind == "trained":
            self.losses[event["client"]] = event["loss"]
        elif kind == "scores" and event["stage"] in ("start", self.evaluated_model):
            self.tests[event["client"]] = event["test"]
        return self.close() if kind == "finished" else points

    def close(self) -> list[Point]:
        """Return the points of the current round, which must be over."""
        points = [
            Point(tag, self.round, float(value))
            for tag, value in self._values()
            if value is not None and math.isfinite(value)
        ]
        self.losses, self.tests = {}, {}
        return points

    def _values(self) -> Iterator[tuple[str, float | None]]:
        accuracies = {name: test["accuracy"] for name, test in self.tests.items()}
        spreads = spread(list(accuracies.values()), [test["examples"] for test in self.tests.values()])
        for name in ("mean", "worst", "best"):
            yield f"accuracy/{name}", spreads[name]
        losses = [loss for loss in self.losses.values() if loss is not None and math.isfinite(loss)]
        yield "training loss/mean", math.fsum(losses) / len(losses) if losses else None
        yield "bytes/up", self.up
        yield "bytes/down", self.down
        tests = list(self.tests.values())
        for metric in further_metrics(tests):
            for name, value in spread_of(metric, tests).items():
                yield f"{metric}/{name}", value
        for client, accuracy in accuracies.items():
            yield f"client accuracy/{client}", accuracy
        for client, loss in self.losses.items():
            yield f"client training loss/{client}", loss


def scalars(events: Iterable[Event]) -> Iterator[list[Point]]:
    """Yield all points of a log of whole rounds, one batch for each round."""
    reader = Scalars()
    event: Event | None = None
    for event in events:
        if points := reader.read(event):
            yield points
    if event is not None and event["event"] != "finished":
        yield reader.close()
