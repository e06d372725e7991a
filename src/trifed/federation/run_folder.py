"""A run's folder: its files, and how an interrupted run is resumed from them.

::

    runs/NAME/
        config.toml            resolved configuration; `trifed run` takes it
        environment.json       versions, hardware, base model, fingerprints
        split.json             clients x labels
        events.jsonl           one event per line: round, client, loss, accuracy, bytes by tensor name
        checkpoint.safetensors end of the last whole round: every client's tensors and moments, the server's state
        frames.safetensors     A, B and the start of C, for a method that makes them before round 1
        matrices/              similarity and weights, one safetensors file per evaluated round
        privacy/NAME/          with [privacy]: a client's ledger, and its noised summary
        clients/NAME/          adapter as a PEFT folder, head.safetensors, classifier.json
        predictions.json       each client's predicted labels on its test data
        tensorboard/METHOD/    event files; also mlflow.db and mlflow.json, if trackers are configured
        summary.json           the result, complete only when `finished` is true
        audit/                 results of `trifed audit`, unless another folder is given
        exports/FORM/NAME/     models of `trifed export`, unless another folder is given
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from trifed.common.errors import RunError
from trifed.common.files import whole_file
from trifed.federation.client_update import ClientState
from trifed.federation.events import Event as Event
from trifed.federation.events import Listener, RunEvent
from trifed.methods.base import State

PRIVACY = "privacy"
"""Folder of the ledgers, in a run's folder and in a site's folder of a run."""
SHARED_PROJECTIONS = "frames.safetensors"


def refuse_unwritable(path: Path, way_out: str) -> None:
    """Check that a folder, which may not exist yet, can be written.

    Raises:
        RunError: The folder, or the nearest existing one above it, is not a folder or not writable.
    """
    nearest = next(place for place in (path.absolute(), *path.absolute().parents) if place.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        kind = "not writable" if nearest.is_dir() else "not a folder"
        raise RunError(f"{path}: no file can be written there, because {nearest} is {kind}; {way_out}")


class RunFolder:
    """Reads and writes one run's folder; every file but the event log is replaced atomically."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @staticmethod
    def refuse_existing(path: Path) -> None:
        """Check that a new run can be written to a folder.

        Raises:
            RunError: Something is already there, or the folder is not writable.
        """
        refuse_unwritable(path.absolute().parent, "give another --runs")
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
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

    def write_text(self, name: str, text: str) -> None:
        """Write one text file atomically."""
        with whole_file(self.path / name) as path:
            path.write_text(text, encoding="utf-8")

    def write_json(self, name: str, value: Any) -> None:
        """Write one JSON file; NaN becomes null."""
        self.write_text(name, json.dumps(plain(value), indent=2, allow_nan=False) + "\n")

    def read_json(self, name: str) -> Any:
        """Read one JSON file."""
        return json.loads((self.path / name).read_text(encoding="utf-8"))

    def write_tensors(self, name: str, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
        """Write one safetensors file atomically."""
        with whole_file(self.path / name) as path:
            save_file(apart(tensors), path, dict(metadata))

    def read_arrays(self, name: str) -> dict[str, np.ndarray[Any, Any]]:
        """Read one safetensors file."""
        return {key: tensor.numpy() for key, tensor in load_file(self.path / name).items()}

    # -- events

    def append(self, event: Event) -> None:
        """Add one event to the log."""
        with (self.path / "events.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(plain(event), allow_nan=False) + "\n")

    def events(self) -> list[Event]:
        """Return all events; half a line, which a killed run may leave, is ignored.

        Raises:
            RunError: The log is damaged.
        """
        path = self.path / "events.jsonl"
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
        content = (self.path / "events.jsonl").read_bytes()
        return self._parse(content[: self._read_checkpoint(())[0]["events_bytes"]])

    def _parse(self, content: bytes) -> list[Event]:
        try:
            lines = content[: content.rfind(b"\n") + 1].decode("utf-8").splitlines()
            return [json.loads(line) for line in lines]
        except ValueError as error:
            raise RunError(f"{self.path / 'events.jsonl'}: damaged ({error}); put the whole file back") from error

    # -- checkpoint

    def save_checkpoint(
        self, round_number: int, clients: list[ClientState], server: State, identity: str, records: Any = None
    ) -> None:
        """Write the last whole round.

        Args:
            round_number: The round.
            clients: State of each client that this process holds.
            server: The server's arrays.
            identity: Pins the data and the base model that the run may be continued with.
            records: The server's records of the clients, ready for JSON.
        """
        tensors = {f"server/{name}": torch.from_numpy(np.ascontiguousarray(a)) for name, a in server.items()}
        for index, state in enumerate(clients):
            tensors |= state_tensors(state, f"client/{index}/")
        events = self.path / "events.jsonl"
        facts = {
            "round": round_number,
            "steps": [state.steps for state in clients],
            "events_bytes": events.stat().st_size if events.is_file() else 0,
            "identity": identity,
            "members": records,
        }
        self.write_tensors("checkpoint.safetensors", tensors, {"trifed": json.dumps(facts)})

    def has_checkpoint(self) -> bool:
        """Return whether a whole round was finished."""
        return (self.path / "checkpoint.safetensors").is_file()

    def client_records(self) -> Any:
        """Return the client records of the last checkpoint as they were saved; None without a checkpoint.

        Raises:
            RunError: The checkpoint is damaged.
        """
        return self._read_checkpoint(())[0].get("members") if self.has_checkpoint() else None

    def rounds_done(self) -> int:
        """Return the last whole round, 0 if there is none.

        Raises:
            RunError: The checkpoint is damaged.
        """
        return int(self._read_checkpoint(())[0]["round"]) if self.has_checkpoint() else 0

    def _read_checkpoint(self, names: Iterable[str] | None = None) -> tuple[Event, dict[str, Tensor]]:
        """Read a checkpoint's metadata, and the tensors in `names`, or all."""
        path = self.path / "checkpoint.safetensors"
        try:
            with safe_open(path, "pt") as file:
                facts = json.loads(file.metadata()["trifed"])
                return facts, {name: file.get_tensor(name) for name in (file.keys() if names is None else names)}
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise RunError(f"{path}: damaged ({error}); start the run anew under another --name") from error

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
        path = self.path / "checkpoint.safetensors"
        if not path.is_file():
            (self.path / "events.jsonl").unlink(missing_ok=True)
            return None
        facts, tensors = self._read_checkpoint()
        if facts["identity"] != identity:
            raise RunError(
                f"{self.path}: the data or the base model changed since this run was broken off, so it cannot "
                f"reach the same numbers; put them back, or start a new run under another --name"
            )
        events = self.path / "events.jsonl"
        if not events.is_file() or events.stat().st_size < facts["events_bytes"]:
            raise RunError(
                f"{events}: shorter than when this run was broken off, so its bytes and accuracies are lost; "
                f"put the whole file back, or start a new run under another --name"
            )
        if cut:
            with events.open("r+b") as file_events:
                file_events.truncate(facts["events_bytes"])
        server = {n.removeprefix("server/"): t.numpy() for n, t in tensors.items() if n.startswith("server/")}
        return (
            facts["round"],
            [state_of(tensors, steps, f"client/{i}/") for i, steps in enumerate(facts["steps"])],
            server,
        )


class EventLog:
    """Writes events to a run's log and passes them to a listener."""

    def __init__(self, folder: RunFolder, listener: Listener) -> None:
        self.folder = folder
        self.listener = listener

    def __call__(self, event: RunEvent) -> None:
        """Log one event."""
        logged = event.to_dict()
        self.folder.append(logged)
        self.listener(logged)


def apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copy tensors that share memory, which safetensors refuses: clients that never trained share their start."""
    seen: set[int] = set()
    result = {}
    for name, tensor in tensors.items():
        place = tensor.untyped_storage().data_ptr()
        known = place in seen or not tensor.is_contiguous()
        result[name] = tensor.clone(memory_format=torch.contiguous_format) if known else tensor
        seen.add(place)
    return result


def state_tensors(state: ClientState, under: str = "") -> dict[str, Tensor]:
    """Return a client's state as named tensors, without its step count."""
    return {
        **{f"{under}tensors/{name}": t for name, t in state.tensors.items()},
        **{f"{under}moments/{name}": t.cpu() for name, t in state.moments.items()},
        **{f"{under}wire/{name}": torch.from_numpy(a) for name, a in state.memory.items()},
    }


def state_of(tensors: Mapping[str, Tensor], steps: int, under: str = "") -> ClientState:
    """Make a client's state from named tensors and its step count; the inverse of `state_tensors`."""

    def part(kind: str) -> dict[str, Tensor]:
        prefix = f"{under}{kind}/"
        return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}

    wire = {name: tensor.numpy() for name, tensor in part("wire").items()}
    return ClientState(part("tensors"), part("moments"), steps, wire)


def plain(value: Any) -> Any:
    """Make a value ready for JSON: NumPy numbers become Python's, NaN and infinities None."""
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value
