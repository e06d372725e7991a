"""A client's model as a folder that works elsewhere: tri-matrix, plain LoRA, or full weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

from peft import PeftModel
from safetensors import SafetensorError
from transformers.utils import logging as transformers_logging

from trifed.adapters import TriLoraConfig, export_plain_lora
from trifed.common.errors import AdapterError, RunError
from trifed.common.files import is_free, whole_folder
from trifed.config.settings import QUANTISED
from trifed.export.card import Exported, Form, model_card
from trifed.export.locate import FinishedRun, LocatedModel, open_run
from trifed.export.native_export import native_classifier
from trifed.federation.client_model import ClientModel, open_client
from trifed.tasks.prompts import CHAT

FORMS: tuple[Form, ...] = get_args(Form)
Told = Callable[[int, int, str], None]
"""Hears how many clients are done, of how many, and whose turn it is."""


def quiet(done: int, total: int, name: str) -> None:
    """A listener that says nothing."""


def export_client(
    run: str | Path, client: str, form: Form, to: str | Path | None = None, base: str | None = None
) -> Path:
    """Write one client's model of a finished run as a new folder, with a model card; returns its path.

    `to`: the new folder, `RUN/exports/FORM/CLIENT` unless given. `base`: where the base model lies now, if not
    where it lay in the run; its fingerprint is checked. The folder appears whole or not at all.

    Raises:
        RunError: no finished run, no such client, another base model, the target exists or cannot be written.
        AdapterError: the method's adapter cannot be given in this form, or its files are not whole.
        ModelError: the base model cannot be loaded.
    """
    opened = open_run(run)
    found = opened.client(client)
    target = Path(to) if to is not None else _home(opened, form) / client
    _write_whole(target, lambda folder: _export(opened, found, form, folder, base))
    return target


def export_clients(
    run: str | Path, form: Form, to: str | Path | None = None, base: str | None = None, told: Told = quiet
) -> Path:
    """Write every client's model, each in a folder of its name; returns the folder above them, all or nothing.

    Arguments and errors are those of `export_client`; the default target is `RUN/exports/FORM`.
    """
    opened = open_run(run)
    target = Path(to) if to is not None else _home(opened, form)

    def write(folder: Path) -> None:
        for done, name in enumerate(opened.names):
            told(done, len(opened.names), name)
            inner = folder / name
            inner.mkdir()
            _export(opened, opened.client(name), form, inner, base)

    _write_whole(target, write)
    return target


def _home(run: FinishedRun, form: Form) -> Path:
    return run.folder.path / "exports" / form


def _write_whole(target: Path, write: Callable[[Path], None]) -> None:
    if not is_free(target):
        raise RunError(f"{target}: something is there already; give another folder with --to, or remove it first")
    try:
        with whole_folder(target) as folder:
            write(folder)
    except (OSError, SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise RunError(f"{target}: cannot be written ({reason}); give another folder with --to") from error


def _export(run: FinishedRun, found: LocatedModel, form: Form, folder: Path, base: str | None) -> None:
    classifier = open_client(found.folder, base)
    _check_form(run, classifier, form)
    facts = json.loads((found.folder / "classifier.json").read_text(encoding="utf-8"))
    source = base or facts["base_model"]
    # Not the source: of 'demo' that is a place on this machine.
    base_model = base or run.config.model.name
    facts |= {"base_model": base_model, "client": found.name, "columns": asdict(found.columns)}
    if found.columns.answers and found.columns.image and getattr(classifier.base.processor, "chat_template", None):
        facts = {"template": CHAT, **facts}  # what such a model reads unless the run names another
    stock = None
    if form == "merged":
        stock = _write_merged(classifier, folder)
    else:
        _write_adapter(classifier.model.encoder, form, folder, source)
    if form != "lora-no-head":
        shutil.copyfile(found.folder / "head.safetensors", folder / "head.safetensors")
        _write(folder / "classifier.json", json.dumps(facts, indent=2) + "\n")
    _write(folder / "README.md", model_card(run, Exported(found.name, form, facts, source, stock)))


def _check_form(run: FinishedRun, classifier: ClientModel, form: Form) -> None:
    encoder = classifier.model.encoder
    if not isinstance(encoder, PeftModel):
        possible: tuple[Form, ...] = ("merged",)
    elif isinstance(encoder.peft_config["default"], TriLoraConfig):
        possible = FORMS
    else:
        possible = tuple(name for name in FORMS if name != "tri-matrix")
    if classifier.settings.dtype in QUANTISED:
        possible = tuple(name for name in possible if name != "merged")  # the base would be rounded once more
    if not classifier.task.labelled:
        possible = tuple(name for name in possible if name != "lora-no-head")  # there is none to leave
    if form not in possible:
        raise AdapterError(
            f"{run.folder.path}: got the form '{form}', which a client of method "
            f"'{run.config.method.name}' cannot be given in; expected one of {', '.join(possible)}"
        )


def _write_adapter(encoder: PeftModel, form: Form, folder: Path, base: str) -> None:
    encoder.peft_config["default"].base_model_name_or_path = base
    if isinstance(encoder.peft_config["default"], TriLoraConfig) and form != "tri-matrix":
        export_plain_lora(encoder, folder)
        return
    # "auto" would ask a hub whether the embeddings were resized.
    encoder.save_pretrained(str(folder), save_embedding_layers=False)


def _write_merged(classifier: ClientModel, folder: Path) -> str | None:
    """Full weights and what makes the inputs; the name of the stock class that loads them, if there is one."""
    model: Any = classifier.model
    if isinstance(model.encoder, PeftModel):
        model.encoder = model.encoder.merge_and_unload()
    stock = native_classifier(classifier) if classifier.task.labelled else model.encoder
    transformers_logging.disable_progress_bar()  # of one file, which tells nobody anything
    try:
        (stock or model.encoder).save_pretrained(str(folder))
    finally:
        transformers_logging.enable_progress_bar()
    classifier.base.processor.save_pretrained(str(folder))
    return type(stock).__name__ if stock else None


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
