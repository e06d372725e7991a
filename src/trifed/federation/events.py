"""Events of a run: small records, written to events.jsonl and passed to listeners as dictionaries."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar

Event = dict[str, Any]
"""An event as it is logged: its name under `event`, and its fields."""

Listener = Callable[[Event], None]
Sizes = Mapping[str, int]
"""Bytes of one message by tensor name."""


@dataclass(frozen=True)
class RunEvent:
    """One event; a field that is None is not logged."""

    NAME: ClassVar[str]

    def to_dict(self) -> Event:
        """Return the dictionary that the log and listeners receive."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {"event": self.NAME, **{name: value for name, value in values.items() if value is not None}}


Log = Callable[[RunEvent], None]
"""Takes an event down, in a log and at a listener."""


@dataclass(frozen=True)
class Loading(RunEvent):
    """Data or a base model are being loaded."""

    NAME = "loading"
    what: str


@dataclass(frozen=True)
class DataSplit(RunEvent):
    """The data are split into clients; `data` is a `FederatedData`."""

    NAME = "split"
    data: Any


@dataclass(frozen=True)
class Trouble(RunEvent):
    """A warning that concerns the whole run."""

    NAME = "trouble"
    text: str


@dataclass(frozen=True)
class Closing(RunEvent):
    """The rounds are over; models and the result are being written."""

    NAME = "closing"


@dataclass(frozen=True)
class Started(RunEvent):
    """A run begins. `scored` is the model that is evaluated; `examples` are counted between sites only."""

    NAME = "started"
    method: str
    scored: str
    clients: list[str]
    examples: list[int] | None = None


@dataclass(frozen=True)
class Resumed(RunEvent):
    """A run continues after `round`; `sent` is the number of bytes exchanged before, in the simulator only."""

    NAME = "resumed"
    method: str
    scored: str
    clients: list[str]
    round: int
    sent: int | None = None


@dataclass(frozen=True)
class OpeningExchange(RunEvent):
    """A first gradient was uploaded, or shared projections were downloaded."""

    NAME = "opening"
    client: str
    up: Sizes | None = None
    down: Sizes | None = None


@dataclass(frozen=True)
class SummaryReceived(RunEvent):
    """The server received a client's data summary."""

    NAME = "summary"
    client: str
    up: Sizes


@dataclass(frozen=True)
class ClientScores(RunEvent):
    """Loss, accuracy and number of examples of one client's model on its validation and test data."""

    NAME = "scores"
    round: int
    stage: str
    client: str
    valid: Mapping[str, float]
    test: Mapping[str, float]


@dataclass(frozen=True)
class Warned(RunEvent):
    """A client sends something that a guard warns of."""

    NAME = "warned"
    client: str
    text: str


@dataclass(frozen=True)
class Trained(RunEvent):
    """A client's upload was accepted. `loss` is the mean over its steps, in nats."""

    NAME = "trained"
    round: int
    client: str
    loss: float
    steps: int
    seconds: float
    up: Sizes
    down: Sizes


@dataclass(frozen=True)
class KeptOwn(RunEvent):
    """A client trained from its own values because the received ones were worse for its data."""

    NAME = "kept its own"
    round: int
    client: str


@dataclass(frozen=True)
class LeftOut(RunEvent):
    """A client does not count in a round."""

    NAME = "left out"
    round: int
    client: str
    code: str
    reason: str


@dataclass(frozen=True)
class Delivered(RunEvent):
    """A client received its final values."""

    NAME = "delivered"
    round: int
    client: str
    down: Sizes


@dataclass(frozen=True)
class RoundFinished(RunEvent):
    """A round between sites is over; `clients` is the number of clients whose replies count."""

    NAME = "round"
    round: int
    clients: int
    seconds: float


@dataclass(frozen=True)
class Finished(RunEvent):
    """The run is over."""

    NAME = "finished"
    round: int


@dataclass(frozen=True)
class Joined(RunEvent):
    """A client connected and may take part."""

    NAME = "joined"
    client: str


@dataclass(frozen=True)
class Refused(RunEvent):
    """A node may not take part."""

    NAME = "refused"
    node: str
    code: str
    reason: str


@dataclass(frozen=True)
class CameLate(RunEvent):
    """A client joined a run that had begun."""

    NAME = "came late"
    round: int
    client: str
    examples: int


@dataclass(frozen=True)
class OpenedAgain(RunEvent):
    """A client whose data changed was opened again."""

    NAME = "opened again"
    round: int
    client: str
    examples: int


@dataclass(frozen=True)
class Withdrawn(RunEvent):
    """A client left for good, and the server deleted its values."""

    NAME = "withdrawn"
    round: int
    client: str
