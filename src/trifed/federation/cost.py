"""What every method would send on a model, from names and shapes alone: no weights are loaded, nothing is trained.

The model is built on torch's meta device, given each method's adapter, and its parameters are put to the method's
own `trains` and `sends`, by the functions that a run uses. What is counted here is what a run's log holds.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedConfig

from trifed.adapters.attach import attach, resolve_targets
from trifed.adapters.settings import AdapterKind, AdapterSettings
from trifed.common.dict_merge import deep_merge
from trifed.common.errors import ModelError, nearest
from trifed.config.settings import Bits, Pooling, WireSettings
from trifed.federation.compression import packed_sizes
from trifed.federation.messages import Header, encode_values, layout_sizes
from trifed.federation.shared_model import adapted_weights, layout_of, named_parameters
from trifed.methods import METHODS, Method
from trifed.methods.base import (
    Options,
    Summarise,
    SummarySeeds,
    is_core,
    is_factor,
    is_head,
)
from trifed.methods.packing import Layout
from trifed.tasks.base_model import read_config
from trifed.tasks.image_text import Bias
from trifed.tasks.shapes import SHAPES, build_on_meta, feature_size, is_generative, is_two_tower, shape_config
from trifed.tasks.text_classification import TextClassifier

Parameters = Mapping[str, nn.Parameter]

FEWEST = 20
"""The fewest examples that make a component of a summary; of fewer, only their number is sent."""

DEFAULT_LABELS = 2

POOLING: Pooling = "mean"
"""What the head reads, as a run does it unless told otherwise; a pooler then neither trains nor travels."""


@dataclass(frozen=True)
class Once:
    """One message before round 1. `up`, `down`: bytes a client, envelope apart; `basis`: what they stand on."""

    what: str
    up: int
    down: int
    basis: str


@dataclass(frozen=True)
class MethodCost:
    """What one client trains and exchanges by one method.

    `rank` of its adapter and `bits` of a number that travels: asked for, or the method's own; `trains`, `sends`:
    names of the parts, of "A", "B", "C", "head" and "base"; `trained_values`, `sent_values`: how many numbers
    these are, `head_values`: those of the head among the sent; `bytes_up`, `bytes_down`: of one round, envelopes
    apart; `times_fewer`: A, B and head of plain LoRA in bytes over what is sent up, None where
    nothing is sent; `once`: what is exchanged before round 1.
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
    once: tuple[Once, ...]


@dataclass(frozen=True)
class Cost:
    """The costs of all methods on one model.

    `base_values`: weights of the base model; `layers`: how many get an adapter; `labels`: outputs of the linear
    head on `features` inputs, 0 without a head; without features it is a bias for each of them; `lora_values`: A,
    B and head of plain LoRA, which the methods are compared with; `envelope`: about how many bytes a message has
    besides its values.
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


@dataclass(frozen=True)
class _Subject:
    """The model that is asked about."""

    config: PreTrainedConfig
    labels: int

    def parameters(self, kind: AdapterKind, adapter: AdapterSettings) -> Parameters:
        """Names and shapes with this adapter; anew each time, because an adapter changes its base."""
        base = build_on_meta(self.config, whole_lm=self.labels == 0 and is_generative(self.config))
        with torch.device("meta"):
            encoder = attach(base, kind, adapter, seed=0)
            if self.labels == 0:
                return named_parameters(nn.ModuleDict({"encoder": encoder}), POOLING)
            if is_two_tower(self.config):
                return named_parameters(nn.ModuleDict({"encoder": encoder, "head": Bias(self.labels)}), POOLING)
            head_on = TextClassifier(encoder, feature_size(self.config), self.labels, POOLING)
            return named_parameters(head_on, POOLING)


def estimate_cost(
    model: str, adapter: AdapterSettings | None = None, labels: int | None = None, bits: Bits | None = None
) -> Cost:
    """What each method would train and send on a model.

    `model`: one of `SHAPES`, 'demo', a folder with a config.json, or a hub name. `labels`: outputs of the head;
    two unless given, or none on a model that is_generative, which predicts with its own output layer. What is not
    given of `adapter` and `bits` is each method's own default.

    Raises:
        ModelError: no such model, or an adapter that does not fit it.
    """
    config = _find(model)
    adapter = adapter or AdapterSettings()
    if labels is None:
        labels = 0 if is_generative(config) else DEFAULT_LABELS
    subject = _Subject(config, labels)
    base = build_on_meta(config, whole_lm=labels == 0 and is_generative(config))
    targets = resolve_targets(base, adapter)
    lora = subject.parameters("lora", adapter)
    rival = sum(param.numel() for name, param in lora.items() if is_factor(name) or is_head(name))
    known: dict[tuple[AdapterKind, int], Parameters] = {("lora", adapter.rank): lora}
    costs = []
    for method in METHODS.values():
        own = AdapterSettings(
            **deep_merge(method.defaults.get("adapter", {}), adapter.model_dump(exclude_unset=True))
        )
        wire = WireSettings(**(method.defaults.get("wire", {}) if bits is None else {"bits": bits}))
        if (method.adapter, own.rank) not in known:
            known[method.adapter, own.rank] = subject.parameters(method.adapter, own)
        costs.append(_method_cost(method, known[method.adapter, own.rank], rival, labels, own.rank, wire))
    return Cost(
        model=model,
        model_type=config.model_type,
        base_values=sum(param.numel() for param in base.parameters()),
        rank=adapter.rank,
        targets=tuple(targets),
        layers=sum(_part(name) == "A" for name in lora),
        labels=labels,
        features=feature_size(config) if labels and not is_two_tower(config) else 0,
        lora_values=rival,
        envelope=len(encode_values(Header("upload", "0" * 12, "0" * 16, 10, 10, 100), np.zeros(0, np.float32))),
        methods=tuple(costs),
    )


def _find(name: str) -> PreTrainedConfig:
    if name in SHAPES:
        return shape_config(name)
    try:
        return read_config(name)[1]
    except ModelError as error:
        known = f"{', '.join(SHAPES)}{nearest(name, SHAPES)}"
        raise ModelError(f"{error}; or a shape that needs no files: {known}") from error


def _method_cost(
    method: Method, parameters: Parameters, rival: int, labels: int, rank: int, wire: WireSettings
) -> MethodCost:
    trained = {name: param for name, param in parameters.items() if method.trains(name)}
    layout = layout_of(method, trained)
    sent = sum((layout_sizes(layout) if wire.bits == 32 else packed_sizes(layout, wire.bits)).values())
    return MethodCost(
        method=method.name,
        adapter=method.adapter,
        rank=rank,
        bits=wire.bits,
        trains=_parts(trained),
        sends=_parts(name for name, _ in layout),
        trained_values=sum(param.numel() for param in trained.values()),
        sent_values=_values(layout),
        head_values=_values(tuple(item for item in layout if is_head(item[0]))),
        bytes_up=sent,
        bytes_down=sent,  # both ways one message of one layout
        times_fewer=4 * rival / sent if sent else None,
        once=tuple(_openings(method, parameters, labels)),
    )


def _openings(method: Method, parameters: Parameters, labels: int) -> Iterator[Once]:
    """What a client exchanges once, before round 1."""
    if method.shared_projections is not None:
        up = sum(param.numel() for param in adapted_weights(parameters).values())
        down = sum(param.numel() for name, param in parameters.items() if is_core(name) or is_factor(name))
        yield Once(
            "frames", 4 * up, 4 * down, "the gradient of the adapted weights against A, B and the start of C"
        )
    if method.summarise is not None:
        sizes = summary_sizes(method.summarise, method.options())
        context = f"{sizes.fixed} bytes, {sizes.label} a label and {sizes.component} a component"
        shown = "one component for each label" if labels else "one component"
        total = sizes.total(max(labels, 1), max(labels, 1))
        yield Once("summary of the data", total, 0, f"{context}, counted with {shown}")


@dataclass(frozen=True)
class SummarySizes:
    """Bytes of a one-time summary: once, for every label a client has, for every component."""

    fixed: int
    label: int
    component: int

    def total(self, labels: int, components: int) -> int:
        """Bytes of a summary, envelope apart."""
        return self.fixed + self.label * labels + self.component * components


def summary_sizes(summarise: Summarise, options: Options) -> SummarySizes:
    """Measured on summaries that the method makes of noise: how large one is does not depend on its numbers."""

    def measure(*labels: int) -> int:
        noise = np.random.default_rng(0).standard_normal((len(labels), 8)).astype(np.float32)
        return summarise(options, noise, np.array(labels), SummarySeeds(0, 0)).nbytes

    one, two, component = measure(0), measure(0, 1), measure(*[0] * FEWEST)
    return SummarySizes(fixed=2 * one - two, label=two - one, component=component - one)


def _part(name: str) -> str:
    if is_core(name):
        return "C"
    if is_factor(name):
        return "A" if ".lora_A." in name else "B"
    return "head" if is_head(name) else "base"


def _parts(names: Iterable[str]) -> tuple[str, ...]:
    found = {_part(name) for name in names}
    return tuple(part for part in ("A", "B", "C", "head", "base") if part in found)


def _values(layout: Layout) -> int:
    return sum(layout_sizes(layout).values()) // 4
