"""Bytes from a run's event log: a round's, those of a single time, and by tensor."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from trifed.federation.run_folder import Event
from trifed.reports.results import Traffic

EXCHANGES = ("trained", "delivered")
"""Events of a round; whatever else carries bytes happens once, before round 1."""


def traffic(events: Sequence[Event], clients: int) -> Traffic:
    """Bytes of everything together; and per client, of a round that it takes part in and of what happens once."""
    once_up, up, once_down, down = (sum(column) for column in _columns(manifest(events, clients)))
    total = sum(sum((event.get(way) or {}).values()) for event in events for way in ("up", "down"))
    return Traffic(up_per_round=up, down_per_round=down, once_up=once_up, once_down=once_down, total=total)


def _columns(rows: dict[str, tuple[float, float, float, float]]) -> list[tuple[float, ...]]:
    return list(zip(*rows.values(), strict=True)) or [()] * 4


def manifest(events: Sequence[Event], clients: int) -> dict[str, tuple[float, float, float, float]]:
    """Tensor → bytes per client: once up, up a round, once down, down a round.

    Of a round: the mean over the messages that were sent; of what happens once: the mean over all clients.
    """
    sums: dict[str, list[float]] = {}
    messages: Counter[int] = Counter()
    for event in events:
        for place, way in ((0, "up"), (2, "down")):
            column = place + (event["event"] in EXCHANGES)
            messages[column] += bool(event.get(way))
            for name, count in (event.get(way) or {}).items():
                sums.setdefault(name, [0.0] * 4)[column] += count
    shares = [max(1, clients if column in (0, 2) else messages[column]) for column in range(4)]
    means = {name: [total / share for total, share in zip(row, shares, strict=True)] for name, row in sums.items()}
    return {name: (row[0], row[1], row[2], row[3]) for name, row in means.items()}
