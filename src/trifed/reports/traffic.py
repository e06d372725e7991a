"""Bytes from a run's event log: a round's, those of a single time, and by tensor."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from trifed.federation.store import Event
from trifed.reports.study import Point, Traffic

EXCHANGES = ("trained", "delivered")
"""Events of a round; whatever else carries bytes happens once, before round 1."""


def _sent(events: Iterable[Event], way: str) -> float:
    return float(sum(sum((event.get(way) or {}).values()) for event in events))


def traffic(events: Sequence[Event], clients: int) -> Traffic:
    """Bytes per client, a round and once, and of everything together."""
    once = [event for event in events if event["event"] not in EXCHANGES]
    rounds = [event for event in events if event["event"] in EXCHANGES]
    turns = max(1, sum(event["event"] == "trained" for event in events))
    return Traffic(
        up_per_round=_sent(rounds, "up") / turns,
        down_per_round=_sent(rounds, "down") / turns,
        once_up=_sent(once, "up") / max(1, clients),
        once_down=_sent(once, "down") / max(1, clients),
        total=_sent(events, "up") + _sent(events, "down"),
    )


def curve_with_bytes(points: Sequence[dict[str, Any]], events: Sequence[Event]) -> list[Point]:
    """The summary's curve, each round with the bytes of everything up to its end."""
    last = max((point["round"] for point in points), default=0)
    sent = [(e.get("round", 0) if e["event"] != "delivered" else last, e) for e in events]
    result = []
    for point in points:
        until = [event for number, event in sent if number <= point["round"]] if point["round"] else []
        result.append(Point(**point, bytes=_sent(until, "up") + _sent(until, "down")))
    return result


def manifest(events: Sequence[Event]) -> dict[str, tuple[float, float, float, float]]:
    """Tensor → bytes per client: once up, up a round, once down, down a round."""
    clients = max(1, next((len(e["clients"]) for e in events if e["event"] == "started"), 1))
    turns = max(1, sum(event["event"] == "trained" for event in events))
    sums: dict[str, list[float]] = {}
    for event in events:
        in_round = event["event"] in EXCHANGES
        for place, way in ((0, "up"), (2, "down")):
            for name, count in (event.get(way) or {}).items():
                row = sums.setdefault(name, [0.0] * 4)
                row[place + in_round] += count / (turns if in_round else clients)
    return {name: (row[0], row[1], row[2], row[3]) for name, row in sums.items()}
