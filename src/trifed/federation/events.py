"""Events of a run: small records, which are written to events.jsonl, passed to listeners, and shown as text."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from trifed.common.errors import one_line
from trifed.methods.base import logged_stage

Event = dict[str, Any]
"""An event as it is logged: its name under `event`, and its fields."""

Listener = Callable[[Event], None]
Sizes = Mapping[str, int]
"""Bytes of one message by tensor name."""


@dataclass(frozen=True)
class RunEvent:
    """One event; a field that is None is not logged."""

    name: ClassVar[str]

    def __init_subclass__(cls, name: str) -> None:
        cls.name = name

    def to_dict(self) -> Event:
        """Return the dictionary that the log and listeners receive."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        values |= {key: logged_stage(values[key]) for key in ("stage", "scored") if key in values}
        return {"event": self.name, **{key: value for key, value in values.items() if value is not None}}


Log = Callable[[RunEvent], None]
"""Takes an event down, in a log and at a listener."""


@dataclass(frozen=True)
class ClientEvent(RunEvent, name=""):
    """An event of one client in one round."""

    round: int
    client: str


@dataclass(frozen=True)
class Loading(RunEvent, name="loading"):
    """Data or a base model are being loaded."""

    what: str


@dataclass(frozen=True)
class DataSplit(RunEvent, name="split"):
    """The data are split into clients; `data` is a `FederatedData`."""

    data: Any


@dataclass(frozen=True)
class Trouble(RunEvent, name="trouble"):
    """A warning that concerns the whole run."""

    text: str


@dataclass(frozen=True)
class Generating(RunEvent, name="generating"):
    """A client's model generates answers to `examples` of its test examples."""

    client: str
    examples: int


@dataclass(frozen=True)
class Closing(RunEvent, name="closing"):
    """The rounds are over; models and the result are being written."""


@dataclass(frozen=True)
class Started(RunEvent, name="started"):
    """A run begins. `scored` is the model that is evaluated; `examples` are counted between sites only."""

    method: str
    scored: str
    clients: list[str]
    examples: list[int] | None = None


@dataclass(frozen=True)
class Resumed(RunEvent, name="resumed"):
    """A run continues after `round`; `sent` is the number of bytes exchanged before, in the simulator only."""

    method: str
    scored: str
    clients: list[str]
    round: int
    sent: int | None = None


@dataclass(frozen=True)
class OpeningExchange(RunEvent, name="opening"):
    """A first gradient was uploaded, or shared projections were downloaded."""

    client: str
    up: Sizes | None = None
    down: Sizes | None = None


@dataclass(frozen=True)
class SummaryReceived(RunEvent, name="summary"):
    """The server received a client's data summary."""

    client: str
    up: Sizes


@dataclass(frozen=True)
class ClientScores(RunEvent, name="scores"):
    """Loss, accuracy and number of examples of one client's model on its validation and test data.

    `received_share`: the share of the received model in it, if the client has chosen it.
    """

    round: int
    stage: str
    client: str
    valid: Mapping[str, float]
    test: Mapping[str, float]
    received_share: float | None = None


@dataclass(frozen=True)
class Warned(RunEvent, name="warned"):
    """A client sends something that a guard warns of."""

    client: str
    text: str


@dataclass(frozen=True)
class Trained(ClientEvent, name="trained"):
    """A client's upload was accepted. `loss` is the mean over its steps, in nats."""

    loss: float
    steps: int
    seconds: float
    up: Sizes
    down: Sizes


@dataclass(frozen=True)
class KeptOwn(ClientEvent, name="kept its own"):
    """A client trained from its own values because the received ones were worse for its data."""


@dataclass(frozen=True)
class LeftOut(ClientEvent, name="left out"):
    """A client does not count in a round."""

    code: str
    reason: str


@dataclass(frozen=True)
class Bounded(ClientEvent, name="bounded"):
    """A bound of `[aggregation]` changed an upload or left it out: 'norm', 'examples' or 'distance'.

    `ratio`: how many times the upload was over the bound.
    """

    bound: str
    ratio: float


@dataclass(frozen=True)
class SumOpened(RunEvent, name="sum"):
    """The server opened the sum of `clients`, in integers of `bits` bits; round 0: of who holds each label."""

    round: int
    clients: list[str]
    bits: int


@dataclass(frozen=True)
class NoSum(RunEvent, name="no sum"):
    """A sealed round had no sum, so what the clients share stays as it was; 'left out' says why."""

    round: int


@dataclass(frozen=True)
class Diverged(ClientEvent, name="diverged"):
    """A client's training diverges. `loss`: mean over the round's steps, nats; `first`: of its first round."""

    loss: float
    first: float


@dataclass(frozen=True)
class Delivered(ClientEvent, name="delivered"):
    """A client received its final values."""

    down: Sizes


@dataclass(frozen=True)
class RoundFinished(RunEvent, name="round"):
    """A round between sites is over; `clients` is the number of clients whose replies count."""

    round: int
    clients: int
    seconds: float


@dataclass(frozen=True)
class BestSoFar(RunEvent, name="best so far"):
    """An evaluated round is better than all before. `value`: mean over clients of `metric` on validation data."""

    round: int
    metric: str
    value: float


@dataclass(frozen=True)
class EndedEarly(RunEvent, name="ended early"):
    """The run ends after `round`: the last `evaluations` brought no better `metric` on validation data."""

    round: int
    metric: str
    evaluations: int


@dataclass(frozen=True)
class KeptRound(RunEvent, name="kept round"):
    """The result is the models of `round`, which was the best; `last` is the run's last one."""

    round: int
    last: int
    metric: str
    value: float | None


@dataclass(frozen=True)
class Finished(RunEvent, name="finished"):
    """The run is over."""

    round: int


@dataclass(frozen=True)
class Waiting(RunEvent, name="waiting"):
    """The server waits for clients to connect or to reply.

    `since`: when the wait began, in UTC; `clients`: names of those that are missing, as far as they are known.
    """

    text: str
    since: str
    clients: list[str]
    round: int | None = None


@dataclass(frozen=True)
class Joined(RunEvent, name="joined"):
    """A client connected and may take part."""

    client: str


@dataclass(frozen=True)
class Refused(RunEvent, name="refused"):
    """A node may not take part."""

    node: str
    code: str
    reason: str


@dataclass(frozen=True)
class CameLate(ClientEvent, name="came late"):
    """A client joined a run that had begun."""

    examples: int


@dataclass(frozen=True)
class OpenedAgain(ClientEvent, name="opened again"):
    """A client whose data changed was opened again."""

    examples: int


@dataclass(frozen=True)
class Withdrawn(ClientEvent, name="withdrawn"):
    """A client left for good, and the server deleted its values."""


def line_of(event: Event) -> str:
    """Return the line of an event; empty for an event whose content is part of another line."""
    template = LINES.get(event["event"])
    accuracy, loss = event.get("test", {}).get("accuracy"), event.get("loss")
    loss = math.nan if loss is None else loss
    if event["event"] == "trained" and math.isnan(loss):  # the server does not learn it
        template = "round {round}  {client}: {kilobytes:.1f} KB up"
    if template and event.get("examples") == 1:  # as of a site that does not tell how many it has
        template = template.replace(" with {examples} examples", "").replace(", {examples} examples", "")
    if template is None or (event["event"] == "scores" and accuracy is None):
        return ""
    numbers = {
        "kilobytes": sum(event.get("up", {}).values()) / 1000,
        "count": len(event["clients"]) if isinstance(event.get("clients"), list) else 0,
        "percent": 100 * (accuracy or 0),
        "loss": loss,
    }
    return one_line(template.format(**{**event, **numbers}))


LINES = {
    "trouble": "{text}",
    "waiting": "{text}",
    "joined": "{client} connected",
    "refused": "refused: {reason}",
    "started": "{method}: {count} clients",
    "resumed": "{method}: continues after round {round}",
    "came late": "round {round}  {client} joins with {examples} examples",
    "opened again": "round {round}  {client} has other data now, {examples} examples",
    "withdrawn": "round {round}  {client} has left for good; its values are deleted",
    "summary": "{client}: summary, {kilobytes:.1f} KB",
    "trained": "round {round}  {client}: loss {loss:.3f}, {kilobytes:.1f} KB up",
    "bounded": "round {round}  {client}: its upload was {ratio:.1f} times over the {bound} bound",
    "sum": "round {round}  the sum of {count} clients is opened",
    "no sum": "round {round}  no sum was opened; the shared values stay as they were",
    "diverged": "round {round}  {client}: training diverges, loss {loss:.3g}; lower training.learning_rate",
    "kept its own": "round {round}  {client} keeps its own values: the received ones were worse for its data",
    "warned": "{client}: {text}",
    "left out": "round {round}  {client} is left out: {reason}",
    "round": "round {round}  done in {seconds:.0f} s",
    "scores": "round {round}  {client}: {percent:.1f} % on its test data ({stage})",
    "best so far": "round {round}  best so far: {metric} {value:.4g} on validation data",
    "ended early": "ended early after round {round}: {evaluations} evaluations without a better {metric} on "
    "validation data; with a larger patience it continues",
    "kept round": "the result is the models of round {round} of {last}, the best by {metric} on validation data",
    "finished": "finished",
}
