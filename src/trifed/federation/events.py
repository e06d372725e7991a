"""Events of a run: small dictionaries, written to events.jsonl, passed to listeners, and shown as lines of text.

Each function returns the event of one kind; `line_of` returns its line.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from trifed.methods.base import logged_stage

Event = dict[str, Any]
"""A logged event: its name under `event`, and its fields."""

Listener = Callable[[Event], None]
"""Receives each event: a log, or a user's function."""
Sizes = Mapping[str, int]
"""Bytes of one message by tensor name."""
Scores = Mapping[str, float]
"""Loss, accuracy and number of examples."""


def _event(name: str, **fields: Any) -> Event:
    """Return an event; a field that is None is not logged."""
    return {"event": name, **{key: value for key, value in fields.items() if value is not None}}


def loading(what: str) -> Event:
    """Return the event that data or a base model are being loaded."""
    return _event("loading", what=what)


def data_split(data: Any) -> Event:
    """Return the event that the data, a `FederatedData`, are split into clients."""
    return _event("split", data=data)


def trouble(text: str) -> Event:
    """Return a warning that concerns the whole run."""
    return _event("trouble", text=text)


def closing() -> Event:
    """Return the event that the rounds are over, and models and the result are being written."""
    return _event("closing")


def started(method: str, evaluated_model: str, clients: Sequence[str], examples: list[int] | None = None) -> Event:
    """Return the event that a run begins; `examples` are counted between sites only."""
    return _event(
        "started", method=method, scored=logged_stage(evaluated_model), clients=clients, examples=examples
    )


def resumed(
    method: str, evaluated_model: str, clients: Sequence[str], number: int, sent: int | None = None
) -> Event:
    """Return the event that a run continues after a round; `sent`: bytes before, in the simulator only."""
    return _event(
        "resumed", method=method, scored=logged_stage(evaluated_model), clients=clients, round=number, sent=sent
    )


def opening_exchange(client: str, *, up: Sizes | None = None, down: Sizes | None = None) -> Event:
    """Return the event that a first gradient was uploaded, or shared projections were downloaded."""
    return _event("opening", client=client, up=up, down=down)


def summary_received(client: str, up: Sizes) -> Event:
    """Return the event that the server received a client's data summary."""
    return _event("summary", client=client, up=up)


def client_scores(number: int, stage: str, client: str, valid: Scores, test: Scores) -> Event:
    """Return the scores of one client's model on its validation and test data after a round."""
    return _event("scores", round=number, stage=logged_stage(stage), client=client, valid=valid, test=test)


def warned(client: str, text: str) -> Event:
    """Return the event that a client sends something that a guard warns of."""
    return _event("warned", client=client, text=text)


def trained(number: int, client: str, loss: float, steps: int, seconds: float, up: Sizes, down: Sizes) -> Event:
    """Return the event that a client's upload was accepted. `loss` is the mean over its steps, in nats."""
    return _event(
        "trained", round=number, client=client, loss=loss, steps=steps, seconds=seconds, up=up, down=down
    )


def kept_own(number: int, client: str) -> Event:
    """Return the event that a client trained from its own values, because the received ones were worse for it."""
    return _event("kept its own", round=number, client=client)


def left_out(number: int, client: str, code: str, reason: str) -> Event:
    """Return the event that a client does not count in a round."""
    return _event("left out", round=number, client=client, code=code, reason=reason)


def bounded(number: int, client: str, bound: str, ratio: float) -> Event:
    """Return the event that a bound of `[aggregation]` changed an upload or left it out.

    Args:
        number: The round.
        client: The client's name.
        bound: 'norm', 'examples' or 'distance'.
        ratio: Upload divided by bound.
    """
    return _event("bounded", round=number, client=client, bound=bound, ratio=ratio)


def delivered(number: int, client: str, down: Sizes) -> Event:
    """Return the event that a client received its final values."""
    return _event("delivered", round=number, client=client, down=down)


def round_finished(number: int, clients: int, seconds: float) -> Event:
    """Return the event that a round between sites is over; `clients`: number of clients whose replies count."""
    return _event("round", round=number, clients=clients, seconds=seconds)


def finished(number: int) -> Event:
    """Return the event that the run is over after round `number`."""
    return _event("finished", round=number)


def joined(client: str) -> Event:
    """Return the event that a client connected and may take part."""
    return _event("joined", client=client)


def refused(node: str, code: str, reason: str) -> Event:
    """Return the event that a node may not take part."""
    return _event("refused", node=node, code=code, reason=reason)


def came_late(number: int, client: str, examples: int) -> Event:
    """Return the event that a client joined a run that had begun."""
    return _event("came late", round=number, client=client, examples=examples)


def opened_again(number: int, client: str, examples: int) -> Event:
    """Return the event that a client whose data changed was opened again."""
    return _event("opened again", round=number, client=client, examples=examples)


def withdrawn(number: int, client: str) -> Event:
    """Return the event that a client left for good, and the server deleted its values."""
    return _event("withdrawn", round=number, client=client)


def line_of(event: Event) -> str:
    """Return the line of an event; empty for an event whose content is part of another line."""
    template = LINES.get(event["event"])
    accuracy = event.get("test", {}).get("accuracy")
    if template is None or (event["event"] == "scores" and accuracy is None):
        return ""
    numbers = {
        "kilobytes": sum(event.get("up", {}).values()) / 1000,
        "count": len(event["clients"]) if isinstance(event.get("clients"), list) else 0,
        "percent": 100 * (accuracy or 0),
        "loss": math.nan if event.get("loss") is None else event["loss"],
    }
    return template.format(**{**event, **numbers})


LINES = {
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
    "kept its own": "round {round}  {client} keeps its own values: the received ones were worse for its data",
    "warned": "{client}: {text}",
    "left out": "round {round}  {client} is left out: {reason}",
    "round": "round {round}  done in {seconds:.0f} s",
    "scores": "round {round}  {client}: {percent:.1f} % on its test data ({stage})",
    "finished": "finished",
}
