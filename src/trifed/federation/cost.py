"""Communication cost of every method on a model, from names and shapes alone, without weights or training.

The model is built on torch's meta device with each method's adapter, and its parameters are passed to the method's
`trains` and `sends` by the functions that a run uses. The counts are therefore equal to those in a run's log.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from trifed.adapters.attach import attach, resolve_targets
from trifed.adapters.norms import is_norm
from trifed.adapters.settings import AdapterKind, AdapterSettings
from trifed.common.deprecated_names import renamed_attribute
from trifed.common.dict_merge import deep_merge
from trifed.common.errors import ModelError, nearest
from trifed.config.settings import Bits, Pooling, WireSettings
from trifed.federation.compression import make_compression
from trifed.federation.messages import Header, encode_values, layout_sizes
from trifed.federation.sealed.cost import sealed_bytes
from trifed.federation.summary_cost import (
    MIN_COMPONENT_EXAMPLES,
    RAW_COMPONENT_EXAMPLES,
    most_components,
    summary_sizes,
)
from trifed.federation.training.shared_model import adapted_weights, layouts_of, named_parameters, trains_beside
from trifed.methods import METHODS, Method
from trifed.methods.base import is_core, is_factor, is_head, is_mixer
from trifed.methods.packing import Layout
from trifed.similarity.summary import MOST_COMPONENTS, MOST_DIM
from trifed.tasks.base import BiasHead
from trifed.tasks.base_model import read_config
from trifed.tasks.shapes import SHAPES, build_on_meta, feature_size, is_generative, is_two_tower, shape_config
from trifed.tasks.text_classification import TextClassifier

Parameters = Mapping[str, nn.Parameter]

DEFAULT_EXAMPLES = 100
"""Training examples of a client, for the size of its summary."""

DEFAULT_LABELS = 2

PLAIN = "fedavg-lora"
"""The method whose bytes are the measure of the others."""

POOLING: Pooling = "mean"
"""The default pooling of a run, with which a pooler is neither trained nor sent."""


@dataclass(frozen=True)
class OneTimeMessage:
    """One message before round 1.

    Attributes:
        what: The message's content.
        up: Bytes sent by a client, without the envelope.
        down: Bytes sent to a client, without the envelope.
        basis: How the bytes are counted.
        envelope: Approximate bytes of the envelope of the message up.
        at_most: True if the bytes are a limit, which few clients reach.
    """

    what: str
    up: int
    down: int
    basis: str
    envelope: int = 0
    at_most: bool = False


@dataclass(frozen=True)
class MethodCost:
    """The trained and exchanged values of one client with one method.

    Attributes:
        method: The method's name.
        adapter: The method's kind of adapter.
        rank: The requested rank of the adapter, or the method's default.
        bits: The requested bits per value that is sent, or the method's default.
        trains: The trained parts, of "A", "B", "C", "head", "norms" and "base".
        sends: The parts that are sent, of the same names.
        trained_values: Number of trained values.
        sent_values: Number of values that are sent in one round; like the bytes, a mean for a method whose rounds
            send different parts.
        head_values: Number of the head's values among them.
        bytes_up: Bytes that a client sends in one round, without the envelope.
        bytes_down: Bytes that a client receives in one round, without the envelope.
        times_fewer: Bytes of plain LoRA's A, B and head, with the same bits a value and sealed if the method is,
            divided by `bytes_up`; None if nothing is sent.
        once: The messages before round 1.
        sealed: Clients of the sealed sum that the bytes are counted for; None if the run is not sealed.
    """

    method: str
    adapter: str
    rank: int
    bits: int
    trains: tuple[str, ...]
    sends: tuple[str, ...]
    trained_values: int
    sent_values: int
    head_values: int
    bytes_up: int
    bytes_down: int
    times_fewer: float | None
    once: tuple[OneTimeMessage, ...]
    sealed: int | None = None


@dataclass(frozen=True)
class Cost:
    """The costs of all methods on one model.

    Attributes:
        model: The model as the user named it.
        model_type: Its architecture in transformers.
        base_values: Number of weights of the base model.
        rank: Rank of plain LoRA's adapter.
        targets: Endings of the names of the adapted layers.
        layers: Number of adapted layers.
        labels: Outputs of the head; 0 without a head.
        features: Inputs of a linear head; 0 without a head, or if the head is only a bias per label.
        lora_values: Number of values in plain LoRA's A, B and head, the reference for all methods.
        envelope: Approximate bytes of a message in addition to its values.
        methods: The cost of each method.
    """

    model: str
    model_type: str
    base_values: int
    rank: int
    targets: tuple[str, ...]
    layers: int
    labels: int
    features: int
    lora_values: int
    envelope: int
    methods: tuple[MethodCost, ...]


def estimate_cost(
    model: str, adapter: AdapterSettings | None = None, labels: int | None = None, bits: Bits | None = None,
    sealed: int | None = None, examples: int = DEFAULT_EXAMPLES,
) -> Cost:  # fmt: skip
    """Estimate what each method trains and sends on a model.

    Args:
        model: One of `SHAPES`, 'demo', a folder with a config.json, or a hub name.
        adapter: Settings of the adapter; each method's defaults apply to the others.
        labels: Outputs of the head; by default two, or none for a generative model with its own output layer.
        bits: Bits per value that is sent; by default each method's own.
        sealed: Clients of a sum, to count sealed sums where a method can be sealed.
        examples: Training examples of a client, which limit the size of its summary.

    Raises:
        ModelError: There is no such model, or the adapter does not fit it.
    """
    config = _read_shape(model)
    adapter = adapter or AdapterSettings()
    if labels is None:
        labels = 0 if is_generative(config) else DEFAULT_LABELS
    lora = _parameters(config, labels, "lora", adapter)
    plain = tuple((n, tuple(param.shape)) for n, param in lora.items() if is_factor(n) or is_head(n))
    known: dict[tuple[AdapterKind, str, bool], Parameters] = {("lora", adapter.model_dump_json(), False): lora}
    features = feature_size(config) if labels and not is_two_tower(config) else 0
    width: int = features or getattr(config, "hidden_size", 0) or getattr(config, "projection_dim", 1)
    costs = []
    for method in METHODS.values():
        own = AdapterSettings(
            **deep_merge(method.defaults.get("adapter", {}), adapter.model_dump(exclude_unset=True))
        )
        wire = WireSettings(**(method.defaults.get("wire", {}) if bits is None else {"bits": bits}))
        kind = (method.adapter, own.model_dump_json(), method.personal_head)
        if kind not in known:
            known[kind] = _parameters(config, labels, method.adapter, own, method.personal_head)
        parameters = known[kind]
        shape = (labels, width, examples)
        costs.append(_method_cost(method, parameters, plain, shape, own.rank, wire, sealed))
    base = _base_on_meta(config, labels)
    return Cost(
        model=model,
        model_type=config.model_type,
        base_values=sum(param.numel() for param in base.parameters()),
        rank=adapter.rank,
        targets=tuple(resolve_targets(base, adapter)),
        layers=sum(_part(name) == "A" for name in lora),
        labels=labels,
        features=features,
        lora_values=_values(plain),
        envelope=len(encode_values(Header("upload", "0" * 12, "0" * 16, 10, 10, 100), np.zeros(0, np.float32))),
        methods=tuple(costs),
    )


def _base_on_meta(config: PreTrainedConfig, labels: int) -> PreTrainedModel:
    return build_on_meta(config, whole_lm=labels == 0 and is_generative(config))


def _parameters(
    config: PreTrainedConfig, labels: int, kind: AdapterKind, adapter: AdapterSettings, personal: bool = False
) -> Parameters:
    """Return the parameters of a new model with this adapter; new, because an adapter changes its base."""
    with torch.device("meta"):
        encoder = attach(_base_on_meta(config, labels), kind, adapter, seed=0)
        model: nn.Module
        if labels == 0:
            model = nn.ModuleDict({"encoder": encoder})
        elif is_two_tower(config):
            model = nn.ModuleDict({"encoder": encoder, "head": BiasHead(labels)})
        else:
            model = TextClassifier(encoder, feature_size(config), labels, POOLING)
            if personal:
                model.add_personal_head()
        return named_parameters(model, POOLING)


def _read_shape(name: str) -> PreTrainedConfig:
    if name in SHAPES:
        return shape_config(name)
    try:
        return read_config(name)[1]
    except ModelError as error:
        known = f"{', '.join(SHAPES)}{nearest(name, SHAPES)}"
        raise ModelError(f"{error}; or a shape that needs no files: {known}") from error


def _method_cost(
    method: Method, parameters: Parameters, plain: Layout, shape: tuple[int, int, int], rank: int,
    wire: WireSettings, clients: int | None = None,
) -> MethodCost:  # fmt: skip
    """Return the cost of a method.

    Args:
        method: The method.
        parameters: All parameters of the model with the method's adapter.
        plain: Names and shapes of what plain LoRA sends.
        shape: Outputs of the head, number of the base's features, and training examples of a client.
        rank: Rank of the method's adapter.
        wire: Its bits a value.
        clients: Clients of a sealed sum; None without a seal.
    """
    trained = {name: param for name, param in parameters.items() if method.trains(name) or trains_beside(name)}
    holds = method.receives or method.trains
    own = {name: param for name, param in parameters.items() if name in trained or holds(name)}
    layout, received = layouts_of(method, own)
    turns = method.layouts(layout)
    up, down = (
        sum(sum(make_compression(turn, wire).sizes.values()) for turn in method.layouts(each)) // len(turns)
        for each in (layout, received)
    )
    sums = None if clients is None else sealed_bytes(method, layout, make_compression(received, wire), clients)
    up, down = sums or (up, down)
    encoding = make_compression(plain, wire)
    fedavg = sealed_bytes(METHODS[PLAIN], plain, encoding, clients) if sums and clients else None
    plain_up = fedavg[0] if fedavg else sum(encoding.sizes.values())
    return MethodCost(
        method=method.name,
        adapter=method.adapter,
        rank=rank,
        bits=wire.bits,
        trains=_parts(trained),
        sends=_parts(name for name, _ in layout),
        trained_values=sum(param.numel() for param in trained.values()),
        sent_values=sum(map(_values, turns)) // len(turns),
        head_values=sum(_values(tuple(item for item in turn if is_head(item[0]))) for turn in turns) // len(turns),
        bytes_up=up,
        bytes_down=down,
        times_fewer=plain_up / up if up else None,
        once=() if sums else tuple(_one_time_messages(method, parameters, *shape)),
        sealed=clients if sums else None,
    )


def _one_time_messages(
    method: Method, parameters: Parameters, labels: int, features: int, examples: int
) -> Iterator[OneTimeMessage]:
    """Yield the messages that a client exchanges before round 1."""
    if method.shared_projections is not None:
        up = sum(param.numel() for param in adapted_weights(parameters).values())
        yield OneTimeMessage(
            "frames",
            4 * up,
            4 * sum(param.numel() for name, param in parameters.items() if is_core(name) or is_factor(name)),
            "the gradient of the adapted weights against A, B and the start of C",
        )
    raw = method.options().raw_summary()
    if method.summarise is not None and raw and features > MOST_DIM:
        limit = f"none: the base has {features} features, and a summary of raw ones at most {MOST_DIM}"
        yield OneTimeMessage("summary of the data", 0, 0, limit)
    elif method.summarise is not None:
        sizes = summary_sizes(method.summarise, method.options(), features)
        least = RAW_COMPONENT_EXAMPLES if raw else MIN_COMPONENT_EXAMPLES
        count = most_components(max(labels, 1), examples, least)
        yield OneTimeMessage(
            "summary of the data",
            sizes.total(max(labels, 1), count),
            0,
            f"{sizes.fixed} bytes, {sizes.label} a label and {sizes.component} a component, at most for a client "
            f"with {examples} examples; one is for {least} examples of a label or more, at most {MOST_COMPONENTS} "
            f"a label",
            sizes.envelope,
            at_most=True,
        )


def _part(name: str) -> str:
    if is_core(name):
        return "C"
    if is_factor(name):
        return "A" if ".lora_A." in name else "B"
    if is_mixer(name):
        return "mixer"
    if is_norm(name):
        return "norms"
    return "head" if name.startswith(("head.", "personal.", "prior.")) else "base"


def _parts(names: Iterable[str]) -> tuple[str, ...]:
    present = {_part(name) for name in names}
    return tuple(part for part in ("A", "B", "C", "mixer", "head", "norms", "base") if part in present)


def _values(layout: Layout) -> int:
    return sum(layout_sizes(layout).values()) // 4


if not TYPE_CHECKING:  # or mypy would accept any name

    def __getattr__(name: str) -> Any:
        return renamed_attribute(__name__, name)
