"""Export a client's model as a folder that works without its run: tri-matrix, plain LoRA, or full weights."""

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
from trifed.export.card import ExportedModel, Form, model_card
from trifed.export.locate import FinishedRun, LocatedModel, open_run
from trifed.export.native_export import native_classifier
from trifed.federation.client_model import ClientModel, open_client
from trifed.tasks.prompts import CHAT

FORMS: tuple[Form, ...] = get_args(Form)
Progress = Callable[[int, int, str], None]
"""Called before each client: number of finished clients, number of all clients, the client's name."""


def export_client(
    run: str | Path, client: str, form: Form, to: str | Path | None = None, base: str | None = None
) -> Path:
    """Write one client's model of a finished run as a new folder with a model card; return the folder's path.

    The folder is written completely or not at all.

    Args:
        run: The run's folder.
        client: Name of the client.
        form: "tri-matrix", "lora", "lora-no-head" or "merged".
        to: The new folder; by default `RUN/exports/FORM/CLIENT`.
        base: Folder or hub name of the base model, if it has moved since the run; its fingerprint is checked.

    Raises:
        RunError: No finished run, no such client, another base model, or the target exists or cannot be written.
        AdapterError: The method's adapter cannot be exported in this form, or its files are not complete.
        ModelError: The base model cannot be loaded.
    """
    opened = open_run(run)
    located = opened.client(client)
    target = Path(to) if to is not None else _default_folder(opened, form) / client
    _write_folder(target, lambda folder: _export(opened, located, form, folder, base))
    return target


def export_clients(
    run: str | Path,
    form: Form,
    to: str | Path | None = None,
    base: str | None = None,
    progress: Progress = lambda done, total, name: None,
) -> Path:
    """Write every client's model, each in a folder of its name; return the folder above them.

    All folders are written, or none. Arguments and errors are those of `export_client`; the default target is
    `RUN/exports/FORM`.
    """
    opened = open_run(run)
    target = Path(to) if to is not None else _default_folder(opened, form)

    def write(folder: Path) -> None:
        for done, name in enumerate(opened.names):
            progress(done, len(opened.names), name)
            inner = folder / name
            inner.mkdir()
            _export(opened, opened.client(name), form, inner, base)

    _write_folder(target, write)
    return target


def _default_folder(run: FinishedRun, form: Form) -> Path:
    return run.folder.path / "exports" / form


def _write_folder(target: Path, write: Callable[[Path], None]) -> None:
    if not is_free(target):
        raise RunError(f"{target}: the folder exists already; give another one with --to, or remove it first")
    try:
        with whole_folder(target) as folder:
            write(folder)
    except (OSError, SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise RunError(f"{target}: cannot be written ({reason}); give another folder with --to") from error


def _export(run: FinishedRun, located: LocatedModel, form: Form, folder: Path, base: str | None) -> None:
    classifier = open_client(located.folder, base)
    _check_form(run, classifier, form)
    facts = json.loads((located.folder / "classifier.json").read_text(encoding="utf-8"))
    source = base or facts["base_model"]
    # The name instead of the source: the source of 'demo' is a path on this machine.
    base_model = base or run.config.model.name
    facts |= {"base_model": base_model, "client": located.name, "columns": asdict(located.columns)}
    if (
        located.columns.answers
        and located.columns.image
        and getattr(classifier.base.processor, "chat_template", None)
    ):
        facts = {"template": CHAT, **facts}  # the default of such a model; the run may have set another
    stock = None
    if form == "merged":
        stock = _write_merged(classifier, folder)
    else:
        _write_adapter(classifier.model.encoder, form, folder, source)
    if form != "lora-no-head":
        shutil.copyfile(located.folder / "head.safetensors", folder / "head.safetensors")
        (folder / "classifier.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(
        model_card(run, ExportedModel(located.name, form, facts, source, stock)), encoding="utf-8"
    )


def _check_form(run: FinishedRun, classifier: ClientModel, form: Form) -> None:
    encoder = classifier.model.encoder
    if not isinstance(encoder, PeftModel):
        possible: tuple[Form, ...] = ("merged",)
    elif isinstance(encoder.peft_config["default"], TriLoraConfig):
        possible = FORMS
    else:
        possible = tuple(name for name in FORMS if name != "tri-matrix")
    if classifier.settings.dtype in QUANTISED:
        possible = tuple(name for name in possible if name != "merged")  # its base would be rounded a second time
    if not classifier.task.labelled:
        possible = tuple(name for name in possible if name != "lora-no-head")  # these models have no head
    if form not in possible:
        raise AdapterError(
            f"{run.folder.path}: got the form '{form}', in which a client of method "
            f"'{run.config.method.name}' cannot be exported; expected one of {', '.join(possible)}"
        )


def _write_adapter(encoder: PeftModel, form: Form, folder: Path, base: str) -> None:
    encoder.peft_config["default"].base_model_name_or_path = base
    if isinstance(encoder.peft_config["default"], TriLoraConfig) and form != "tri-matrix":
        export_plain_lora(encoder, folder)
        return
    # "auto" would ask a hub if the embeddings were resized.
    encoder.save_pretrained(str(folder), save_embedding_layers=False)


def _write_merged(classifier: ClientModel, folder: Path) -> str | None:
    """Write full weights and the processor; return the name of the class that loads them with the head, if any."""
    model: Any = classifier.model
    if isinstance(model.encoder, PeftModel):
        model.encoder = model.encoder.merge_and_unload()
    stock = native_classifier(classifier) if classifier.task.labelled else model.encoder
    transformers_logging.disable_progress_bar()  # it would count one file
    try:
        (stock or model.encoder).save_pretrained(str(folder))
    finally:
        transformers_logging.enable_progress_bar()
    classifier.base.processor.save_pretrained(str(folder))
    return type(stock).__name__ if stock else None
