"""What the server of a run between sites keeps, beside the event log: who takes part, and the method's state.

::

    FOLDER/
        federation.json          the run's name, and what its clients agreed on
        checkpoint.safetensors   end of the last whole round: who takes part, by place; the method's state,
                                 summaries, what each had last
        frames.safetensors       where a method agrees on frames before round 1
        leaving.json             clients that are to be withdrawn before the next round
        lock                     held by the process that leads the run
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from trifed.common.errors import RunError
from trifed.config.run import RunConfig
from trifed.deployment.protocol import read_layout, write_layout
from trifed.federation.context import run_context
from trifed.federation.run_folder import RunFolder
from trifed.federation.server import Server
from trifed.methods.base import State
from trifed.similarity import Summary

FACTS, LEAVING, LOCK = "federation.json", "leaving.json", "lock"
KNOWN, SUMMARY, START = "known/", "summary/", "start"
"""Beside the method's state in a checkpoint: what each client had last, what it told of its data, the start."""


@dataclass
class ClientRecord:
    """A client. `node`: whose key its name stays with; `examples`: to train on; `data`: the client's own mark of
    the data that it was opened with; `counts`: the last round of its upload that counts, 0 before that.
    """

    name: str
    node: int
    examples: int
    data: str
    counts: int = 0
    left: bool = False


class ServerCheckpoint:
    """Of one run, in `folder`. `agreed`: the base model's fingerprint, and a digest of what travels."""

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder
        self.facts: dict[str, Any] = folder.read_json(FACTS) if (folder.path / FACTS).is_file() else {}

    @property
    def members(self) -> list[ClientRecord]:
        """By place, as of the last checkpoint."""
        return [ClientRecord(**facts) for facts in self.folder.members() or []]

    def write(self, name: str, server: Server, agreed: tuple[str, str], lora: int) -> None:
        """Keep what all agreed on; `lora`: bytes that `fedavg-lora` would send."""
        base, digest = agreed
        layout = write_layout(server.context.compression.layout)
        self.facts = {"run": name, "base": base, "digest": digest, "layout": layout, "lora_bytes": lora}
        self.folder.write_json(FACTS, self.facts)

    def save(self, number: int, server: Server, members: list[ClientRecord]) -> None:
        """Keep the end of a round."""
        kept: State = {**server.state, START: server.start}
        kept |= {f"{KNOWN}{place}": values for place, values in server.known.items()}
        for place, summary in server.summaries.items():
            kept |= {f"{SUMMARY}{place}/{name}": array for name, array in summary.to_arrays().items()}
        told = [asdict(member) for member in members]
        self.folder.save_checkpoint(number, [], kept, server.context.run, told)

    def load(self, config: RunConfig) -> tuple[int, Server, list[ClientRecord]]:
        """The last whole round, as `save` has kept it.

        The log of a run that is not over is cut back to it.

        Raises:
            RunError: it is gone, or damaged.
        """
        over = any(event["event"] == "finished" for event in self.folder.events())
        checkpoint = self.folder.load_checkpoint(self.facts["run"], cut=not over)
        if checkpoint is None:
            raise RunError(f"{self.folder.path}: the checkpoint is gone; start a new run")
        done, _, kept = checkpoint
        members = self.members
        context = run_context(config, read_layout(self.facts["layout"]), self.facts["base"], self.facts["run"])
        server = Server(context, len(members), kept.pop(START).astype(np.float32))
        server.known = {place: array.astype(np.float32) for (place,), array in _taken(kept, KNOWN)}
        told: dict[int, dict[str, np.ndarray[Any, Any]]] = {}
        for (place, name), array in _taken(kept, SUMMARY):
            told.setdefault(place, {})[name] = array
        server.summaries = {place: Summary.from_arrays(arrays) for place, arrays in told.items()}
        server.state = kept
        return done, server, members

    @contextmanager
    def held(self) -> Iterator[None]:
        """While one process leads the run, or changes what is kept of it.

        Raises:
            RunError: another process does.
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
        """Does another process hold it?"""
        try:
            with self.held():
                return False
        except RunError:
            return True

    # -- who is to be withdrawn

    def leave_next(self, name: str) -> None:
        """Ask whoever leads the run to withdraw a client before the next round."""
        self.folder.write_json(LEAVING, sorted({*self.leaving(), name}))

    def leaving(self) -> list[str]:
        """Clients that are to be withdrawn."""
        path = self.folder.path / LEAVING
        return [str(name) for name in json.loads(path.read_text(encoding="utf-8"))] if path.is_file() else []

    def left(self) -> None:
        """They are withdrawn."""
        if (self.folder.path / LEAVING).is_file():
            (self.folder.path / LEAVING).unlink()


def _taken(kept: State, prefix: str) -> Iterator[tuple[tuple[Any, ...], np.ndarray[Any, Any]]]:
    """Take all arrays under a prefix out: place and what else the name says, and the array."""
    for name in [name for name in kept if name.startswith(prefix)]:
        place, *rest = name.removeprefix(prefix).split("/")
        yield (int(place), *rest), kept.pop(name)
