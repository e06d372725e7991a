"""Export a client's model as a folder that works without its run: tri-matrix, plain LoRA, or full weights."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from jinja2 import UndefinedError
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from transformers import PreTrainedModel

from trifed.adapters import TriLoraConfig, export_plain_lora
from trifed.adapters.attach import save_adapter
from trifed.adapters.mixture import LoraMixtureConfig
from trifed.common.errors import AdapterError, RunError, damage_in
from trifed.common.files import is_free, whole_folder
from trifed.config.settings import QUANTISED, ModelSettings, TaskName
from trifed.export.card import Form, model_card
from trifed.export.locate import FinishedRun, LocatedModel, open_run
from trifed.federation.client_model import ClientModel, open_client
from trifed.tasks.base import inputs_of
from trifed.tasks.base_model import quiet_transformers
from trifed.tasks.prompts import CHAT
from trifed.tasks.text_regression import mean_of, scale_of
from trifed.tasks.token_classification import MARK

TOLERANCE = 1e-5
"""Largest difference of logits, relative and absolute, with which two models count as equal."""
TASK_TYPES: dict[TaskName, str] = {"causal-lm": "CAUSAL_LM", "sequence-to-sequence": "SEQ_2_SEQ_LM"}
"""PEFT's names of tasks, by which others choose the class that loads an adapter's base."""
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
    target = Path(to or opened.folder.path / "exports" / form / client)
    with _new_folder(target) as folder:
        _export(opened, located, form, folder, base)
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
    target = Path(to or opened.folder.path / "exports" / form)
    with _new_folder(target) as folder:
        for done, name in enumerate(opened.names):
            progress(done, len(opened.names), name)
            (folder / name).mkdir()
            _export(opened, opened.client(name), form, folder / name, base)
    return target


@contextmanager
def _new_folder(target: Path) -> Iterator[Path]:
    """Yield a folder that is renamed to `target` at the end of the block; raise RunError if that is impossible."""
    if not is_free(target):
        raise RunError(f"{target}: the folder exists already; give another one with --to, or remove it first")
    try:
        with whole_folder(target) as folder:
            yield folder
    except (OSError, SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise RunError(f"{target}: cannot be written ({reason}); give another folder with --to") from error


def _export(run: FinishedRun, located: LocatedModel, form: Form, folder: Path, base: str | None) -> None:
    classifier = open_client(located.folder, base)
    _check_form(run, classifier, form)
    facts = json.loads((located.folder / "classifier.json").read_text(encoding="utf-8"))
    source = str(Path(base).absolute()) if base and Path(base).is_dir() else base or facts["base_model"]
    columns, name = located.columns, run.config.model.name
    facts |= {
        # For the demo's model the source is a path inside of a package on this machine.
        "base_model": source if base or (name != "demo" and Path(source).is_dir()) else name,
        "client": located.name,
        "columns": asdict(columns),
    }
    if columns.answers and columns.image and getattr(classifier.base.processor, "chat_template", None):
        facts = {"template": CHAT, **facts}  # the default of such a model; the run may have set another
    stock = None
    if form == "merged":
        stock = _write_merged(classifier, folder)
    else:
        encoder: Any = classifier.model.encoder
        if run.config.task in TASK_TYPES and form != "tri-matrix":
            encoder.peft_config["default"].task_type = TASK_TYPES[run.config.task]
        _write_adapter(encoder, form, folder, source)
        if classifier.task.output == "answer":
            _write_what_generates(classifier, folder)
    if form == "merged" and Path(facts["base_model"]).is_dir():
        facts["base_model"] = Path(facts["base_model"]).name  # it is not needed, and its path is nobody's business
    if form != "lora-no-head":
        _copy_head(located.folder, folder, form)
        (folder / "classifier.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    way_out = "put summary.json and environment.json back, or run it again"
    with damage_in(run.folder.path, way_out, also=(UndefinedError,)):
        card = model_card(run, form, facts, source, stock)
    (folder / "README.md").write_text(card, encoding="utf-8")


def _copy_head(client: Path, folder: Path, form: Form) -> None:
    """Copy the head; a file without a tensor is not put beside full weights, whose loaders read each file."""
    head = client / "head.safetensors"
    if form != "merged" or load_file(head):
        shutil.copyfile(head, folder / head.name)


def _check_form(run: FinishedRun, classifier: ClientModel, form: Form) -> None:
    encoder = classifier.model.encoder
    adapter = encoder.peft_config["default"] if isinstance(encoder, PeftModel) else None
    if isinstance(adapter, LoraMixtureConfig):
        raise AdapterError(
            f"{run.folder.path}: got the form '{form}', but a client of '{run.config.method.name}' cannot be "
            f"exported: it weighs two LoRAs by the input, which no plain LoRA or weight can compute; use it with "
            f"`trifed predict`, `trifed evaluate` or trifed.load_client"
        )
    possible: dict[Form, bool] = {
        "tri-matrix": isinstance(adapter, TriLoraConfig),
        "lora": adapter is not None,
        # Servers that read no head read no norms either.
        "lora-no-head": adapter is not None and classifier.task.has_head and not adapter.modules_to_save,
        "merged": classifier.settings.dtype not in QUANTISED,  # such a base would be rounded a second time
    }
    if not possible.get(form):
        raise AdapterError(
            f"{run.folder.path}: got the form '{form}', in which a client of method '{run.config.method.name}' "
            f"cannot be exported; expected one of {', '.join(name for name, works in possible.items() if works)}"
        )


def _write_adapter(encoder: PeftModel, form: Form, folder: Path, base: str) -> None:
    config = encoder.peft_config["default"]
    config.base_model_name_or_path = base
    if isinstance(config, TriLoraConfig) and form != "tri-matrix":
        export_plain_lora(encoder, folder)
    else:
        save_adapter(encoder, folder)


def _write_what_generates(classifier: ClientModel, folder: Path) -> None:
    """Write the tokenizer or processor, and the base's settings of generation, as servers of adapters expect."""
    base: Any = classifier.base.model
    classifier.base.processor.save_pretrained(str(folder))
    if getattr(base, "generation_config", None) is not None:
        base.generation_config.save_pretrained(str(folder))


def _write_merged(classifier: ClientModel, folder: Path) -> str | None:
    """Write full weights and the processor; return the name of the class that loads them with the head, if any."""
    model: Any = classifier.model
    if isinstance(model.encoder, PeftModel):
        untied = untie_adapted_layers(model.encoder)
        model.encoder = model.encoder.merge_and_unload()
        if untied and model.encoder.config.is_encoder_decoder:
            # T5 takes the scale of its outputs from it; weights that differ in a file are not tied.
            model.encoder.config.tie_word_embeddings = True
    stock = native_classifier(classifier) if classifier.task.has_head else model.encoder
    with quiet_transformers():
        (stock or model.encoder).save_pretrained(str(folder))
    classifier.base.processor.save_pretrained(str(folder))
    return type(stock).__name__ if stock else None


def untie_adapted_layers(encoder: PeftModel) -> bool:
    """Give adapted layers weights of their own where the base shares them, as output layers often do.

    Merged into the common weight, the adapter would change the other layers too. Each of those gets a copy, for a
    file without it would have to say which of them are still equal.

    Returns:
        Whether there are such layers.
    """
    base: Any = encoder.get_base_model()
    places = Counter(id(param) for _, param in base.named_parameters(remove_duplicate=False))
    layers = [part.get_base_layer() for part in base.modules() if isinstance(part, BaseTunerLayer)]
    tied = {id(layer.weight) for layer in layers if places[id(layer.weight)] > 1}
    first: dict[int, nn.Parameter] = {}
    for part in base.modules():
        for name, param in list(part.named_parameters(recurse=False)):
            if id(param) in tied and id(param) in first:
                setattr(part, name, nn.Parameter(param.detach().clone(), requires_grad=False))
            elif id(param) in tied:
                first[id(param)] = param
    for config in (base.config, base.config.get_text_config()) if tied else ():
        config.tie_word_embeddings = False
    return bool(tied)


def native_classifier(merged: ClientModel) -> PreTrainedModel | None:
    """Return the transformers class with the weights of `merged`, or None if no class computes the same.

    Many architectures have another pooling or a dense layer between the encoder and the last layer. Instead of a
    table of architectures, the class is filled with the weights and compared on a few examples.
    """
    if merged.task.native_class is None:
        return None
    encoder: Any = merged.model.encoder
    head: Any = merged.model.head
    config = type(encoder.config).from_dict(encoder.config.to_dict())
    number = merged.task.output == "number"
    labels = ["number"] if number else merged.labels
    config.update(
        {
            "id2label": dict(enumerate(labels)),
            "label2id": {label: place for place, label in enumerate(labels)},
            "problem_type": PROBLEM_TYPES.get(merged.task.output, PROBLEM_TYPES["label"]),
        }
    )
    try:
        with torch.random.fork_rng(devices=[]):
            stock = merged.task.native_class.from_config(config, trust_remote_code=False)
    except ValueError:  # transformers has no such class for this architecture
        return None
    inner, last = getattr(stock, stock.base_model_prefix, None), getattr(stock, "classifier", None)
    if inner is None or not isinstance(last, nn.Linear) or last.weight.shape != head.weight.shape:
        return None
    expected = inner.state_dict().keys()
    # The classes that do not use the pooler do not have its weights either.
    weights = {k: v for k, v in encoder.state_dict().items() if k in expected or not k.startswith("pooler.")}
    if weights.keys() != expected:
        return None
    inner.load_state_dict(weights)
    last.load_state_dict(head.state_dict())
    if not _same_logits(merged, stock):
        return None
    if number:
        in_units(last, merged.settings)
    return stock.eval()


PROBLEM_TYPES = {
    "label": "single_label_classification",
    "labels": "multi_label_classification",
    "number": "regression",
}
"""Value of `problem_type` in the configuration of a transformers classifier, by `Task.output`."""


@torch.no_grad()
def in_units(last: nn.Linear, settings: ModelSettings) -> None:
    """Let the last layer of a model of numbers return them in the units of the training data."""
    last.weight.mul_(scale_of(settings))
    last.bias.mul_(scale_of(settings)).add_(mean_of(settings))


@torch.no_grad()
def _same_logits(merged: ClientModel, stock: PreTrainedModel) -> bool:
    data = merged.encode({merged.task.roles[0].setting: list(merged.task.probe)})
    batch = data.batch(np.arange(len(data)), torch.device("cpu"))
    inputs = {name: tensor for name, tensor in inputs_of(batch).items() if name != MARK}
    merged.model.eval()
    ours, theirs = merged.model(batch), stock.eval()(**inputs).logits.float()
    return bool(torch.allclose(ours, theirs, rtol=TOLERANCE, atol=TOLERANCE))
