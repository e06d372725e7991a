"""One frozen base for all clients of a process; a client's tensors are swapped in and out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from trifed.adapters.attach import attach, factor_values
from trifed.adapters.settings import AdapterSettings
from trifed.common.errors import ModelError
from trifed.config.settings import QUANTISED, ModelSettings, Pooling, TrainingSettings
from trifed.data import Examples
from trifed.federation.device_placement import place
from trifed.federation.training import embed, mean_gradient
from trifed.methods.base import Method, is_core, is_factor, is_head
from trifed.methods.packing import Layout, Tensors, Vector, pack, unpack
from trifed.tasks import TASKS, Encoded, Task, TaskModel
from trifed.tasks.base_model import LoadedBase

_ENCODER, _WRAPPER = "encoder.", "base_model.model."
_BASE = ".base_layer.weight"


@dataclass(frozen=True)
class SharedModel:
    """A model whose trainable tensors belong to whichever client is loaded.

    `parameters`: what the method trains, by name; `frozen`: the adapter's tensors that it does not; `adapted`: the
    base model's weights behind the adapter, by layer; `start`: the common start of what trains, equal for all
    clients that share the run's seed; `layout`: what travels; `lora_bytes`: float32 bytes of A, B and head
    together, which is what `fedavg-lora` sends on this model.
    """

    task: Task
    base: LoadedBase
    settings: ModelSettings
    model: TaskModel
    encoder: PeftModel | PreTrainedModel
    parameters: dict[str, torch.nn.Parameter]
    frozen: dict[str, torch.nn.Parameter]
    adapted: dict[str, torch.nn.Parameter]
    start: dict[str, Tensor]
    layout: Layout
    lora_bytes: int

    @property
    def fingerprint(self) -> str:
        """sha256 over the base model's weights."""
        return self.base.fingerprint

    @property
    def device(self) -> torch.device:
        """Where the model is, or of several places the first."""
        return next(self.model.parameters()).device

    @property
    def start_values(self) -> Vector:
        """The common start of what travels, packed: (n_values,)."""
        return self.pack(self.start)

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Make the model that of the client whose tensors these are."""
        with torch.no_grad():
            for name, param in self.parameters.items():
                param.copy_(tensors[name])

    def take(self) -> dict[str, Tensor]:
        """Copies of what the loaded client has now, on the CPU."""
        return {name: param.detach().to("cpu", copy=True) for name, param in self.parameters.items()}

    def pack(self, tensors: Mapping[str, Tensor]) -> Vector:
        """What of a client's tensors travels, (n_values,)."""
        return pack({name: tensors[name].numpy() for name, _ in self.layout}, self.layout)

    def receive(self, tensors: Mapping[str, Tensor], values: Vector) -> dict[str, Tensor]:
        """A client's tensors after a download: what travels is replaced, the rest stays."""
        arrived = {name: torch.tensor(array) for name, array in unpack(values, self.layout).items()}
        return {**tensors, **arrived}

    def encode(self, examples: Examples) -> Encoded:
        """Make them what the model reads, once; raises what the task's `encode` does."""
        return self.task.encode(self.base, examples, self.settings)

    def base_features(self, data: Encoded, settings: TrainingSettings) -> NDArray[np.float32]:
        """Pooled features of the base as it was pre-trained: (n, hidden)."""
        if isinstance(self.encoder, PeftModel):
            with self.encoder.disable_adapter():
                return embed(self.model, data, settings)
        self.load(self.start)
        return embed(self.model, data, settings)

    def first_gradient(self, data: Encoded, settings: TrainingSettings) -> Tensors:
        """The mean gradient of the adapted layers' weights at the common start: layer → (d_out, d_in)."""
        self.load(self.start)
        return mean_gradient(self.model, self.adapted, data, settings)

    def set_shared_projections(self, shared_projections: Tensors) -> None:
        """Put frames that were agreed on in the place of the adapter's own, for good: `LAYER.lora_A.weight`, ….

        The start of what trains follows.
        """
        with torch.no_grad():
            for name, values in shared_projections.items():
                param = self.parameters[name] if name in self.parameters else self.frozen[name]
                param.copy_(torch.from_numpy(values))
                if name in self.start:
                    self.start[name].copy_(torch.from_numpy(values))


def build_shared_model(
    base: LoadedBase,
    method: Method,
    labels: int | Sequence[str],
    seed: int,
    settings: tuple[ModelSettings, AdapterSettings, TrainingSettings],
    task: Task = TASKS["text-classification"],
) -> SharedModel:
    """Adapter and what the task adds onto the base, from a seed that all clients share.

    `labels`: their names, or how many there are, where a task does not read them.

    Raises:
        ModelError: the adapter does not fit the model.
    """
    model_settings, adapter_settings, training_settings = settings
    if model_settings.dtype in QUANTISED and (method.shared_projections or method.adapter == "none"):
        raise ModelError(
            f"model.dtype: got '{model_settings.dtype}', but '{method.name}' needs the base model's own gradient; "
            f"set it to float32 or bfloat16, or take another method"
        )
    device = place(base.model, training_settings)
    rival = factor_values(base.model, adapter_settings)
    encoder = attach(base.model, method.adapter, adapter_settings, seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + 1)
        names = [str(label) for label in range(labels)] if isinstance(labels, int) else list(labels)
        model = task.build(encoder, base, names, model_settings)
    if training_settings.gradient_checkpointing:
        _checkpoint(base)
    _move_what_is_added(model, device)
    everything = named_parameters(model, model_settings.pooling)
    for name, param in everything.items():
        param.requires_grad_(method.trains(name))
    trained = {name: param for name, param in everything.items() if method.trains(name)}
    added = sum(param.numel() for name, param in everything.items() if is_head(name))
    return SharedModel(
        task=task,
        base=base,
        settings=model_settings,
        model=model,
        encoder=encoder,
        parameters=trained,
        frozen={n: p for n, p in everything.items() if n not in trained and (is_factor(n) or is_core(n))},
        adapted=adapted_weights(everything),
        start={name: param.detach().to("cpu", copy=True) for name, param in trained.items()},
        layout=layout_of(method, trained),
        lora_bytes=4 * (rival + added),
    )


def _move_what_is_added(model: TaskModel, device: torch.device) -> None:
    """To where the base gives its features; the base itself is in its place."""
    for name, part in model.named_children():
        if name != "encoder":
            part.to(device)
    for name, buffer in model.named_buffers(recurse=False):
        setattr(model, name, buffer.to(device))


def _checkpoint(base: LoadedBase) -> None:
    """Keep no activations inside the base's blocks: they are computed again for the gradient."""
    if not base.model.supports_gradient_checkpointing:
        raise ModelError(
            f"training.gradient_checkpointing: a '{base.model.config.model_type}' model cannot do without its "
            f"activations; set it to false"
        )
    how = {"use_reentrant": False}
    model: Any = base.model
    if hasattr(model, "activation_checkpointing_enable"):  # its name in newer transformers
        model.activation_checkpointing_enable(how)
    else:
        model.gradient_checkpointing_enable(how)


def named_parameters(model: nn.Module, pooling: Pooling) -> dict[str, nn.Parameter]:
    """All parameters of a model with an `encoder` and maybe a `head`, by the names that methods know."""
    everything = {plain_name(name): param for name, param in model.named_parameters()}
    if pooling == "pooler":
        return everything
    # Nothing reads a pooler then, so it can neither train nor travel.
    return {name: param for name, param in everything.items() if not name.startswith("pooler.")}


def layout_of(method: Method, trained: Mapping[str, Tensor]) -> Layout:
    """What travels of the parameters that a method trains, in the model's order."""
    return tuple((name, tuple(param.shape)) for name, param in trained.items() if method.sends(name))


def adapted_weights(everything: Mapping[str, nn.Parameter]) -> dict[str, nn.Parameter]:
    """The base model's weights behind an adapter, by layer."""
    return {name.removesuffix(_BASE): param for name, param in everything.items() if name.endswith(_BASE)}


def plain_name(name: str) -> str:
    """`encoder.base_model.model.X.lora_A.default.weight` → `X.lora_A.weight`; `head.weight` stays."""
    return name.removeprefix(_ENCODER).removeprefix(_WRAPPER).replace(".default.", ".")
