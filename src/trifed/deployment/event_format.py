"""Format a run's events as lines of text."""

from __future__ import annotations

import math

from trifed.federation.events import Event


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
