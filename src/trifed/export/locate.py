"""Find clients' models by what a person names: a run, one exported model, or a folder of exported models."""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from trifed.common.errors import AdapterError, RunError
from trifed.config.run import RunConfig, make_config, read_toml
from trifed.config.settings import TrainingSettings
from trifed.federation.run_folder import RunFolder
from trifed.tasks import TASKS

ALL = "all"
SHOWN = 20
"""Names that are listed in one sentence."""


FLOAT32 = TrainingSettings(precision="fp32")


@dataclass(frozen=True)
class Columns:
    """Names of the columns that the model was trained on.

    `pair`: None where it reads one text; `image`: None where it reads texts; `answers`: it is a language model,
    which reads a prompt as text, and as pair, where there is one, what that is about; its label is the answer, or
    "" where it was trained on texts; `matches`: it says which text fits an image, and its label is the caption.
    """

    text: str = "text"
    pair: str | None = None
    label: str = "label"
    image: str | None = None
    answers: bool = False
    matches: bool = False

    @property
    def kind(self) -> str:
        """What one row holds, in a word."""
        if self.answers:
            return "prompt"
        return "text" if self.image is None else "image"


def named(columns: Columns, text: str | None, pair: str | None, image: str | None) -> Columns:
    """The columns, with those in the place of the trained ones that a user named.

    Raises:
        RunError: a column of what the model does not read.
    """
    wrong = {} if columns.image else {"--image-column": image}
    if columns.image and not columns.answers:
        wrong = {"--text-column": text, "--pair-column": pair}
    for flag, column in wrong.items():
        if column is not None:
            raise RunError(f"{flag}: got '{column}', but this model reads {columns.kind}s")
    return replace(columns, text=text or columns.text, pair=pair or columns.pair, image=image or columns.image)


@dataclass(frozen=True)
class LocatedModel:
    """One client's model. `folder`: what `load_client` takes; `training`: what it is measured by.

    A client inside its run is measured by the run's own settings, so that the same rows give the same score; an
    export in float32, as whoever loads it computes.
    """

    name: str
    folder: Path
    columns: Columns
    training: TrainingSettings = FLOAT32


@dataclass(frozen=True)
class FinishedRun:
    """A finished run's folder and its three descriptions, as `trifed run` wrote them."""

    folder: RunFolder
    config: RunConfig
    summary: dict[str, Any]
    environment: dict[str, Any]

    @property
    def names(self) -> list[str]:
        """The clients, in the run's order."""
        return [client["name"] for client in self.summary["clients"]]

    @property
    def columns(self) -> Columns:
        """What the clients were trained on."""
        task, data = TASKS[self.config.task], self.config.data
        reads = {role.setting for role in task.roles}
        image = data.image if "image" in reads else None
        if task.output == "answer":
            return Columns(data.prompt or data.text, data.input, data.answer or "", image, answers=True)
        if task.output == "match":
            return Columns(label=data.text, image=image, matches=True)
        return Columns(data.text, data.text_pair, data.label, image)

    def client(self, name: str) -> LocatedModel:
        """One client.

        Raises:
            RunError: there is no such client.
        """
        check_client(name, self.names, self.folder.path)
        return LocatedModel(name, self.folder.path / "clients" / name, self.columns, self.config.training)


def open_run(path: str | Path) -> FinishedRun:
    """A finished run; a baseline's lies under `RUN/baselines/METHOD`.

    Raises:
        RunError: no run there, or it is not finished.
    """
    folder = RunFolder.open(Path(path))
    if not (folder.path / "summary.json").is_file():
        raise RunError(f"{path}: this run is not finished; `trifed run --resume {path}` continues it")
    config = make_config(read_toml(folder.path / "config.toml"), str(folder.path / "config.toml"))
    return FinishedRun(folder, config, folder.read_json("summary.json"), folder.read_json("environment.json"))


def locate_models(place: str | Path, client: str | None) -> list[LocatedModel]:
    """The models that `place` holds: of one client, or of every one if `client` is "all".

    `place`: a run, an exported model, or a folder of exported models. `client` may be
    None where there is one model.

    Raises:
        RunError: nothing usable there, an unfinished run, no such client, or several and none chosen.
        AdapterError: an export without its head, which cannot classify.
    """
    path = Path(place)
    if not path.is_dir():
        raise RunError(f"{path}: no such folder; give the folder of a run, as runs/NAME, or of an exported model")
    if (path / "config.toml").is_file():
        run = open_run(path)
        return [run.client(name) for name in _chosen(client, run.names, path)]
    if _is_model(path):
        found = _exported(path)
        _chosen(client, [found.name], path)
        return [found]
    names = sorted(inner.name for inner in path.iterdir() if inner.is_dir() and _is_model(inner))
    if not names:
        raise RunError(
            f"{path}: neither a run (it has no config.toml) nor an exported model (no classifier.json); give the "
            f"folder of a run, as runs/NAME, or what `trifed export` wrote"
        )
    return [_exported(path / name) for name in _chosen(client, names, path)]


def locate_model(place: str | Path, client: str | None) -> LocatedModel:
    """One client's model; see `find_models` for places and errors.

    Raises:
        RunError: as there; or "all" where there are several.
    """
    found = locate_models(place, client)
    if len(found) > 1:
        raise RunError(f"{place}: one client is asked at a time, got '{client}'; name one with --client")
    return found[0]


def check_client(name: str, names: Sequence[str], where: Path) -> None:
    """Refuse a client that is not there.

    Raises:
        RunError: names those that are.
    """
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
        guess = f"did you mean '{near[0]}'? " if near else ""
        raise RunError(f"{where}: no client '{name}' here; {guess}there are: {listed(names)}")


def _chosen(client: str | None, names: Sequence[str], where: Path) -> list[str]:
    if client == ALL or (client is None and len(names) == 1):
        return list(names)
    if client is None:
        raise RunError(f"{where}: several clients here; choose one with --client: {listed(names)}")
    check_client(client, names, where)
    return [client]


def listed(names: Sequence[str]) -> str:
    """The names with commas, at most `SHOWN` of them."""
    more = f", and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _is_model(folder: Path) -> bool:
    return (folder / "classifier.json").is_file() or (folder / "adapter_config.json").is_file()


def _exported(folder: Path) -> LocatedModel:
    if not (folder / "classifier.json").is_file():
        raise AdapterError(
            f"{folder}: an adapter without its head, which cannot classify; export the client again with "
            f"--form lora or --form merged"
        )
    try:
        facts = json.loads((folder / "classifier.json").read_text(encoding="utf-8"))
        if not isinstance(facts, dict):
            raise ValueError("it holds no JSON object")
        if "columns" in facts:
            return LocatedModel(str(facts["client"]), folder, Columns(**facts["columns"]))
    except (ValueError, TypeError, KeyError) as error:
        raise AdapterError(f"{folder}: classifier.json is damaged ({error}); export the client again") from error
    run, name = folder.resolve().parents[1], folder.resolve().name
    if (run / "summary.json").is_file():
        return open_run(run).client(name)
    return LocatedModel(name, folder, Columns())  # a client's folder, copied elsewhere
