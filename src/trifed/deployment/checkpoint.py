"""The files of a run between sites at the server, beside the event log, and the status that they show.

::

    FOLDER/
        federation.json          the run's name, and the base model and layout that its clients agreed on
        checkpoint.safetensors   end of the last whole round: client records; the method's state, summaries,
                                 reference vectors
        frames.safetensors       shared projections, for a method that makes them before round 1
        leaving.json             clients that are to be withdrawn before the next round
        checkpoints/             the checkpoints of the last rounds
        lock                     while a process leads the run or changes its files: its id and host
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from trifed.common.errors import RunError
from trifed.config.run import RunConfig
from trifed.deployment.protocol import read_layout, write_layout
from trifed.federation.events import Event
from trifed.federation.kept_checkpoints import forget
from trifed.federation.run_folder import SHARED_PROJECTIONS, RunFolder

if TYPE_CHECKING:
    from trifed.federation.base_server import BaseServer
    from trifed.federation.transport import ClientRecord

# Functions import what needs torch, so that the status of a run need not wait for it.

FACTS, LEAVING = "federation.json", "leaving.json"


class ServerCheckpoint:
    """The files of one run in `folder`.

    Attributes:
        count: Number of last rounds whose checkpoints are kept.
        facts: Content of federation.json, empty before the run begins.
    """

    def __init__(self, folder: RunFolder, count: int = 1) -> None:
        self.folder = folder
        self.count = count
        self.facts: dict[str, Any] = folder.read_json(FACTS, {})

    @property
    def finished(self) -> bool:
        """Return whether the run has its result, which is written last."""
        return (self.folder.path / "summary.json").is_file()

    @property
    def records(self) -> list[ClientRecord]:
        """The client records of the last checkpoint, by index."""
        from trifed.federation.transport import ClientRecord

        return [ClientRecord(**facts) for facts in self.folder.client_records() or []]

    def write(self, name: str, server: BaseServer, identity: tuple[str, str], lora_bytes: int) -> None:
        """Write federation.json.

        Args:
            name: The run's name.
            server: Its layout is written.
            identity: The base model's fingerprint, and the digest of layout and start.
            lora_bytes: Size of one message of `fedavg-lora` on this model.
        """
        base, digest = identity
        layout = write_layout(server.context.exchanged)
        self.facts = {"run": name, "base": base, "digest": digest, "layout": layout, "lora_bytes": lora_bytes}
        if server.context.options.raw_summary():
            self.facts["features"] = server.context.summary_dim
        self.folder.write_json(FACTS, self.facts, durable=True)

    def save(self, number: int, server: BaseServer, records: list[ClientRecord]) -> None:
        """Write the end of a round."""
        kept = [asdict(record) for record in records]
        self.folder.save_checkpoint(number, [], server.state_dict(), server.context.run, kept, self.count)

    def load(self, config: RunConfig) -> tuple[int, BaseServer, list[ClientRecord]]:
        """Read the last whole round, and cut the log of an unfinished run back to it.

        Raises:
            RunError: The checkpoint is missing or damaged.
        """
        from trifed.federation.context import run_context
        from trifed.federation.sealed.server import make_server

        checkpoint = self.folder.load_checkpoint(self.facts["run"], cut=not self.finished)
        if checkpoint is None:
            raise RunError(f"{self.folder.path}: the checkpoint is missing; put it back, or start a new run")
        done, _, arrays = checkpoint
        records = self.records
        facts = self.facts
        layout, features = read_layout(facts["layout"]), int(facts.get("features", 0))
        context = run_context(config, layout, facts["base"], facts["run"], features)
        server = make_server(context, len(records), np.zeros(0, np.float32), [record.name for record in records])
        server.load_state_dict(arrays)
        if context.method.shared_projections:
            server.shared_projections = self.folder.read_arrays(SHARED_PROJECTIONS)
        return done, server, records

    def forget_earlier(self) -> None:
        """Remove the checkpoints of earlier rounds, which hold data that are to be deleted."""
        forget(self.folder.path)

    def leave_next(self, name: str) -> None:
        """Request that the process that leads the run withdraws a client before the next round."""
        self.folder.write_json(LEAVING, sorted({*self.leaving(), name}), durable=True)

    def leaving(self) -> list[str]:
        """Return the names of the clients that are to be withdrawn."""
        return [str(name) for name in self.folder.read_json(LEAVING, [])]

    def clear_leaving(self) -> None:
        """Remove the requests: the clients are withdrawn."""
        (self.folder.path / LEAVING).unlink(missing_ok=True)


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
    """The status of a run. `round` is the last whole one; `refused` holds each reason for a refused node once.

    `sums`: sums of updates that the server has opened, in a sealed run.
    """

    round: int
    rounds: int
    finished: bool
    clients: list[ClientStatus]
    refused: list[str]
    sums: int = 0


def run_status(folder: RunFolder, rounds: int) -> RunStatus:
    """Read the status from a run's folder at the server.

    Raises:
        RunError: The folder holds no run between sites, or the run has not begun.
    """
    records = folder.client_records()
    if not records:
        raise RunError(f"{folder.path}: no run between sites has begun here; `trifed watch` follows any run")
    events = folder.events()
    return RunStatus(
        round=max((event["round"] for event in events if event["event"] == "round"), default=0),
        rounds=rounds,
        finished=any(event["event"] == "finished" for event in events),
        clients=[_client_status(events, record) for record in records],
        refused=list(dict.fromkeys(event["reason"] for event in events if event["event"] == "refused")),
        sums=sum(event["event"] == "sum" and event["round"] > 0 for event in events),
    )


def _client_status(events: Sequence[Event], record: Mapping[str, Any]) -> ClientStatus:
    mine = [event for event in events if event.get("client") == record["name"]]
    done, out = ([event for event in mine if event["event"] == name] for name in ("trained", "left out"))
    last = max((event["round"] for event in done), default=0)
    newest = out[-1]["reason"] if out and out[-1]["round"] > last else ""
    return ClientStatus(
        name=record["name"],
        examples=record["examples"],
        last=last,
        left_out=len(out),
        sent=sum(sum(event.get("up", {}).values()) for event in mine),
        reason="it has left for good" if record.get("left") else newest,
        seconds=done[-1].get("seconds") if done else None,
    )
