"""The files of a run between sites at the server, beside the event log.

::

    FOLDER/
        federation.json          the run's name, and the base model and layout that its clients agreed on
        checkpoint.safetensors   end of the last whole round: client records; the method's state, summaries,
                                 reference vectors
        frames.safetensors       shared projections, for a method that makes them before round 1
        leaving.json             clients that are to be withdrawn before the next round
        lock                     held by the process that leads the run
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import numpy as np

from trifed.common.errors import RunError
from trifed.config.run import RunConfig
from trifed.deployment.protocol import read_layout, write_layout
from trifed.federation.context import run_context
from trifed.federation.run_folder import SHARED_PROJECTIONS, RunFolder
from trifed.federation.server import Server
from trifed.federation.transport import ClientRecord

FACTS, LEAVING, LOCK = "federation.json", "leaving.json", "lock"


class ServerCheckpoint:
    """The files of one run in `folder`; `facts` is the content of federation.json, empty before the run begins."""

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder
        self.facts: dict[str, Any] = folder.read_json(FACTS) if (folder.path / FACTS).is_file() else {}

    @property
    def records(self) -> list[ClientRecord]:
        """The client records of the last checkpoint, by index."""
        return [ClientRecord(**facts) for facts in self.folder.client_records() or []]

    def write(self, name: str, server: Server, identity: tuple[str, str], lora_bytes: int) -> None:
        """Write federation.json.

        Args:
            name: The run's name.
            server: Its layout is written.
            identity: The base model's fingerprint, and the digest of layout and start.
            lora_bytes: Size of one message of `fedavg-lora` on this model.
        """
        base, digest = identity
        layout = write_layout(server.context.compression.layout)
        self.facts = {"run": name, "base": base, "digest": digest, "layout": layout, "lora_bytes": lora_bytes}
        self.folder.write_json(FACTS, self.facts)

    def save(self, number: int, server: Server, records: list[ClientRecord]) -> None:
        """Write the end of a round."""
        kept = [asdict(record) for record in records]
        self.folder.save_checkpoint(number, [], server.state_dict(), server.context.run, kept)

    def load(self, config: RunConfig) -> tuple[int, Server, list[ClientRecord]]:
        """Read the last whole round, and cut the log of an unfinished run back to it.

        Raises:
            RunError: The checkpoint is missing or damaged.
        """
        finished = any(event["event"] == "finished" for event in self.folder.events())
        checkpoint = self.folder.load_checkpoint(self.facts["run"], cut=not finished)
        if checkpoint is None:
            raise RunError(f"{self.folder.path}: the checkpoint is gone; start a new run")
        done, _, arrays = checkpoint
        records = self.records
        context = run_context(config, read_layout(self.facts["layout"]), self.facts["base"], self.facts["run"])
        server = Server(context, len(records), np.zeros(0, np.float32))
        server.load_state_dict(arrays)
        if context.method.shared_projections:
            server.shared_projections = self.folder.read_arrays(SHARED_PROJECTIONS)
        return done, server, records

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the run's lock while this process leads the run or changes its files.

        Raises:
            RunError: Another process holds it.
        """
        with (self.folder.path / LOCK).open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise RunError(
                    f"{self.folder.path}: another process leads this run; wait for it, or end it"
                ) from None
            yield

    def busy(self) -> bool:
        """Return whether another process holds the lock."""
        try:
            with self.held():
                return False
        except RunError:
            return True

    def leave_next(self, name: str) -> None:
        """Request that the process that leads the run withdraws a client before the next round."""
        self.folder.write_json(LEAVING, sorted({*self.leaving(), name}))

    def leaving(self) -> list[str]:
        """Return the names of the clients that are to be withdrawn."""
        path = self.folder.path / LEAVING
        return [str(name) for name in json.loads(path.read_text(encoding="utf-8"))] if path.is_file() else []

    def clear_leaving(self) -> None:
        """Remove the requests: the clients are withdrawn."""
        (self.folder.path / LEAVING).unlink(missing_ok=True)
