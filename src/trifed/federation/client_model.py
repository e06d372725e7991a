"""Save a client's model as a folder (PEFT adapter, head, facts) and load it again."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from trifed.adapters.attach import load_adapter, save_adapter, without_peft_warnings
from trifed.adapters.config import DUAL_TYPE, MIXTURE_TYPE, PEFT_TYPE
from trifed.common.errors import AdapterError, RunError, damage_in
from trifed.common.files import writing
from trifed.config.settings import UNLABELLED, ModelSettings
from trifed.data import Examples
from trifed.federation.training.evaluation import length_order
from trifed.federation.training.shared_model import SharedModel
from trifed.methods.base import is_head
from trifed.tasks import TASKS, Encoded, Task, TaskModel
from trifed.tasks.base_model import LoadedBase, quiet_transformers
from trifed.tasks.image_text import PromptedClassifier, TwoTowerModel, tokenize


def save_client(
    folder: Path, shared_model: SharedModel, tensors: dict[str, Tensor], label_names: Sequence[str], source: str
) -> None:
    """Write adapter_config.json, adapter_model.safetensors, head.safetensors and classifier.json.

    The adapter holds the encoder's tensors only, so that a plain LoRA adapter can be loaded without trifed:
    `PeftModel.from_pretrained(AutoModel.from_pretrained(...), folder)`. A method without an adapter writes
    config.json, model.safetensors and the tokenizer's files instead: the folder is then a complete model.

    Raises:
        OSError: A file cannot be written.
    """
    shared_model.load(tensors)
    encoder = shared_model.encoder
    with writing(folder):
        if isinstance(encoder, PeftModel):
            encoder.peft_config["default"].base_model_name_or_path = source
            save_adapter(encoder, folder)
        else:
            with quiet_transformers():
                encoder.save_pretrained(str(folder))
            shared_model.base.processor.save_pretrained(str(folder))
        save_file(
            {
                name.removeprefix("head."): tensor.detach().cpu().contiguous()
                for name, tensor in shared_model.model.state_dict().items()
                if is_head(name)
            },
            folder / "head.safetensors",
        )
    facts = {
        "task": shared_model.task.name,
        "base_model": source,
        "base_fingerprint": shared_model.fingerprint,
        "labels": list(label_names),
        **shared_model.settings.model_dump(mode="json", include=set(INFERENCE_SETTINGS), exclude_none=True),
    }
    (folder / "classifier.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


LOADED_BY = {
    "label": "a classifier; load it with trifed.load_client(folder)",
    "labels": "a classifier with several labels; load it with trifed.load_multi_label_classifier(folder)",
    "number": "a model of numbers; load it with trifed.load_regressor(folder)",
    "answer": "a language model, which answers; load it with trifed.load_writer(folder) and call .answer(prompts)",
    "match": "a model of images and captions; load it with trifed.load_retrieval_model(folder) and call "
    ".among(texts).predict(images)",
    "tags": "a model that tags words; load it with trifed.load_tagger(folder) and call .tag(sentences)",
}
"""Kinds of models and how each is loaded, by `Task.output`."""


@dataclass(frozen=True)
class ClientModel:
    """One client's model. `labels`: names of the classes in order; without classes, of the groups of examples."""

    output: ClassVar[str]

    task: Task
    model: TaskModel
    base: LoadedBase
    settings: ModelSettings
    labels: list[str]

    @property
    def device(self) -> torch.device:
        """The device that the model is on."""
        return next(self.model.parameters()).device

    def encode(self, inputs: Mapping[str, list[Any]], labels: NDArray[np.int64] | None = None) -> Encoded:
        """Return examples as the model reads them. `inputs`: by role, as in `trifed.data.Examples`."""
        labels = np.zeros(len(inputs[next(iter(inputs))]), np.int64) if labels is None else labels
        return self.task.encode(self.base, Examples(inputs, labels), self.settings)

    def by_role(self, inputs: Sequence[Any], pairs: Sequence[str] | None) -> dict[str, list[Any]]:
        """Return inputs of the first role, and second texts if there are any, as `encode` takes them."""
        first, *others = self.task.roles
        found = {first.setting: [first.given(value) for value in inputs]}
        return {**found, others[0].setting: list(pairs)} if pairs else found


@dataclass(frozen=True)
class Classifier(ClientModel):
    """A model that chooses a label; `labels` are in the order of the probabilities' columns."""

    output = "label"

    def probabilities(
        self, inputs: Sequence[Any], pairs: Sequence[str] | None = None, batch_size: int = 64
    ) -> NDArray[np.float32]:
        """Return class probabilities, (n, n_labels); each row sums to one.

        Args:
            inputs: Texts, or images as paths, bytes or PIL images.
            pairs: Second texts, for a model that reads two.
            batch_size: Inputs that are computed together.
        """
        return self.probabilities_of(self.by_role(inputs, pairs), batch_size)

    @torch.no_grad()
    def probabilities_of(self, inputs: Mapping[str, list[Any]], batch_size: int = 64) -> NDArray[np.float32]:
        """Return class probabilities, (n, n_labels), of inputs by role, as in `trifed.data.Examples`."""
        data = self.encode(inputs)
        result = np.zeros((len(data), len(self.labels)), np.float32)
        self.model.eval()
        for rows in length_order(data, batch_size):
            result[rows] = self.model(data.batch(rows, self.device)).softmax(-1).cpu().numpy()
        return result

    @property
    def classes_(self) -> NDArray[np.str_]:
        """Labels in the order of the probabilities' columns, under scikit-learn's name, (n_labels,)."""
        return np.array(self.labels)

    def predict_proba(self, inputs: Sequence[Any], pairs: Sequence[str] | None = None) -> NDArray[np.float32]:
        """Return class probabilities, (n, n_labels), under scikit-learn's name; see `probabilities`."""
        return self.probabilities(inputs, pairs)

    def predict(self, inputs: Sequence[Any], pairs: Sequence[str] | None = None) -> list[str]:
        """Return the most probable label of each text or image."""
        return [self.labels[column] for column in self.probabilities(inputs, pairs).argmax(1)]


@dataclass(frozen=True)
class Writer(ClientModel):
    """A language model, which answers prompts."""

    output = "answer"

    def answer(
        self,
        prompts: Sequence[str],
        inputs: Sequence[str] | None = None,
        tokens: int = 64,
        batch_size: int = 16,
        *,
        images: Sequence[Any] | None = None,
    ) -> list[str]:
        """Return the answer to each prompt, by greedy decoding.

        A model that was trained on plain texts continues the prompt as it is.

        Args:
            prompts: One prompt for each answer.
            inputs: The material of each prompt, if the model was trained with such a column.
            tokens: Largest length of an answer.
            batch_size: Prompts that are answered together.
            images: One for each prompt, as paths, bytes or PIL images, for a model that reads images.

        Raises:
            RunError: The model reads images and none are given, or it reads none and some are given.
        """
        by_role: dict[str, list[Any]] = {"prompt": list(prompts), "input": list(inputs or [""] * len(prompts))}
        roles = {role.setting: role for role in self.task.roles}
        if ("image" in roles) != (images is not None):
            expected = "reads an image with every prompt; give images=" if "image" in roles else "reads no images"
            raise RunError(f"this model {expected}")
        if images is not None:
            by_role["image"] = [roles["image"].given(image) for image in images]
        return self.answer_all(by_role, tokens, batch_size)

    @torch.no_grad()
    def answer_all(self, inputs: Mapping[str, list[Any]], tokens: int = 64, batch_size: int = 16) -> list[str]:
        """Return the answers to inputs by role, as in `trifed.data.Examples`."""
        write = self.task.generate
        if write is None:
            raise RunError(f"a model of the task '{self.task.name}' does not answer")
        self.model.eval()
        answers: list[str] = []
        for first in range(0, len(inputs["prompt"]), batch_size):
            answers += write(
                self.model,
                self.base,
                {name: values[first : first + batch_size] for name, values in inputs.items()},
                self.settings,
                tokens,
            )
        return answers


@dataclass(frozen=True)
class RetrievalModel(ClientModel):
    """A model that chooses, among several texts, the one that fits an image."""

    output = "match"

    def among(self, texts: Sequence[str]) -> Classifier:
        """Return a classifier of images with these texts as labels; raises RunError without any text."""
        if not texts:
            raise RunError("got no texts; give at least one that an image may fit")
        model = PromptedClassifier(
            self.model.encoder, self.model.hidden, tokenize(self.base, texts), augment="none"
        ).to(self.device)
        return Classifier(TASKS["image-text"], model, self.base, self.settings, list(texts))

    @torch.no_grad()
    def embeddings(self, texts: Sequence[str]) -> Tensor:
        """Return embeddings of texts in the space of the images' embeddings: (n, hidden), of norm 1."""
        return cast(TwoTowerModel, self.model.eval()).embed_texts(tokenize(self.base, texts))


Kind = TypeVar("Kind", bound=ClientModel)


def load_model(kind: type[Kind], folder: str | Path, base: str | None = None) -> Kind:
    """Load a client's model of one kind from `runs/NAME/clients/CLIENT`, or from an exported folder.

    Args:
        kind: The class of the model, such as `Classifier` or `Writer`.
        folder: The client's folder.
        base: Folder or hub name of the base model, if it has moved since the run.

    Raises:
        RunError: The folder holds no client or a model of another kind, or the base model has other weights.
        ModelError: The base model cannot be loaded.
        AdapterError: The adapter's files are not complete.
    """
    model = open_client(Path(folder), base)
    if model.task.output != kind.output:
        raise RunError(f"{folder}: this is {LOADED_BY[model.task.output]}")
    return kind(**vars(model))


def load_client(folder: str | Path, base: str | None = None) -> Classifier:
    """Load a client's classifier; see `load_model` for arguments and errors."""
    return load_model(Classifier, folder, base)


def load_writer(folder: str | Path, base: str | None = None) -> Writer:
    """Load a client's language model; see `load_model` for arguments and errors."""
    return load_model(Writer, folder, base)


def load_retrieval_model(folder: str | Path, base: str | None = None) -> RetrievalModel:
    """Load a client's model of images and captions; see `load_model` for arguments and errors."""
    return load_model(RetrievalModel, folder, base)


INFERENCE_SETTINGS = (
    "dtype", "pooling", "max_length", "template", "class_prompt", "target_mean", "target_scale",
)  # fmt: skip
"""Settings of `[model]` that are needed to use a model as it was trained."""
_COPY_AGAIN = "copy the whole folder from the run again"


def open_client(folder: Path, base: str | None) -> ClientModel:
    """Load a client's model of any kind; see `load_model` for arguments and errors."""
    facts, peft_type, head = read_client(folder)
    with damage_in(folder, _COPY_AGAIN, AdapterError):
        source = base or facts["base_model"] if peft_type else str(folder)
        task = TASKS[facts["task"]]
        settings = ModelSettings(name=source, **{k: facts[k] for k in INFERENCE_SETTINGS if k in facts})
    loaded = task.load(source, settings.dtype)
    if peft_type and loaded.fingerprint != facts["base_fingerprint"]:
        raise RunError(
            f"{folder}: the base model at '{loaded.source}' has other weights than the one this client was "
            f"trained on; name the right one with base=..."
        )
    load = load_adapter if peft_type == PEFT_TYPE else PeftModel.from_pretrained
    settings = settings.model_copy(update={"name": loaded.source})
    with damage_in(folder, _COPY_AGAIN, AdapterError), without_peft_warnings():
        encoder = load(loaded.model, str(folder)) if peft_type else loaded.model
        model = task.build(encoder, loaded, facts["labels"], settings)
        tensors = {f"head.{name}": tensor for name, tensor in head.items()}
        if wrong := tensors.keys() ^ set(filter(is_head, model.state_dict())):
            raise KeyError(f"head.safetensors: {', '.join(sorted(wrong))} missing or unknown")
        model.load_state_dict(tensors, strict=False)
    return ClientModel(task, model, loaded, settings, facts["labels"])


def _check_adapter(folder: Path) -> str:
    """Return an adapter's PEFT type; raise ValueError for one that no run writes, or for ranks that do not fit.

    PEFT makes the adapter before it reads the weights: a huge rank would take all memory.
    """
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    ranks = [config["r"], *(config.get("rank_pattern") or {}).values()]
    with safe_open(folder / "adapter_model.safetensors", "pt") as file:
        largest = max(max(file.get_tensor(name).shape, default=0) for name in file.keys())  # noqa: SIM118
    fits = all(type(rank) is int and 0 < rank <= largest for rank in ranks)
    if config["peft_type"] not in (PEFT_TYPE, MIXTURE_TYPE, DUAL_TYPE, "LORA") or not fits:
        raise ValueError(f"adapter_config.json: peft_type {config['peft_type']!r}, ranks {ranks}")
    return str(config["peft_type"])


def read_client(folder: Path) -> tuple[dict[str, Any], str | None, dict[str, Tensor]]:
    """Return classifier.json, the adapter's PEFT type (None for a complete model), and the head's tensors.

    Raises:
        RunError: The folder holds no client.
        AdapterError: A file is missing or damaged.
    """
    if not (folder / "classifier.json").is_file():
        raise RunError(
            f"{folder}: no client's model here (it has no classifier.json); give runs/NAME/clients/CLIENT"
        )
    with damage_in(folder, _COPY_AGAIN, AdapterError):
        return _read_client(folder)


def _read_client(folder: Path) -> tuple[dict[str, Any], str | None, dict[str, Tensor]]:
    complete = (folder / "config.json").is_file()
    files = ("model.safetensors",) if complete else ("adapter_config.json", "adapter_model.safetensors")
    facts = json.loads((folder / "classifier.json").read_text(encoding="utf-8"))
    head = folder / "head.safetensors"
    has_no_head = complete and facts.get("task") in UNLABELLED and not head.exists()  # a merged model
    for name in (*files, *([] if has_no_head else [head.name])):
        if not (folder / name).is_file():
            raise AdapterError(f"{folder} has no {name}; {_COPY_AGAIN}")
    texts = [facts["base_model"], facts["base_fingerprint"], *facts["labels"]]
    if not isinstance(facts["labels"], list) or not all(isinstance(text, str) for text in texts):
        raise TypeError("classifier.json: base_model, base_fingerprint and each of labels must be texts")
    _ = facts["pooling"], facts["max_length"]  # else the values of other models would be used
    peft_type = None
    if not complete:
        peft_type = _check_adapter(folder)
    # The first versions had one task and did not write its name.
    return {"task": "text-classification", **facts}, peft_type, {} if has_no_head else load_file(head)
