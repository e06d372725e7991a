"""The status of the clients of a run between sites, read from the run's folder at the server."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from trifed.common.errors import RunError
from trifed.deployment.checkpoint import ServerCheckpoint
from trifed.federation.events import Event
from trifed.federation.run_folder import RunFolder
from trifed.federation.transport import ClientRecord


@dataclass(frozen=True)
class ClientStatus:
    """The status of one client.

    Attributes:
        last: The round of the last accepted upload, 0 before that.
        left_out: Number of rounds that the client was left out of.
        sent: Bytes that the client has uploaded.
        reason: Why there has been no accepted upload since; empty if nothing is wrong.
        seconds: Duration of the client's last round.
    """

    name: str
    examples: int
    last: int
    left_out: int
    sent: int
    reason: str
    seconds: float | None


@dataclass(frozen=True)
class RunStatus:
    """The status of a run. `round` is the last whole one; `refused` holds each reason for a refused node once."""

    round: int
    rounds: int
    finished: bool
    clients: list[ClientStatus]
    refused: list[str]


def run_status(folder: RunFolder, rounds: int) -> RunStatus:
    """Read the status from a run's folder at the server.

    Raises:
        RunError: The folder holds no run between sites, or the run has not begun.
    """
    records = ServerCheckpoint(folder).records
    if not records:
        raise RunError(f"{folder.path}: no run between sites has begun here; `trifed watch` follows any run")
    events = folder.events()
    done = [event["round"] for event in events if event["event"] == "round"]
    clients = [_client_status(events, record) for record in records]
    refused = dict.fromkeys(event["reason"] for event in events if event["event"] == "refused")
    finished = any(event["event"] == "finished" for event in events)
    return RunStatus(max(done, default=0), rounds, finished, clients, list(refused))


def _client_status(events: Sequence[Event], record: ClientRecord) -> ClientStatus:
    mine = [event for event in events if event.get("client") == record.name]
    done = [event for event in mine if event["event"] == "trained"]
    trained = [event["round"] for event in done]
    out = [event for event in mine if event["event"] == "left out"]
    last = max(trained, default=0)
    newest = out[-1] if out and out[-1]["round"] > last else None
    sent = sum(sum(event.get("up", {}).values()) for event in mine)
    reason = "it has left for good" if record.left else newest["reason"] if newest else ""
    seconds = done[-1].get("seconds") if done else None
    return ClientStatus(record.name, record.examples, last, len(out), sent, reason, seconds)
