"""What a client keeps of a run on its own disk.

::

    FOLDER/bases.json             the weights of every base model when it was first loaded here, sha256
    FOLDER/RUN/
        run.json                  the run's settings as the server sent them
        data.json                 a hash of this client's data as it was opened with, and a mark for the server
        frames.safetensors        A, B and the start of C, where a method agrees on them before round 1
        state.safetensors         after the last round: A, B, head, AdamW's moments, what the wire owes
        state-before.safetensors  the same after the round before: the server may not have got the last upload
        message.safetensors       with [privacy]: the last upload, to be sent again as it was
        privacy/                  with [privacy]: the ledger, and the noised summary
        model/                    the model that is used in the end, as `trifed run` leaves a client's

Every file is replaced atomically. Whoever can read the folder can read the client's adapter.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
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
from trifed.federation.run_folder import apart, state_of, state_tensors
from trifed.methods.packing import Tensors

LAST, BEFORE = "state.safetensors", "state-before.safetensors"
MESSAGE = "message.safetensors"
SHARED_PROJECTIONS = "frames.safetensors"
OWN = "own/"
BASES = "bases.json"


def first_known(folder: Path, name: str, fingerprint: str) -> str:
    """The fingerprint that a base model so named had when it was first loaded here; `fingerprint`, the first time.

    Raises:
        RunError: nothing can be written there, or what is there cannot be read.
    """
    path = folder / BASES
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        known: dict[str, str] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        if name not in known:
            known[name] = fingerprint
            with whole_file(path) as partial:
                partial.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise RunError(f"{path}: cannot be kept ({error.strerror}); name another folder") from error
    except ValueError as error:
        raise RunError(f"{path}: damaged ({error}); put it back from a backup, or remove it") from error
    return known[name]


class SiteStore:
    """One run's folder at a client."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def at(cls, folder: Path, settings: Mapping[str, Any]) -> SiteStore:
        """The folder of a run, made where it is not there.

        Raises:
            RunError: nothing can be written there.
        """
        store = cls(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise RunError(f"{folder}: cannot be made ({error.strerror}); name another folder") from error
        if cls.settings_of(folder) != settings:
            store._write("run.json", {"settings": dict(settings)})
        return store

    @staticmethod
    def settings_of(folder: Path) -> dict[str, Any] | None:
        """The settings of the run that is kept there; None where none is."""
        path = folder / "run.json"
        if not path.is_file():
            return None
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["settings"]
        return found

    def begin(self) -> None:
        """Forget all rounds, but not what they have cost in privacy."""
        for name in (LAST, BEFORE, MESSAGE, SHARED_PROJECTIONS):
            (self.folder / name).unlink(missing_ok=True)

    def keep_shared_projections(self, shared_projections: Tensors) -> None:
        """Keep what the server made of everybody's gradients."""
        with whole_file(self.folder / SHARED_PROJECTIONS) as path:
            save_file({name: torch.from_numpy(values) for name, values in shared_projections.items()}, path)

    def shared_projections(self) -> Tensors | None:
        """The same, read; None where there are none."""
        if not self.has_shared_projections():
            return None
        return {name: tensor.numpy() for name, tensor in load_file(self.folder / SHARED_PROJECTIONS).items()}

    def has_other_shared_projections(self, shared_projections: Tensors) -> bool:
        """Are frames kept here that are not these?"""
        kept = self.shared_projections()
        if kept is None:
            return False
        return kept.keys() != shared_projections.keys() or any(
            not np.array_equal(kept[name], shared_projections[name]) for name in kept
        )

    def keep_message(self, key: str, upload: bytes) -> None:
        """Keep an upload that is about to be released; `key`: what it answers."""
        with whole_file(self.folder / MESSAGE) as path:
            save_file({"upload": torch.frombuffer(bytearray(upload), dtype=torch.uint8)}, path, {"key": key})

    def message(self, key: str) -> bytes | None:
        """The upload that was the answer to the same; None where there is none."""
        path = self.folder / MESSAGE
        if not path.is_file():
            return None
        try:
            with safe_open(path, "pt") as file:
                same = (file.metadata() or {}).get("key") == key
                return bytes(file.get_tensor("upload").numpy().tobytes()) if same else None
        except SafetensorError as error:
            raise RunError(f"{path}: damaged ({error}); remove it, and the round is a new release") from error

    def keep_data(self, content: str) -> str:
        """Keep a hash of the data that the client was opened with; a mark that the server keeps for it.

        The mark says nothing of the data. Where the server sends another than is kept here, or the data have
        another hash, the server does not know what the client has.
        """
        mark = secrets.token_hex(4)
        self._write("data.json", {"hash": content, "mark": mark})
        return mark

    def knows(self, content: str, mark: str) -> bool:
        """Are these data and this mark those of the last opening?"""
        path = self.folder / "data.json"
        return path.is_file() and json.loads(path.read_text(encoding="utf-8")) == {"hash": content, "mark": mark}

    # -- how far the run is

    def opened(self) -> bool:
        """Was the client opened?"""
        return (self.folder / "data.json").is_file()

    def last_round(self) -> int | None:
        """The last round that was trained here; None before that."""
        return self._round(self.folder / LAST)

    def has_shared_projections(self) -> bool:
        """Are frames kept here?"""
        return (self.folder / SHARED_PROJECTIONS).is_file()

    def counted_round(self) -> int | None:
        """The round that the last one went on from, which therefore counts at the server; None before that."""
        return self._round(self.folder / BEFORE)

    def finished(self) -> bool:
        """Was the model made that is used in the end?"""
        return self.model.is_dir()

    @property
    def model(self) -> Path:
        """The folder of the model that is used in the end."""
        return self.folder / "model"

    # -- rounds

    def keep(self, number: int, counts: int, state: ClientState, own: Mapping[str, Tensor]) -> None:
        """Keep the state after round `number`, and beside it that after round `counts`, which it came from.

        `own`: what the start took from this client's labels.
        """
        last, before = self.folder / LAST, self.folder / BEFORE
        with whole_file(last) as path:
            facts = {"round": number, "steps": state.steps}
            tensors = {**state_tensors(state), **{f"{OWN}{name}": tensor for name, tensor in own.items()}}
            save_file(apart(tensors), path, {"trifed": json.dumps(facts)})
            if self._round(last) == counts:
                last.replace(before)
            elif counts == 0:
                before.unlink(missing_ok=True)

    def state_after(self, number: int, own: Mapping[str, Tensor]) -> ClientState | None:
        """The state after a round; None where it is not kept any more, or never was.

        Where the labels are others by now, what came from them at the start moves with them to `own`.
        """
        for path in (self.folder / LAST, self.folder / BEFORE):
            if self._round(path) == number:
                with safe_open(path, "pt") as file:
                    steps = json.loads(file.metadata()["trifed"])["steps"]
                found = load_file(path)
                state = state_of(found, steps)
                for name, now in own.items():
                    state.tensors[name] += now - found.get(f"{OWN}{name}", now)
                return state
        return None

    def restored(self) -> int:
        """The round of what lies there from a backup, now fit to go on from; 0 where nothing does.

        What is known of it at the other side of the wire is not what is kept here, so both begin anew with that.
        """
        number = self.last_round()
        if number is None:
            return 0
        with safe_open(self.folder / LAST, "pt") as file:
            told = file.metadata()
        found = {name: t for name, t in load_file(self.folder / LAST).items() if not name.startswith("wire/")}
        with whole_file(self.folder / LAST) as path:
            save_file(found, path, told)
        (self.folder / BEFORE).unlink(missing_ok=True)
        return number

    def _round(self, path: Path) -> int | None:
        if not path.is_file():
            return None
        try:
            with safe_open(path, "pt") as file:
                return int(json.loads(file.metadata()["trifed"])["round"])
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise RunError(f"{path}: damaged ({error}); remove it, and this client starts anew") from error

    def _write(self, name: str, value: Any) -> None:
        with whole_file(self.folder / name) as path:
            path.write_text(json.dumps(value), encoding="utf-8")
