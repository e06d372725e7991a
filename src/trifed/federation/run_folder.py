"""A run's folder: its files, from which an interrupted run is resumed.

::

    runs/NAME/
        config.toml            resolved configuration; `trifed run` takes it
        environment.json       versions, hardware, base model, fingerprints
        split.json             clients x labels
        events.jsonl           one event per line: round, client, loss, accuracy, bytes by tensor name
        checkpoint.safetensors end of the last whole round: every client's tensors and moments, the server's state
        checkpoints/           the checkpoints of the last rounds and the best one, see `kept_checkpoints`
        lock                   while a process writes to the folder: its id and host
        frames.safetensors     A, B and the start of C, for a method that makes them before round 1
        matrices/              similarity and weights, one safetensors file per evaluated round
        privacy/NAME/          with [privacy]: a client's ledger, and its noised summary
        clients/NAME/          adapter as a PEFT folder, head.safetensors, classifier.json
        predictions.json       each client's predicted labels on its test data
        tensorboard/METHOD/    event files of trackers; also mlflow.db, mlflow.json, wandb.json, wandb/
        summary.json           the result, complete only when `finished` is true
        manifest.json          size and SHA-256 of each file of a finished run, see `manifest`
        audit/                 results of `trifed audit`, unless another folder is given
        exports/FORM/NAME/     models of `trifed export`, unless another folder is given
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from trifed.common.errors import RunError, damage_in
from trifed.common.files import flush, whole_file
from trifed.common.lock import LOCK
from trifed.federation.events import Event as Event
from trifed.federation.events import Listener, RunEvent
from trifed.federation.kept_checkpoints import CHECKPOINT, keep
from trifed.federation.state_tensors import apart, open_tensors, read_checkpoint, with_states
from trifed.methods.base import State

if TYPE_CHECKING:
    from torch import Tensor

    from trifed.federation.client_update import ClientState

# Functions import torch, so that a report of a run need not wait for it.

PRIVACY = "privacy"
"""Folder of the ledgers, in a run's folder and in a site's folder of a run."""
SHARED_PROJECTIONS = "frames.safetensors"
DAMAGED = "go back to an earlier round (--from-round), or start a new run under another --name"


def refuse_unwritable(path: Path, way_out: str) -> None:
    """Check that a folder, which may not exist yet, can be written.

    Raises:
        RunError: The folder, or the nearest existing one above it, is not a folder or not writable.
    """
    nearest = next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        kind = "not writable" if nearest.is_dir() else "not a folder"
        raise RunError(f"{path}: no file can be written there, because {nearest} is {kind}; {way_out}")


@dataclass(frozen=True)
class RunFolder:
    """Reads and writes one run's folder; every file but the event log is replaced atomically."""

    path: Path

    @staticmethod
    def refuse_existing(path: Path) -> None:
        """Check that a new run can be written to a folder.

        Raises:
            RunError: Something is already there, or the folder is not writable.
        """
        refuse_unwritable(path.absolute().parent, "give another --runs")
        if path.exists() and (not path.is_dir() or any(not _left_behind(item.name) for item in path.iterdir())):
            raise RunError(
                f"{path}: a run of this name exists; give another --name, continue it with "
                f"`trifed run --resume {path}`, or remove the folder"
            )

    @classmethod
    def create(cls, path: Path) -> RunFolder:
        """Create a new run's folder.

        Raises:
            RunError: Something is already there.
        """
        cls.refuse_existing(path)
        path.mkdir(parents=True, exist_ok=True)
        return cls(path)

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """Open an existing run's folder.

        Raises:
            RunError: The folder holds no run.
        """
        if not (path / "config.toml").is_file():
            raise RunError(f"{path}: no run here (it has no config.toml); give the folder of a run, as runs/NAME")
        return cls(path)

    def refuse_vanished(self) -> None:
        """Check that the folder is still there, so that one on a lost mount is not created anew elsewhere.

        Raises:
            FileNotFoundError: It is gone.
        """
        if not self.path.is_dir():
            raise FileNotFoundError(errno.ENOENT, "the run's folder is gone, or its mount", str(self.path))

    def write_text(self, name: str, text: str, *, durable: bool = False) -> None:
        """Write one text file atomically; `durable` as for `whole_file`."""
        self.refuse_vanished()
        with whole_file(self.path / name, durable=durable) as path:
            path.write_text(text, encoding="utf-8")

    def write_json(self, name: str, value: Any, *, durable: bool = False) -> None:
        """Write one JSON file; NaN becomes null."""
        self.write_text(name, json_text(value), durable=durable)

    def read_json(self, name: str, default: Any = None) -> Any:
        """Read one JSON file; `default` is returned instead of a missing file, unless it is None."""
        path = self.path / name
        if default is not None and not path.is_file():
            return default
        with damage_in(path, "put the file back, or run it again"):
            return json.loads(path.read_text(encoding="utf-8"))

    def write_tensors(
        self, name: str, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], *, durable: bool = False
    ) -> None:
        """Write one safetensors file atomically; `durable` as for `whole_file`."""
        from safetensors.torch import save_file as save_tensors

        self.refuse_vanished()
        with whole_file(self.path / name, durable=durable) as path:
            save_tensors(apart(tensors), path, dict(metadata))

    def write_arrays(
        self, name: str, arrays: Mapping[str, NDArray[Any]], metadata: Mapping[str, str], *, durable: bool = False
    ) -> None:
        """Write arrays as `write_tensors` writes tensors, without torch."""
        self.refuse_vanished()
        with whole_file(self.path / name, durable=durable) as path:
            save_file({key: np.ascontiguousarray(a) for key, a in arrays.items()}, path, dict(metadata))

    def read_arrays(self, name: str) -> dict[str, np.ndarray[Any, Any]]:
        """Read the arrays of one safetensors file."""
        return dict(load_file(self.path / name))

    # -- events

    @property
    def _events(self) -> Path:
        return self.path / "events.jsonl"

    def append(self, event: Event) -> None:
        """Add one event to the log."""
        with self._events.open("a", encoding="utf-8") as file:
            file.write(json.dumps(plain(event), allow_nan=False) + "\n")

    def events(self) -> list[Event]:
        """Return all events; half a line, which a killed run may leave, is ignored.

        Raises:
            RunError: The log is damaged.
        """
        path = self._events
        return self._parse(path.read_bytes()) if path.is_file() else []

    def whole_rounds(self) -> list[Event]:
        """Return the events up to the end of the last whole round, or of a finished run.

        Raises:
            RunError: The log or the checkpoint is damaged.
        """
        found = self.events()
        if found and found[-1].get("event") == "finished":
            return found
        if not found or not self.has_checkpoint():
            return []
        return self._kept_events()

    def ended(self) -> bool:
        """Return whether the checkpoint includes the end of the run.

        Raises:
            RunError: The log or the checkpoint is damaged.
        """
        return self.has_checkpoint() and any(event["event"] == "finished" for event in self._kept_events())

    def _kept_events(self) -> list[Event]:
        """Return the events that the checkpoint includes."""
        length = self.facts()["events_bytes"]
        return self._parse(self._events.read_bytes()[:length]) if self._events.is_file() else []

    def _parse(self, content: bytes) -> list[Event]:
        with damage_in(self._events, "put the whole file back"):
            events = [
                json.loads(line) for line in content[: content.rfind(b"\n") + 1].decode("utf-8").split("\n")[:-1]
            ]
            if not all(isinstance(event["event"], str) for event in events):
                raise ValueError("an event without a name")
            return events

    # -- checkpoint

    def save_checkpoint(
        self, round_number: int, clients: list[ClientState], server: State, identity: str, records: Any = None,
        count: int = 1, settings: Mapping[str, Any] | None = None, needed: Collection[int] = (),
    ) -> None:  # fmt: skip
        """Write the last whole round to the disk, after the event log, of which it has the length.

        Args:
            round_number: The round.
            clients: State of each client that this process holds.
            server: The server's arrays.
            identity: Pins the data and the base model that the run may be continued with.
            records: The server's records of the clients, ready for JSON.
            count: Number of last rounds whose checkpoints are kept.
            settings: The run's settings, ready for JSON, to name those that changed when the run continues.
            needed: Rounds whose checkpoints are kept as well.
        """
        arrays = {f"server/{name}": np.ascontiguousarray(values) for name, values in server.items()}
        if self._events.is_file():
            flush(self._events)
        facts = {
            "round": round_number,
            "steps": [state.steps for state in clients],
            "events_bytes": self._events.stat().st_size if self._events.is_file() else 0,
            "identity": identity,
            "members": records,
            "settings": settings,
        }
        metadata = {"trifed": json.dumps(facts)}
        if clients:
            self.write_tensors(CHECKPOINT, with_states(arrays, clients), metadata, durable=True)
        else:  # a server between sites, which does without torch
            self.write_arrays(CHECKPOINT, arrays, metadata, durable=True)
        keep(self.path, round_number, count, needed)

    def has_checkpoint(self) -> bool:
        """Return whether a whole round was finished."""
        return (self.path / CHECKPOINT).is_file()

    def client_records(self) -> Any:
        """Return the client records of the last checkpoint as they were saved; None without a checkpoint.

        Raises:
            RunError: The checkpoint is damaged.
        """
        return self.facts().get("members")

    def rounds_done(self) -> int:
        """Return the last whole round, 0 if there is none.

        Raises:
            RunError: The checkpoint is damaged.
        """
        return int(self.facts().get("round", 0))

    def facts(self, checkpoint: str | Path = CHECKPOINT) -> dict[str, Any]:
        """Return the facts of a checkpoint, by default the last one, without its tensors; {} without it.

        Raises:
            RunError: The checkpoint is damaged.
        """
        if not (self.path / checkpoint).is_file():
            return {}
        with open_tensors(self.path / checkpoint, DAMAGED, "np") as file:
            return dict(json.loads(file.metadata()["trifed"]))

    def load_checkpoint(self, identity: str, cut: bool = True) -> tuple[int, list[ClientState], State] | None:
        """Read the last whole round; None if no round was finished.

        Args:
            identity: Identity of the data and the base model.
            cut: Whether to cut the event log back to that round, as a run that continues needs.

        Returns:
            The round, the clients' states and the server's arrays.

        Raises:
            RunError: The file is damaged, or belongs to other data or another base model.
        """
        if not self.has_checkpoint():
            self._events.unlink(missing_ok=True)
            return None
        facts, states, server = read_checkpoint(self.path / CHECKPOINT, DAMAGED)
        if facts["identity"] != identity:
            raise RunError(
                f"{self.path}: the data or the base model changed since this run was broken off, so it cannot "
                f"reach the same numbers; put them back, or start a new run under another --name"
            )
        if not self._events.is_file() or self._events.stat().st_size < facts["events_bytes"]:
            raise RunError(
                f"{self._events}: shorter than when this run was broken off, so its bytes and accuracies are "
                f"lost; put the whole file back, or start a new run under another --name"
            )
        if cut:
            os.truncate(self._events, facts["events_bytes"])
        return facts["round"], states, server


def _left_behind(name: str) -> bool:
    """Return whether a file is what a killed process leaves before its first whole file."""
    return name == LOCK or (name.startswith(".") and name.endswith(".partial"))


@dataclass(frozen=True)
class EventLog:
    """Writes events to a run's log and passes them to a listener."""

    folder: RunFolder
    listener: Listener

    def __call__(self, event: RunEvent) -> None:
        """Log one event."""
        logged = event.to_dict()
        self.folder.append(logged)
        self.listener(logged)


def json_text(value: Any) -> str:
    """Return the content of a JSON file; NaN becomes null."""
    return json.dumps(plain(value), indent=2, allow_nan=False) + "\n"


def plain(value: Any) -> Any:
    """Make a value ready for JSON: NumPy numbers become Python's, NaN and infinities None."""
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value
