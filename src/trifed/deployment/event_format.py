"""A run's events as lines for whoever follows it."""

from __future__ import annotations

import math

from trifed.federation.events import Event


def line_of(event: Event) -> str:
    """One line, or none for what is told in another event's."""
    write = LINES.get(event["event"])
    right = event.get("test", {}).get("accuracy")
    if write is None or (event["event"] == "scores" and right is None):
        return ""
    numbers = {
        "kilobytes": sum(event.get("up", {}).values()) / 1000,
        "count": len(event["clients"]) if isinstance(event.get("clients"), list) else 0,
        "percent": 100 * (right or 0),
        "loss": math.nan if event.get("loss") is None else event["loss"],
    }
    return write.format(**{**event, **numbers})


LINES = {
    "joined": "{client} is there",
    "refused": "refused: {reason}",
    "started": "{method}: {count} clients",
    "resumed": "{method}: goes on after round {round}",
    "came late": "round {round}  {client} comes late, with {examples} examples",
    "opened again": "round {round}  {client} says anew what data it has, {examples} examples",
    "withdrawn": "round {round}  {client} has left for good: what was its own is deleted",
    "summary": "{client}: summary, {kilobytes:.1f} KB",
    "trained": "round {round}  {client}: loss {loss:.3f}, {kilobytes:.1f} KB up",
    "kept its own": "round {round}  {client} keeps its own: what it received was worse for its data",
    "warned": "{client}: {text}",
    "left out": "round {round}  {client} is left out: {reason}",
    "round": "round {round}  done in {seconds:.0f} s",
    "scores": "round {round}  {client}: {percent:.1f} % on its test data ({stage})",
    "finished": "finished",
}
