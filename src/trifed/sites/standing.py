"""How the clients of a run between sites stand, from its folder: who was left out or refused, and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from trifed.errors import RunError
from trifed.federation.store import Event, RunFolder
from trifed.sites.protocol import FACTS


@dataclass(frozen=True)
class Standing:
    """One client. `last`: the round of its last upload that counts, 0 before that; `reason`: why none since."""

    name: str
    examples: int
    last: int
    left_out: int
    sent: int
    reason: str


@dataclass(frozen=True)
class RunStanding:
    """A run. `round`: the last whole one; `refused`: why nodes were not let in, each reason once."""

    round: int
    rounds: int
    finished: bool
    clients: list[Standing]
    refused: list[str]


def standing_of(folder: RunFolder, rounds: int) -> RunStanding:
    """Read a run's folder at the server.

    Raises:
        RunError: it is no run between sites, or has not begun.
    """
    if not (folder.path / FACTS).is_file():
        raise RunError(f"{folder.path}: no run between sites has begun here; `trifed watch` follows any run")
    facts, events = folder.read_json(FACTS), folder.events()
    done = [event["round"] for event in events if event["event"] == "round"]
    clients = [
        _standing(events, name, int(examples))
        for name, examples in zip(facts["clients"], facts["examples"], strict=True)
    ]
    refused = dict.fromkeys(event["reason"] for event in events if event["event"] == "refused")
    finished = any(event["event"] == "finished" for event in events)
    return RunStanding(max(done, default=0), rounds, finished, clients, list(refused))


def _standing(events: Sequence[Event], name: str, examples: int) -> Standing:
    mine = [event for event in events if event.get("client") == name]
    trained = [event["round"] for event in mine if event["event"] == "trained"]
    out = [event for event in mine if event["event"] == "left out"]
    last = max(trained, default=0)
    newest = out[-1] if out and out[-1]["round"] > last else None
    sent = sum(sum(event.get("up", {}).values()) for event in mine)
    return Standing(name, examples, last, len(out), sent, newest["reason"] if newest else "")
