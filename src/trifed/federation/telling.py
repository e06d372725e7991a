"""A run's events as lines for whoever follows it."""

from __future__ import annotations

from typing import Any

Event = dict[str, Any]


def line_of(event: Event) -> str:
    """One line, or none for what is told in another event's."""
    write = LINES.get(event["event"])
    sent = sum(event.get("up", {}).values()) / 1000
    return write.format(**{**event, "kilobytes": sent, "count": _count(event)}) if write else ""


LINES = {
    "joined": "{client} is there",
    "refused": "refused: {reason}",
    "started": "{method}: {count} clients",
    "resumed": "{method}: goes on after round {round}",
    "summary": "{client}: summary, {kilobytes:.1f} KB",
    "trained": "round {round}  {client}: loss {loss:.3f}, {kilobytes:.1f} KB up",
    "left out": "round {round}  {client} is left out: {reason}",
    "round": "round {round}  done in {seconds:.0f} s",
    "scores": "{client}: test accuracy {test[accuracy]:.3f}",
    "finished": "finished",
}


def _count(event: Event) -> int:
    clients = event.get("clients")
    return len(clients) if isinstance(clients, list) else 0
