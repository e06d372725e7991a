"""A client's model on disk: a PEFT adapter folder with the head beside it, and the way back to a model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from peft import PeftModel
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from trifed.adapters import load_adapter
from trifed.adapters.config import PEFT_TYPE
from trifed.adapters.loading import without_renaming_warning
from trifed.common.errors import AdapterError, RunError
from trifed.config.settings import ModelSettings
from trifed.data import Examples
from trifed.federation.shared_model import SharedModel
from trifed.federation.training import length_order
from trifed.methods.base import is_head
from trifed.tasks import TASKS, Task, TaskModel
from trifed.tasks.base_model import LoadedBase, quiet_transformers


def save_client(
    folder: Path, shared_model: SharedModel, tensors: dict[str, Tensor], label_names: Sequence[str], source: str
) -> None:
    """Write adapter_config.json, adapter_model.safetensors, head.safetensors and classifier.json.

    The adapter is that of the encoder alone: `PeftModel.from_pretrained(AutoModel.from_pretrained(...), folder)`
    takes it, for a plain LoRA method without this package. Without an adapter, config.json, model.safetensors and
    the tokenizer's files take its place: the folder is a model of its own.
    """
    shared_model.load(tensors)
    encoder = shared_model.encoder
    if isinstance(encoder, PeftModel):
        encoder.peft_config["default"].base_model_name_or_path = source
        # "auto" would ask a hub whether the embeddings were resized.
        encoder.save_pretrained(str(folder), save_embedding_layers=False)
    else:
        with quiet_transformers():
            encoder.save_pretrained(str(folder))
        shared_model.base.processor.save_pretrained(str(folder))
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's model card is a form with nothing filled in
    head = {
        name.removeprefix("head."): tensor.detach().cpu().contiguous()
        for name, tensor in shared_model.model.state_dict().items()
        if is_head(name)
    }
    save_file(head, folder / "head.safetensors")
    facts = {
        "task": shared_model.task.name,
        "base_model": source,
        "base_fingerprint": shared_model.fingerprint,
        "labels": list(label_names),
        **shared_model.settings.model_dump(mode="json", include=set(OWN_SETTINGS), exclude_none=True),
    }
    (folder / "classifier.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


@dataclass(frozen=True)
class ClientModel:
    """One client's model. `labels`: names of the classes, or of what the examples were, in order."""

    task: Task
    model: TaskModel
    base: LoadedBase
    settings: ModelSettings
    labels: list[str]


@dataclass(frozen=True)
class Classifier(ClientModel):
    """A model that chooses a label; `labels` are in the order of the probabilities' columns."""

    def probabilities(
        self, inputs: Sequence[Any], pairs: Sequence[str] | None = None, batch_size: int = 64
    ) -> NDArray[np.float32]:
        """Class probabilities, (n, n_labels); rows sum to one.

        `inputs`: texts, or images as paths, bytes or PIL's; `pairs`: second texts, of a model that reads two.
        """
        first, *others = self.task.roles
        given = {first.setting: [first.given(value) for value in inputs]}
        if pairs:
            given[others[0].setting] = list(pairs)
        return self.probabilities_of(given, batch_size)

    @torch.no_grad()
    def probabilities_of(self, inputs: Mapping[str, list[Any]], batch_size: int = 64) -> NDArray[np.float32]:
        """The same of inputs by role, as `trifed.data.Examples` has them."""
        count = len(inputs[self.task.roles[0].setting])
        data = self.task.encode(self.base, Examples(inputs, np.zeros(count, np.int64)), self.settings)
        result = np.zeros((count, len(self.labels)), np.float32)
        self.model.eval()
        device = next(self.model.parameters()).device
        for rows in length_order(data, batch_size):
            result[rows] = self.model(data.batch(rows, device)).softmax(-1).cpu().numpy()
        return result

    def predict(self, inputs: Sequence[Any], pairs: Sequence[str] | None = None) -> list[str]:
        """The most probable label of each text or image."""
        return [self.labels[column] for column in self.probabilities(inputs, pairs).argmax(1)]


@dataclass(frozen=True)
class Writer(ClientModel):
    """A language model, which answers."""

    def answer(
        self,
        prompts: Sequence[str],
        inputs: Sequence[str] | None = None,
        tokens: int = 64,
        batch_size: int = 16,
        *,
        images: Sequence[Any] | None = None,
    ) -> list[str]:
        """What the model writes behind each prompt, the most probable token at a time, at most `tokens` of them.

        `inputs`: what each prompt is about, where the model was trained with such; `images`: one a prompt, as
        paths, bytes or PIL's, of a model that reads them. A model that was trained on texts continues the prompt
        as it is.

        Raises:
            RunError: the model reads images and none are given, or the other way round.
        """
        asked: dict[str, list[Any]] = {"prompt": list(prompts), "input": list(inputs or [""] * len(prompts))}
        read = {role.setting: role for role in self.task.roles}
        if ("image" in read) != (images is not None):
            wanted = "reads an image with every prompt; give images=" if "image" in read else "reads no images"
            raise RunError(f"this model {wanted}")
        if images is not None:
            asked["image"] = [read["image"].given(image) for image in images]
        return self.answer_all(asked, tokens, batch_size)

    @torch.no_grad()
    def answer_all(self, inputs: Mapping[str, list[Any]], tokens: int = 64, batch_size: int = 16) -> list[str]:
        """The same of inputs by role, as `trifed.data.Examples` has them."""
        write = self.task.generate
        if write is None:
            raise RunError(f"a model of the task '{self.task.name}' does not answer")
        self.model.eval()
        answers: list[str] = []
        for first in range(0, len(inputs["prompt"]), batch_size):
            part = {name: values[first : first + batch_size] for name, values in inputs.items()}
            answers += write(self.model, self.base, part, self.settings, tokens)
        return answers


def load_client(folder: str | Path, base: str | None = None) -> Classifier:
    """A client's classifier from `runs/NAME/clients/CLIENT`.

    `base`: where the base model lies now, if not where it lay in the run.

    Raises:
        RunError: the folder holds no client, a language model, or the base model is another one.
        ModelError: the base model cannot be loaded.
        AdapterError: the adapter's files are not whole.
    """
    parts = open_client(Path(folder), base)
    check_gives(folder, parts, "label")
    return Classifier(**vars(parts))


def load_writer(folder: str | Path, base: str | None = None) -> Writer:
    """A client's language model from `runs/NAME/clients/CLIENT`; see `load_client` for the rest.

    Raises:
        RunError: as there, or the folder holds a classifier.
    """
    parts = open_client(Path(folder), base)
    check_gives(folder, parts, "answer")
    return Writer(**vars(parts))


WAYS = {
    "label": "a classifier; trifed.load_client(folder) loads it",
    "answer": "a language model, which answers instead of choosing a label; in Python: "
    "trifed.load_writer(folder).answer(prompts)",
    "match": "a model that says which text fits an image; in Python: "
    "trifed.load_matcher(folder).among(texts).predict(images)",
}
"""What a model is, and how it is used, by what its task gives."""


def check_gives(folder: str | Path, parts: ClientModel, wanted: str) -> None:
    """Refuse a model that gives something else than is wanted, with what it is."""
    if parts.task.output != wanted:
        raise RunError(f"{folder}: this is {WAYS[parts.task.output]}")


def open_client(folder: Path, base: str | None) -> ClientModel:
    """A client's model of whatever kind; raises as `load_client` does."""
    if not (folder / "classifier.json").is_file():
        raise RunError(
            f"{folder}: no client's model here (it has no classifier.json); give runs/NAME/clients/CLIENT"
        )
    try:
        facts, kind, head = _read_client(folder)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise AdapterError(f"{folder}: a file is damaged ({error}); {_COPY_AGAIN}") from error
    whole = kind == WHOLE_MODEL
    source = str(folder) if whole else base or facts["base_model"]
    loaded = TASKS[facts["task"]].load(source, facts.get("dtype", "float32"))
    if not whole and loaded.fingerprint != facts["base_fingerprint"]:
        raise RunError(
            f"{folder}: the base model at '{loaded.source}' has other weights than the one this client was "
            f"trained on; name the right one with base=..."
        )
    load = load_adapter if kind == PEFT_TYPE else PeftModel.from_pretrained
    try:
        with without_renaming_warning():
            encoder = loaded.model if whole else load(loaded.model, str(folder))
            return _with_head(encoder, loaded, facts, head)
    except (SafetensorError, RuntimeError) as error:
        raise AdapterError(f"{folder}: its files do not fit together ({error}); {_COPY_AGAIN}") from error


def _with_head(
    encoder: nn.Module, loaded: LoadedBase, facts: dict[str, Any], head: dict[str, Tensor]
) -> ClientModel:
    task = TASKS[facts["task"]]
    own = {name: facts[name] for name in OWN_SETTINGS if name in facts}
    settings = ModelSettings(name=loaded.source, **own)
    model = task.build(encoder, loaded, facts["labels"], settings)
    model.load_state_dict({f"head.{name}": tensor for name, tensor in head.items()}, strict=False)
    return ClientModel(task, model, loaded, settings, facts["labels"])


OWN_SETTINGS = ("dtype", "pooling", "max_length", "template", "class_prompt")
"""Of `[model]`: what a model needs to be used as it was trained."""
WHOLE_MODEL = "whole model"
_COPY_AGAIN = "copy the whole folder from the run again"


def _read_client(folder: Path) -> tuple[dict[str, Any], str, dict[str, Tensor]]:
    """classifier.json, the adapter's PEFT type or `WHOLE_MODEL`, and the head's tensors."""
    whole = (folder / "config.json").is_file()
    model = ("model.safetensors",) if whole else ("adapter_config.json", "adapter_model.safetensors")
    for name in (*model, "head.safetensors"):
        if not (folder / name).is_file():
            raise AdapterError(f"{folder} has no {name}; {_COPY_AGAIN}")
    facts = json.loads((folder / "classifier.json").read_text(encoding="utf-8"))
    kind = WHOLE_MODEL
    if not whole:
        kind = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))["peft_type"]
    wanted = ("base_model", "base_fingerprint", "labels", "pooling", "max_length")
    # Folders of before there was a second task do not name theirs.
    task = {"task": facts.get("task", "text-classification")}
    return (
        {**facts, **task, **{name: facts[name] for name in wanted}},
        kind,
        load_file(folder / "head.safetensors"),
    )
