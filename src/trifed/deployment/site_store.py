"""A site's files: what it keeps of a run on its own disk.

::

    FOLDER/bases.json             the weights of every base model when it was first loaded here, sha256
    FOLDER/columns.json           the columns of each source of data that the first run here has read
    FOLDER/labels.json            the labels that the first run here has named, by source and column
    FOLDER/RUN/
        run.json                  the run's settings as the server sent them
        data.json                 a hash of the data that the client was opened with, and a mark for the server
        frames.safetensors        A, B and the start of C, where a method agrees on them before round 1
        state.safetensors         after the last round: A, B, head, AdamW's moments, the upload's memory
        state-before.safetensors  the state that the last round continued, if its upload does not reach the server
        states/                   the states before that one, to which the run can go back
        message.safetensors       with [privacy] or [sealing]: the last upload, to be sent again as it was
        sums.json                 in a sealed run: what was sent in which sums (`sum_record`)
        privacy/                  with [privacy]: the ledger, and the noised summary
        model/                    the final model, as `trifed run` writes a client's

Every file is replaced atomically. Anyone who can read the folder can read the client's adapter.
"""

from __future__ import annotations

import json
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from trifed.common.errors import RunError
from trifed.common.files import whole_file
from trifed.federation.client_update import ClientState
from trifed.federation.run_folder import SHARED_PROJECTIONS, RunFolder
from trifed.federation.sealed.upload import OWN
from trifed.federation.state_tensors import apart, open_tensors, state_of, state_tensors
from trifed.methods.packing import Tensors

LAST, BEFORE, EARLIER = "state.safetensors", "state-before.safetensors", "states"
MESSAGE, BASES, LOCAL_INIT = "message.safetensors", "bases.json", "own/"
COLUMNS, LABELS = "columns.json", "labels.json"


def first_known(folder: Path, file: str, name: str, value: str) -> str:
    """Return what a name stood for when it was first used at this site, such as the weights of a base model.

    On the first use that is `value`, which is written down.

    Args:
        folder: The site's folder.
        file: Name of the JSON file in it.
        name: The model or the source of data.
        value: What it stands for now.

    Raises:
        RunError: the file cannot be read or written.
    """
    path = folder / file
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        known: dict[str, str] = RunFolder(folder).read_json(file, {})
        if name not in known:
            known[name] = value
            RunFolder(folder).write_json(file, known, durable=True)
    except OSError as error:
        raise RunError(f"{path}: cannot be kept ({error.strerror}); name another folder") from error
    except ValueError as error:
        raise RunError(f"{path}: damaged ({error}); put it back from a backup, or remove it") from error
    return known[name]


@dataclass(frozen=True)
class SiteStore:
    """One run's folder at a site."""

    folder: Path

    @property
    def _files(self) -> RunFolder:
        return RunFolder(self.folder)

    @property
    def model(self) -> Path:
        """The folder of the final model."""
        return self.folder / "model"

    @classmethod
    def at(cls, folder: Path, settings: Mapping[str, Any]) -> SiteStore:
        """Return the store in a run's folder, with the run's settings written; make the folder if needed.

        Raises:
            RunError: the folder cannot be written.
        """
        store = cls(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise RunError(f"{folder}: cannot be made ({error.strerror}); name another folder") from error
        if cls.settings_of(folder) != settings:
            store._files.write_json("run.json", {"settings": settings})
        return store

    @staticmethod
    def settings_of(folder: Path) -> dict[str, Any] | None:
        """Return the settings of the run in a folder; None if there is none."""
        settings: dict[str, Any] | None = RunFolder(folder).read_json("run.json", {}).get("settings")
        return settings

    def reset(self) -> None:
        """Remove all rounds; what they have cost in privacy stays in the ledger."""
        for name in (LAST, BEFORE, MESSAGE, SHARED_PROJECTIONS):
            (self.folder / name).unlink(missing_ok=True)
        shutil.rmtree(self.folder / EARLIER, ignore_errors=True)

    # -- before the first round

    def save_shared_projections(self, projections: Tensors) -> None:
        """Save the projections that the server computed from all clients' gradients."""
        tensors = {name: torch.from_numpy(values) for name, values in projections.items()}
        self._files.write_tensors(SHARED_PROJECTIONS, tensors, {}, durable=True)

    def has_shared_projections(self) -> bool:
        """Return True if projections were saved."""
        return (self.folder / SHARED_PROJECTIONS).is_file()

    def shared_projections(self) -> Tensors | None:
        """Return the saved projections; None if there are none."""
        return self._files.read_arrays(SHARED_PROJECTIONS) if self.has_shared_projections() else None

    def has_other_shared_projections(self, projections: Tensors) -> bool:
        """Return True if projections were saved that differ from these."""
        saved = self.shared_projections() or projections
        return saved.keys() != projections.keys() or not all(
            np.array_equal(saved[name], projections[name]) for name in saved
        )

    def save_data_hash(self, data_hash: str) -> str:
        """Save the hash of the data that the client was opened with; return a random mark for the server.

        If the server later sends another mark, or the data have another hash, client and server disagree about
        the client's data.
        """
        mark = secrets.token_hex(4)
        self._files.write_json("data.json", {"hash": data_hash, "mark": mark}, durable=True)
        return mark

    def has_data(self, data_hash: str, mark: str) -> bool:
        """Return True if hash and mark are those of the last opening."""
        return bool(self._files.read_json("data.json", {}) == {"hash": data_hash, "mark": mark})

    # -- phases

    def opened(self) -> bool:
        """Return True if the client was opened."""
        return (self.folder / "data.json").is_file()

    def last_round(self) -> int | None:
        """Return the last round that was trained here; None before the first."""
        return self._facts(self.folder / LAST).get("round")

    def counted_round(self) -> int | None:
        """Return the round that the last one continued, which therefore counts at the server; None before it."""
        last, before = self._facts(self.folder / LAST), self._facts(self.folder / BEFORE)
        found: int | None = last.get("counts", before.get("round"))
        return found

    def goes_back(self, number: int, counts: int) -> bool:
        """Return True if round `number`, continuing round `counts`, would undo rounds that were done here."""
        return number < (self.last_round() or 0) or counts < (self.counted_round() or 0)

    def finished(self) -> bool:
        """Return True if the final model was saved."""
        return self.model.is_dir()

    # -- rounds

    def save_round(
        self, number: int, counts: int, state: ClientState, local_init: Mapping[str, Tensor], keep: int = 1
    ) -> None:
        """Save the state after round `number`.

        Args:
            number: The round.
            counts: The round that it continued; later rounds are undone, their states and the final model removed.
            state: The state.
            local_init: Initial tensors derived from the client's labels.
            keep: Number of states of earlier rounds that are kept, that after round `counts` included.
        """
        beginning = self._facts_after(counts).get("beginning", "")
        facts = {"round": number, "steps": state.steps, "counts": counts, "beginning": beginning}
        tensors = state_tensors(state) | {f"{LOCAL_INIT}{name}": part for name, part in local_init.items()}
        with whole_file(self.folder / LAST, durable=True) as path:
            save_file(apart(tensors), path, {"trifed": json.dumps(facts)})
            self._keep(counts, keep)
        shutil.rmtree(self.model, ignore_errors=True)

    def _keep(self, counts: int, most: int) -> None:
        """Make the state after round `counts` the one before the last, and keep `most` states up to it."""
        states, before, earlier = self._states(), self.folder / BEFORE, self.folder / EARLIER
        if counts not in states:
            before.unlink(missing_ok=True)
        elif states[counts] != before:
            if before.is_file():
                earlier.mkdir(exist_ok=True)
                before.replace(earlier / f"round-{self._facts(before)['round']:04d}.safetensors")
            states[counts].replace(before)
        wanted = sorted(number for number in states if number <= counts)[-most:]
        for number, path in self._earlier().items():
            if number not in wanted:
                path.unlink()

    def state_after(
        self, number: int, local_init: Mapping[str, Tensor], beginning: object = None
    ) -> ClientState | None:
        """Return the state after a round; None if it is lost.

        If the labels have changed since, the part of the state that came from them moves to `local_init`.

        Args:
            number: The round.
            local_init: Initial tensors derived from the client's labels.
            beginning: The mark of the last `rebase` that the server knows of, "" before any. With another one its
                reference is not that of the state, which is lost then. None: not compared.
        """
        facts = self._facts_after(number)
        if not facts or beginning not in (None, facts.get("beginning", "")):
            return None
        arrays = load_file(self._states()[number])
        state = state_of(arrays, facts["steps"])
        for tensor, now in local_init.items():
            state.tensors[tensor] += now - arrays.get(f"{LOCAL_INIT}{tensor}", now)
        return state

    def rebase(self) -> tuple[int, str]:
        """Make the last state a new beginning for both sides; return its round and a mark, 0 and "" without one.

        After a restored backup the server's reference for this client is another than the one here, so both drop
        theirs. Which rows are the client's own in a sealed run stays: the server has none to put in their place.
        """
        facts = self._facts(self.folder / LAST)
        if not facts:
            return 0, ""
        rest = {
            name: array
            for name, array in load_file(self.folder / LAST).items()
            if name == f"wire/{OWN}" or not name.startswith("wire/")
        }
        facts |= {"counts": facts["round"], "beginning": secrets.token_hex(4)}
        self._files.write_tensors(LAST, rest, {"trifed": json.dumps(facts)}, durable=True)
        (self.folder / BEFORE).unlink(missing_ok=True)
        shutil.rmtree(self.folder / EARLIER, ignore_errors=True)
        return facts["round"], facts["beginning"]

    def save_upload(self, key: str, upload: bytes) -> None:
        """Save an upload before it is released; `key` identifies the request that it answers."""
        tensor = torch.frombuffer(bytearray(upload), dtype=torch.uint8)
        self._files.write_tensors(MESSAGE, {"upload": tensor}, {"key": key}, durable=True)

    def upload_for(self, key: str) -> bytes | None:
        """Return the upload that answered a request with this key; None if there is none."""
        path = self.folder / MESSAGE
        if not path.is_file():
            return None
        with open_tensors(path, "remove it, and the round is a new release") as file:
            same = (file.metadata() or {}).get("key") == key
            return bytes(file.get_tensor("upload").numpy().tobytes()) if same else None

    # -- files

    def rounds(self) -> list[int]:
        """Return the rounds whose states are kept, in order."""
        return sorted(self._states())

    def _states(self) -> dict[int, Path]:
        """Return the file of each state that is kept, by its round."""
        files = [path for path in (self.folder / BEFORE, self.folder / LAST) if path.is_file()]
        return self._earlier() | {self._facts(path)["round"]: path for path in files}

    def _earlier(self) -> dict[int, Path]:
        """Return the files of the states before the last two, by their rounds."""
        files = (self.folder / EARLIER).glob("round-*.safetensors")
        return {int(path.stem.rpartition("-")[2]): path for path in files}

    def _facts_after(self, number: int) -> dict[str, Any]:
        """Return the facts of the state after a round; empty if there is none."""
        path = self._states().get(number)
        return self._facts(path) if path else {}

    def _facts(self, path: Path) -> dict[str, Any]:
        """Return round, steps and the round that was continued of a state's file; empty if there is none."""
        if not path.is_file():
            return {}
        with open_tensors(path, "remove it, and this client starts anew") as file:
            facts = json.loads(file.metadata()["trifed"])
            return {**facts, "round": int(facts["round"])}
