"""A run's folder: what is in it, and how it survives being broken off.

::

    runs/NAME/
        config.toml            resolved configuration; `trifed run` takes it
        environment.json       versions, hardware, base model, fingerprints
        split.json             clients x labels
        events.jsonl           one event a line: round, client, loss, accuracy, bytes by tensor name
        checkpoint.safetensors end of the last whole round: every client's tensors and moments, the server's state
        frames.safetensors     A, B and the start of C, where a method agrees on them before round 1
        matrices/              similarity and weights, one safetensors file an evaluated round
        privacy/NAME/          with [privacy]: a client's ledger, and its noised summary
        clients/NAME/          adapter as a PEFT folder, head.safetensors, classifier.json
        predictions.json       each client's predicted labels on its test data
        tensorboard/METHOD/    event files; mlflow.db, a store, and mlflow.json: where trackers were asked for
        summary.json           the result, complete only when `finished` is true
        audit/                 what `trifed audit` found, unless told another place
        exports/FORM/NAME/     what `trifed export` wrote, unless told another place
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
from trifed.federation.client_update import ClientState
from trifed.methods.base import State

Event = dict[str, Any]

PRIVACY = "privacy"
"""In a run's folder, and in a site's folder of a run: ledgers."""


def refuse_unwritable(path: Path, way_out: str) -> None:
    """It must be possible to write in a folder, which need not be there yet.

    Raises:
        RunError: what stands in its place, or above it, is no folder, or may not be written.
    """
    nearest = next(place for place in (path.absolute(), *path.absolute().parents) if place.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        kind = "not writable" if nearest.is_dir() else "not a folder"
        raise RunError(f"{path}: nothing can be kept there, {nearest} is {kind}; {way_out}")


class RunFolder:
    """Reads and writes one run's folder. Every file but the event log is replaced atomically."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @staticmethod
    def refuse_existing(path: Path) -> None:
        """Nothing may be where a new run is to be kept, and it must be possible to write there.

        Raises:
            RunError: something is already there, or nothing can be written there.
        """
        refuse_unwritable(path.absolute().parent, "give another --runs")
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise RunError(
                f"{path}: a run of this name exists; give another --name, continue it with "
                f"`trifed run --resume {path}`, or remove the folder"
            )

    @classmethod
    def create(cls, path: Path) -> RunFolder:
        """A new folder.

        Raises:
            RunError: something is already there.
        """
        cls.refuse_existing(path)
        path.mkdir(parents=True, exist_ok=True)
        return cls(path)

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """An existing run's folder.

        Raises:
            RunError: the folder holds no run.
        """
        if not (path / "config.toml").is_file():
            raise RunError(f"{path}: no run here (it has no config.toml); give the folder of a run, as runs/NAME")
        return cls(path)

    def write_text(self, name: str, text: str) -> None:
        """Write one file, whole or not at all."""
        target = self.path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = target.with_name(f".{target.name}.tmp")
        scratch.write_text(text, encoding="utf-8")
        scratch.replace(target)

    def write_json(self, name: str, value: Any) -> None:
        """Write one JSON file; NaN becomes null."""
        self.write_text(name, json.dumps(plain(value), indent=2, allow_nan=False) + "\n")

    def read_json(self, name: str) -> Any:
        """Read one JSON file."""
        return json.loads((self.path / name).read_text(encoding="utf-8"))

    def write_tensors(self, name: str, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
        """Write one safetensors file, whole or not at all."""
        target = self.path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = target.with_name(f".{target.name}.tmp")
        save_file(apart(tensors), scratch, dict(metadata))
        scratch.replace(target)

    def read_arrays(self, name: str) -> dict[str, np.ndarray[Any, Any]]:
        """Read one safetensors file."""
        return {key: tensor.numpy() for key, tensor in load_file(self.path / name).items()}

    # -- events

    def append(self, event: Event) -> None:
        """Add one event to the log."""
        with (self.path / "events.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(plain(event), allow_nan=False) + "\n")

    def events(self) -> list[Event]:
        """All events so far; half a line, which a run that was killed may leave, is none.

        Raises:
            RunError: the log is damaged.
        """
        path = self.path / "events.jsonl"
        return self._parse(path.read_bytes()) if path.is_file() else []

    def whole_rounds(self) -> list[Event]:
        """The events up to the end of the last whole round, or of the run if it is over.

        Raises:
            RunError: the log or the checkpoint is damaged.
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
        self, round_number: int, clients: list[ClientState], server: State, identity: str, members: Any = None
    ) -> None:
        """All that the next round needs. `identity` pins what it may be continued with; `members`: who, JSON."""
        tensors = {f"server/{name}": torch.from_numpy(np.ascontiguousarray(a)) for name, a in server.items()}
        for index, state in enumerate(clients):
            tensors |= state_tensors(state, f"client/{index}/")
        events = self.path / "events.jsonl"
        facts = {
            "round": round_number,
            "steps": [state.steps for state in clients],
            "events_bytes": events.stat().st_size if events.is_file() else 0,
            "identity": identity,
            "members": members,
        }
        self.write_tensors("checkpoint.safetensors", tensors, {"trifed": json.dumps(facts)})

    def has_checkpoint(self) -> bool:
        """Was a whole round finished?"""
        return (self.path / "checkpoint.safetensors").is_file()

    def members(self) -> Any:
        """What the last checkpoint says of who takes part, as it was saved; None where there is none.

        Raises:
            RunError: the checkpoint is damaged.
        """
        return self._read_checkpoint(())[0].get("members") if self.has_checkpoint() else None

    def rounds_done(self) -> int:
        """The last whole round; 0 where none was finished.

        Raises:
            RunError: the checkpoint is damaged.
        """
        return int(self._read_checkpoint(())[0]["round"]) if self.has_checkpoint() else 0

    def _read_checkpoint(self, names: Iterable[str] | None = None) -> tuple[Event, dict[str, Tensor]]:
        """What a checkpoint says of itself, and its tensors: all of them, or those of `names`."""
        path = self.path / "checkpoint.safetensors"
        try:
            with safe_open(path, "pt") as file:
                facts = json.loads(file.metadata()["trifed"])
                return facts, {name: file.get_tensor(name) for name in (file.keys() if names is None else names)}
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise RunError(f"{path}: damaged ({error}); start the run anew under another --name") from error

    def load_checkpoint(self, identity: str, cut: bool = True) -> tuple[int, list[ClientState], State] | None:
        """The last whole round, with the event log cut back to it; None where no round was finished.

        `cut`: false leaves the log as it is, for who does not go on from here.

        Raises:
            RunError: the file is damaged, or belongs to other data or another base model.
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


def apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors that share no memory, which safetensors refuses: clients that never trained share their start."""
    seen: set[int] = set()
    result = {}
    for name, tensor in tensors.items():
        place = tensor.untyped_storage().data_ptr()
        known = place in seen or not tensor.is_contiguous()
        result[name] = tensor.clone(memory_format=torch.contiguous_format) if known else tensor
        seen.add(place)
    return result


def state_tensors(state: ClientState, under: str = "") -> dict[str, Tensor]:
    """What a client keeps as named tensors; its steps are not among them."""
    return {
        **{f"{under}tensors/{name}": t for name, t in state.tensors.items()},
        **{f"{under}moments/{name}": t.cpu() for name, t in state.moments.items()},
        **{f"{under}wire/{name}": torch.from_numpy(a) for name, a in state.memory.items()},
    }


def state_of(tensors: Mapping[str, Tensor], steps: int, under: str = "") -> ClientState:
    """The inverse of `state_tensors`."""

    def part(kind: str) -> dict[str, Tensor]:
        prefix = f"{under}{kind}/"
        return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}

    wire = {name: tensor.numpy() for name, tensor in part("wire").items()}
    return ClientState(part("tensors"), part("moments"), steps, wire)


def plain(value: Any) -> Any:
    """JSON-ready: NumPy numbers become Python's, NaN and infinities None."""
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value
