"""Locate clients' models in a run, an exported model, or a folder of exported models."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter

from trifed.common.errors import AdapterError, RunError, damage_in, nearest
from trifed.config.metrics import without_unknown_metrics
from trifed.config.roles import ROLES
from trifed.config.run import RunConfig, make_config
from trifed.config.settings import TAGGING, UNLABELLED, WRITING, TaskName, TrainingSettings
from trifed.config.toml_files import read_toml
from trifed.federation.run_folder import RunFolder

MAX_LISTED = 20
"""Largest number of names in one message."""

FLOAT32 = TrainingSettings(precision="fp32")

Target = Literal["class", "labels", "number"]
KINDS_OF_LABELS: dict[TaskName, Target] = {
    "multi-label-classification": "labels",
    "text-regression": "number",
}
"""Tasks whose label is no class."""


@dataclass(frozen=True)
class Columns:
    """Names of the columns that the model was trained on.

    Attributes:
        text: Column of the text, or of the prompt of a language model.
        pair: Column of the second text, or of the material of a prompt; None if the model reads one text.
        label: Column of the label, the answer or the caption; "" for a language model that was trained on texts.
        image: Column of the image; None if the model reads no images.
        answers: True for a language model, which answers prompts.
        matches: True for a model of images and captions.
        tags: True for a model that tags words; `text` is then the column of words, `label` that of tags.
        separator: Separator of the cells of CSV files, as in the training data; None for what a header shows.
        encoding: Encoding of the training data's files, for a file that is not UTF-8.
        chats: True for a language model that was trained on conversations; `text` names their column.
        sheet: Sheet of the training data's Excel files, for an Excel file that has one of this name.
        target: Kind of the label: a class, several labels, or a number.
        label_separator: What separates several labels in a text; None if they are lists.
    """

    text: str = "text"
    pair: str | None = None
    label: str = "label"
    image: str | None = None
    answers: bool = False
    matches: bool = False
    tags: bool = False
    separator: str | None = None
    encoding: str | None = None
    chats: bool = False
    sheet: str | None = None
    target: Target = "class"
    label_separator: str | None = None

    @property
    def kind(self) -> str:
        """The content of one row: "prompt", "sentence", "text" or "image"."""
        if self.answers or self.tags:
            return "prompt" if self.answers else "sentence"
        return "text" if self.image is None else "image"

    def override(self, text: str | None, pair: str | None, image: str | None) -> Columns:
        """Return the columns with the names that a user gave instead of those of the training data.

        Raises:
            RunError: The user named a column of a kind that the model does not read.
        """
        texts = self.answers or not self.image
        for flag, column, is_read in (
            ("--text-column", text, texts),
            ("--pair-column", pair, texts),
            ("--image-column", image, self.image),
        ):
            if column is not None and not is_read:
                raise RunError(f"{flag}: got '{column}', but this model reads {self.kind}s; leave the flag out")
        return replace(self, text=text or self.text, pair=pair or self.pair, image=image or self.image)


COLUMNS = TypeAdapter(Columns)


@dataclass(frozen=True)
class LocatedModel:
    """The folder of one client's model, and how the model is evaluated.

    A client inside its run is evaluated with the run's own training settings, so that the same rows give the same
    score. An export is evaluated in float32, as in any other program that loads it.
    """

    name: str
    folder: Path
    columns: Columns
    training: TrainingSettings = FLOAT32


@dataclass(frozen=True)
class FinishedRun:
    """The folder of a finished run with its configuration, summary and environment."""

    folder: RunFolder
    config: RunConfig
    summary: dict[str, Any]
    environment: dict[str, Any]

    @property
    def names(self) -> list[str]:
        """Names of the clients, in the run's order."""
        return [client["name"] for client in self.summary["clients"]]

    @property
    def columns(self) -> Columns:
        """The columns that the clients were trained on."""
        task, data = self.config.task, self.config.data
        image = data.image if "image" in {role.setting for role in ROLES[task]} else None
        if task in WRITING:
            prompt, answer = data.messages or data.prompt or data.text, data.answer or ""
            chats = data.messages is not None
            found = Columns(prompt, data.input, answer, image, answers=True, chats=chats)
        elif task in UNLABELLED:
            found = Columns(label=data.text, image=image, matches=True)
        elif task in TAGGING:
            found = Columns(data.text, None, data.label, tags=True)
        else:
            target = KINDS_OF_LABELS.get(task, "class")
            found = Columns(data.text, data.text_pair, data.label, image, target=target)
        return replace(
            found,
            separator=data.separator,
            encoding=data.encoding,
            sheet=data.sheet,
            label_separator=data.label_separator,
        )

    def client(self, name: str) -> LocatedModel:
        """Return one client's model; raises RunError if the run has no such client."""
        _check_client(name, self.names, self.folder.path)
        return LocatedModel(name, self.folder.path / "clients" / name, self.columns, self.config.training)


def open_run(path: str | Path) -> FinishedRun:
    """Open a finished run; a baseline's folder is `RUN/baselines/METHOD`.

    Raises:
        RunError: There is no run, or it is not finished.
    """
    folder = RunFolder.open(Path(path))
    if not (folder.path / "summary.json").is_file():
        raise RunError(f"{path}: this run is not finished; `trifed run --resume {path}` continues it")
    place = folder.path / "config.toml"
    config = make_config(without_unknown_metrics(read_toml(place)), str(place))
    run = FinishedRun(folder, config, folder.read_json("summary.json"), folder.read_json("environment.json"))
    with damage_in(folder.path / "summary.json", "put the file back, or run it again"):
        if not all(isinstance(name, str) for name in run.names):
            raise TypeError("a client's name is no text")
    return run


def locate_models(folder: str | Path, client: str | None) -> list[LocatedModel]:
    """Return the models in a folder: one client's, or every client's if `client` is "all".

    Args:
        folder: A run, an exported model, or a folder of exported models.
        client: Name of a client or "all"; None if the folder holds one model.

    Raises:
        RunError: No model, an unfinished run, no such client, or several clients and none chosen.
        AdapterError: An export without its head, which cannot classify.
    """
    path = Path(folder)
    if not path.is_dir():
        raise RunError(f"{path}: no such folder; give the folder of a run, as runs/NAME, or of an exported model")
    if (path / "config.toml").is_file():
        run = open_run(path)
        return [run.client(name) for name in _select(client, run.names, path)]
    if _is_model(path):
        model = _exported(path)
        _select(client, [model.name], path)
        return [model]
    names = sorted(inner.name for inner in path.iterdir() if inner.is_dir() and _is_model(inner))
    if not names:
        raise RunError(
            f"{path}: neither a run (it has no config.toml) nor an exported model (no classifier.json); give the "
            f"folder of a run, as runs/NAME, or one that `trifed export` wrote"
        )
    return [_exported(path / name) for name in _select(client, names, path)]


def locate_model(folder: str | Path, client: str | None) -> LocatedModel:
    """Return one client's model; see `locate_models` for arguments and errors.

    Raises:
        RunError: Also if `client` is "all" and there are several.
    """
    models = locate_models(folder, client)
    if len(models) > 1:
        raise RunError(f"{folder}: got --client {client}, but this takes one client; name one with --client")
    return models[0]


def _check_client(name: str, names: Sequence[str], where: Path) -> None:
    if name not in names:
        raise RunError(f"{where}: no client '{name}' here{nearest(name, names)}; there are: {join_names(names)}")


def _select(client: str | None, names: Sequence[str], where: Path) -> list[str]:
    if client == "all" or (client is None and len(names) == 1):
        return list(names)
    if client is None:
        raise RunError(f"{where}: several clients here; choose one with --client: {join_names(names)}")
    _check_client(client, names, where)
    return [client]


def join_names(names: Sequence[str]) -> str:
    """Return the names with commas, at most `MAX_LISTED` of them."""
    more = f", and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else ""
    return ", ".join(names[:MAX_LISTED]) + more


def _is_model(folder: Path) -> bool:
    return (folder / "classifier.json").is_file() or (folder / "adapter_config.json").is_file()


def _exported(folder: Path) -> LocatedModel:
    if not (folder / "classifier.json").is_file():
        raise AdapterError(
            f"{folder}: an adapter without its head, which cannot classify; export the client again with "
            f"--form lora or --form merged"
        )
    with damage_in(folder / "classifier.json", "export the client again", AdapterError):
        facts = json.loads((folder / "classifier.json").read_text(encoding="utf-8"))
        if not isinstance(facts, dict):
            raise TypeError("expected a JSON object")
        if "columns" in facts:
            return LocatedModel(str(facts["client"]), folder, COLUMNS.validate_python(facts["columns"]))
    run, name = folder.resolve().parents[1], folder.resolve().name
    if (run / "summary.json").is_file():
        return open_run(run).client(name)
    return LocatedModel(name, folder, Columns())  # a client's folder that was copied out of its run
