"""One frozen base model for all clients of a process, with each client's tensors swapped in and out."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from trifed.adapters.attach import attach, factor_values
from trifed.adapters.norms import is_norm
from trifed.adapters.settings import AdapterSettings
from trifed.adapters.tokens import is_embedding_matrix, is_token_embedding, token_ids
from trifed.common.errors import MessageError, ModelError
from trifed.common.seeding import seeded
from trifed.config.settings import QUANTISED, ModelSettings, Pooling, TrainingSettings
from trifed.data import Examples
from trifed.federation.training.device_placement import place_model
from trifed.federation.training.evaluation import embed, mean_gradient
from trifed.federation.training.stack import can_stack
from trifed.methods.base import Method, directions, is_core, is_factor, is_head
from trifed.methods.packing import Layout, Tensors, Vector, pack, unpack
from trifed.methods.personalization import partly_kept
from trifed.methods.plain_lora import plain_lora_settings
from trifed.tasks import TASKS, Encoded, Task, TaskModel
from trifed.tasks.base import HeadedModel
from trifed.tasks.base_model import LoadedBase

KEPT_FEATURES = 2**30
"""Bytes of the base's features that are kept for later uses."""
OWN_FORWARD = ("lora-residual", "lora-mixture", "lora-dual")
"""Kinds of adapter whose layers have a forward pass of their own, which PEFT's layers of packed weights ignore."""
_ENCODER, _WRAPPER = "encoder.", "base_model.model."
_BASE = ".base_layer.weight"


@dataclass(frozen=True)
class SharedModel:
    """A model whose trainable tensors are those of the loaded client.

    Attributes:
        task: The task.
        base: The base model and its processor.
        settings: The model's settings.
        model: The task's model around `encoder`.
        encoder: The base, wrapped by PEFT or not.
        parameters: The tensors that the method trains or receives, by name.
        frozen: The adapter's other tensors, by name.
        adapted: The base model's weights of the adapted layers, by layer.
        start: Initial values of `parameters`, equal for all clients with the run's seed.
        layout: Names and shapes of the tensors that are sent.
        received: Names and shapes of the tensors that a download holds.
        lora_bytes: float32 bytes of A, B and head together, which `fedavg-lora` sends on this model.
        start_digest: SHA-256 of the adapter that all clients start from; empty for a new one.
        alone: Why clients cannot train in one pass, if that became known.
        replicas: Models with other trained tensors on the same frozen weights, one for each thread that trains.
        features: Pooled features of the base that were computed before, by the `id` of data that still exist.
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
    received: Layout
    lora_bytes: int
    start_digest: str = ""
    alone: list[str] = field(default_factory=list)
    replicas: list[SharedModel] = field(default_factory=list)
    features: dict[int, NDArray[np.float32]] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the base model's weights."""
        return self.base.fingerprint

    @property
    def device(self) -> torch.device:
        """Device of the model, or of its first layer if it is on several devices."""
        return next(self.model.parameters()).device

    @property
    def can_stack(self) -> bool:
        """True if several clients can train in one pass."""
        return not self.alone and can_stack(self.model, self.parameters)

    @property
    def trained_values(self) -> int:
        """Number of values that train."""
        return sum(param.numel() for param in self.parameters.values() if param.requires_grad)

    def untrained(self, in_turn: Callable[[str], bool]) -> frozenset[str]:
        """Return the names of the parameters that keep their values in a round. `in_turn`: whose turn it is."""
        turn = {name for name in self.parameters if in_turn(name) or trains_beside(name)}
        return frozenset(n for n, param in self.parameters.items() if n not in turn or not param.requires_grad)

    @property
    def exchanged(self) -> Layout:
        """Names and shapes of the tensors that are sent, received, or both, in the model's order."""
        either = {*self.layout, *self.received}
        both = ((name, tuple(param.shape)) for name, param in self.parameters.items())
        return self.layout if self.layout == self.received else tuple(item for item in both if item in either)

    @property
    def start_values(self) -> Vector:
        """Packed initial values of the tensors that are sent, (n_values,)."""
        return self.pack(self.start)

    @property
    def exchanged_start(self) -> Vector:
        """Packed initial values of the tensors of `exchanged`, (n_values,)."""
        return self.pack(self.start, self.exchanged)

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy a client's tensors into the model."""
        with torch.no_grad():
            for name, param in self.parameters.items():
                param.copy_(tensors[name])

    def take(self) -> dict[str, Tensor]:
        """Return copies of the loaded client's tensors on the CPU."""
        return copies(self.parameters)

    def pack(self, tensors: Mapping[str, Tensor], layout: Layout | None = None) -> Vector:
        """Pack those of a client's tensors that are sent, or those of another `layout`, (n_values,)."""
        chosen = self.layout if layout is None else layout
        return pack({name: tensors[name].numpy() for name, _ in chosen}, chosen)

    def receive(self, tensors: Mapping[str, Tensor], values: Vector) -> dict[str, Tensor]:
        """Return a client's tensors with those of a download, `values` (n_values,), replaced."""
        return {**tensors, **{name: torch.tensor(array) for name, array in unpack(values, self.received).items()}}

    def encode(self, examples: Examples) -> Encoded:
        """Convert examples to the model's input format; raises the errors of the task's `encode`."""
        return self.task.encode(self.base, examples, self.settings)

    def base_features(self, data: Encoded, settings: TrainingSettings) -> NDArray[np.float32]:
        """Return pooled features of the pre-trained base, (n, hidden); computed once while memory allows it."""
        if id(data) in self.features:
            return self.features[id(data)]
        if isinstance(self.encoder, PeftModel):
            with self.encoder.disable_adapter():
                found = embed(self.model, data, settings)
        else:
            self.load(self.start)
            found = embed(self.model, data, settings)
        if sum(kept.nbytes for kept in list(self.features.values())) + found.nbytes <= KEPT_FEATURES:
            self.features[id(data)] = found
            weakref.finalize(data, self.features.pop, id(data), None)
        return found

    def adds_nothing(self, tensors: Mapping[str, Tensor]) -> bool:
        """Return True if every adapted layer has an A, B or C of zeros, and the rest of the base is as it was."""
        if not isinstance(self.encoder, PeftModel):
            return False
        zero: dict[str, bool] = {}
        for name, tensor in {**self.frozen, **tensors}.items():
            if is_factor(name) or is_core(name):
                layer = name.rsplit(".lora_", 1)[0]
                zero[layer] = zero.get(layer, False) or not tensor.any()
            elif not is_head(name) and not (is_norm(name) and torch.equal(tensor.cpu(), self.start[name])):
                return False
        return all(zero.values())

    def first_gradient(self, data: Encoded, settings: TrainingSettings) -> Tensors:
        """Return the mean gradient of the adapted weights at the initial values: layer → (d_out, d_in)."""
        self.load(self.start)
        return mean_gradient(self.model, self.adapted, data, settings)

    def set_shared_projections(self, shared_projections: Tensors) -> None:
        """Replace the adapter's projections, and the initial values that depend on them, by agreed ones.

        Args:
            shared_projections: Arrays by the name of a tensor, such as `LAYER.lora_A.weight`.

        Raises:
            MessageError: The adapter has no such tensor, or one of another shape; nothing is changed then.
        """
        known = {**self.frozen, **self.parameters}
        for name, values in shared_projections.items():
            if name not in known or known[name].shape != values.shape:
                raise MessageError(f"projections: the adapter has no '{name[:100]}' of shape {values.shape}")
        with torch.no_grad():
            for name, values in shared_projections.items():
                param = known[name]
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
    """Add an adapter and the task's modules to a base model, initialised from a seed that all clients share.

    Args:
        base: The base model, which is changed.
        method: The method, which chooses the adapter and the trained tensors.
        labels: The labels' names, or their number for a task that does not use the names.
        seed: The run's seed.
        settings: Settings of the model, the adapter and the training.
        task: The task.

    Raises:
        ModelError: The adapter does not fit the model, or the method does not allow the model's dtype.
    """
    model_settings, adapter_settings, training_settings = settings
    gradient = method.shared_projections or method.adapter == "none"
    if model_settings.dtype in QUANTISED and (gradient or method.adapter in OWN_FORWARD):
        need = "the base model's gradient" if gradient else "layers whose weights are not packed"
        raise ModelError(
            f"model.dtype: got '{model_settings.dtype}', but '{method.name}' needs {need}; set it to float32 or "
            f"bfloat16, or choose another method"
        )
    if adapter_settings.train_norms and method.adapter != "none" and model_settings.dtype != "float32":
        raise ModelError(
            f"adapter.train_norms: got true with model.dtype = '{model_settings.dtype}', in which their steps "
            "would be rounded away; set model.dtype to float32, or set adapter.train_norms = false"
        )
    device = place_model(base.model, training_settings)
    lora_values = factor_values(base.model, plain_lora_settings(method, adapter_settings))
    tokens = token_ids(base.model, base.processor, adapter_settings.train_tokens)
    encoder = attach(base.model, method.adapter, adapter_settings, seed, tokens)
    with seeded(device, seed + 1):
        names = [str(label) for label in range(labels)] if isinstance(labels, int) else list(labels)
        model = task.build(encoder, base, names, model_settings)
        if method.personal_head or method.local_share:
            if not isinstance(model, HeadedModel) or (method.personal_head and not task.labelled):
                raise ModelError(
                    f"method.name: '{method.name}' needs a linear head{' for labels' * method.personal_head}, "
                    f"which the task '{task.name}' has not; choose another method"
                )
            model.add_personal_head() if method.personal_head else None
    if training_settings.gradient_checkpointing:
        _enable_gradient_checkpointing(base)
    _move_task_modules(model, device)
    everything = named_parameters(model, model_settings.pooling)
    trained = {name: p for name, p in everything.items() if method.trains(name) or trains_beside(name)}
    for name, param in everything.items():
        param.requires_grad_(name in trained)
    holds = method.receives or method.trains
    own = {name: param for name, param in everything.items() if name in trained or holds(name)}
    layout, received = layouts_of(method, own)
    head_values = sum(param.numel() for name, param in everything.items() if is_head(name))
    return SharedModel(
        task=task,
        base=base,
        settings=model_settings,
        model=model,
        encoder=encoder,
        parameters=own,
        frozen={n: p for n, p in everything.items() if n not in own and (is_factor(n) or is_core(n))},
        adapted=adapted_weights(everything),
        start={name: param.detach().to("cpu", copy=True) for name, param in own.items()},
        layout=layout,
        received=received,
        lora_bytes=4 * (lora_values + head_values),
    )


def _move_task_modules(model: TaskModel, device: torch.device) -> None:
    """Move the task's modules and buffers to the device of the base's inputs."""
    for name, part in model.named_children():
        if name != "encoder":
            part.to(device)
    for name, buffer in model.named_buffers(recurse=False):
        setattr(model, name, buffer.to(device))


def _enable_gradient_checkpointing(base: LoadedBase) -> None:
    """Recompute the activations inside the base's blocks for the gradient instead of storing them."""
    if not base.model.supports_gradient_checkpointing:
        raise ModelError(
            f"training.gradient_checkpointing: got true, which a '{base.model.config.model_type}' model does not "
            f"support; set it to false"
        )
    model: Any = base.model
    # Newer versions of transformers renamed the method.
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})


def named_parameters(model: nn.Module, pooling: Pooling) -> dict[str, nn.Parameter]:
    """Return all parameters of a model with an `encoder` and maybe a `head`, by the names that methods use."""
    everything = {plain_name(name): param for name, param in model.named_parameters()}
    # Without this pooling the pooler has no effect, so it is neither trained nor sent.
    return {
        name: param for name, param in everything.items() if pooling == "pooler" or not name.startswith("pooler.")
    }


def layouts_of(method: Method, own: Mapping[str, Tensor]) -> tuple[Layout, Layout]:
    """Return the layouts of an upload and of a download, in the model's order.

    Args:
        method: The method.
        own: The parameters that it trains or receives, by name.

    Raises:
        ModelError: A client would keep some tensors of a layer that the server needs with the layer's others.
    """
    if layer := partly_kept(method, own):
        raise ModelError(
            f"personalization.keep: keeps some tensors of the layer '{layer}', of which the server of "
            f"'{method.name}' needs all or none; name '{layer}.lora_' to keep all of them, or none"
        )
    holds = method.receives or method.sends
    named = ((name, tuple(param.shape)) for name, param in own.items() if not trains_beside(name))
    return directions(method, tuple(item for item in named if method.sends(item[0]) or holds(item[0])))


def trains_beside(name: str) -> bool:
    """Return whether a parameter trains beside those of the method, by a setting, and stays at the client."""
    return is_token_embedding(name) or is_norm(name)


def adapted_weights(everything: Mapping[str, nn.Parameter]) -> dict[str, nn.Parameter]:
    """Return the base model's weights of the adapted layers, by layer."""
    return {
        name.removesuffix(_BASE): param
        for name, param in everything.items()
        if name.endswith(_BASE) and not is_embedding_matrix(name)
    }


def copies(parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return copies of tensors on the CPU, by the same names."""
    return {name: param.detach().to("cpu", copy=True) for name, param in parameters.items()}


def plain_name(name: str) -> str:
    """Shorten `encoder.base_model.model.X.lora_A.default.weight` to `X.lora_A.weight`; keep `head.weight`."""
    return name.removeprefix(_ENCODER).removeprefix(_WRAPPER).replace(".default.", ".")
