"""Client parts that any method can be given: steps by which a client makes the shared result its own.

- Label prior: the head's bias is the log of the client's own label shares, and stays at the client. Where clients
  differ in how often each label occurs alone, p_i(y | x) ∝ π_i(y) p(x | y), and only the prior π_i is a client's
  own: Menon et al., "Long-tail learning via logit adjustment", ICLR 2021 (arXiv 2007.07314); by client as in Zhang
  et al., "Federated learning with label distribution skew via logits calibration", ICML 2022 (arXiv 2209.00189).
- Calibration: the head's weight is scaled on the client's validation examples before the model is used.
- Interpolation: the model that is used lies between the trained and the received one; where, is a setting, or is
  chosen by each client on its own validation examples.
- Proximal term: training is pulled to what was received; Li et al., FedProx, MLSys 2020 (arXiv 1812.06127).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from trifed.adapters.settings import AdapterSettings
from trifed.common.strict_settings import StrictSettings
from trifed.methods.aggregation import BIAS, AggregationSettings, can_aggregate, with_aggregation
from trifed.methods.base import Labels, Method, Options, Proximal
from trifed.methods.local import alone
from trifed.methods.packing import Tensors


class PersonalizationSettings(StrictSettings):
    """How a client makes the shared result its own; for any method."""

    share: bool = Field(
        True,
        description="Send the method's parameters and use what the server returns. If off, every client trains "
        "separately, with the same adapter and the other parts.",
    )
    label_prior: bool = Field(
        False,
        description="Keep the head's bias at the client, where it starts at the log of the client's label shares.",
    )
    prior_smoothing: float = Field(
        0.1, gt=0, description="Examples that are added to those of every label before the shares are taken."
    )
    calibrate: bool = Field(
        False,
        description="Scale the head's weight by the factor in [0, 1] that suits the client's validation examples, "
        "and count their labels in the label prior too, before the model is used.",
    )
    interpolate: Annotated[float, Field(ge=0, le=1)] | Literal["auto"] | None = Field(
        None,
        description="Use a model between the one just trained (0) and the one received (1); with 'auto' each "
        "client chooses the share by the loss on its validation examples. Unset: the method's.",
    )
    proximal: float | None = Field(
        None,
        ge=0,
        allow_inf_nan=False,
        description="Strength μ of a proximal term that pulls local training to the received values. Unset: none.",
    )
    keep: list[str] = Field(
        [],
        description="Parameters that stay at the client although the method sends them, by name or beginning of a "
        "name, such as 'head.'.",
    )


WITHOUT_VALIDATION = 0.75
"""Share of the received model with `interpolate = "auto"` at a client with fewer than two validation examples."""


def compose(
    method: Method,
    personalization: PersonalizationSettings,
    aggregation: AggregationSettings,
    labelled: bool = True,
) -> Method:
    """Return a method with client parts and server parts in place of those that it has by default.

    Args:
        method: Any method; of a preset, its parts are replaced.
        personalization: Client parts.
        aggregation: Server parts.
        labelled: False for a task without a label for each example: parts that need one are left out.
    """
    if not labelled and aggregation.weights == "label-rows":
        aggregation = aggregation.model_copy(update={"weights": "examples"})
    base = method.preset_of or method
    plain = with_aggregation(base, aggregation) if can_aggregate(base) else base
    composed = replace(plain, preset_of=base, calibrated=personalization.calibrate and labelled)
    prior = personalization.label_prior and labelled
    kept = (*personalization.keep, *([BIAS] if prior else []))
    if kept:
        composed = replace(composed, sends=_without(plain.sends, kept))
        composed = replace(composed, receives=plain.receives and _without(plain.receives, kept))
    if prior:
        composed = replace(composed, local_init=LabelPrior(personalization.prior_smoothing))
    if personalization.interpolate is not None:
        chosen = personalization.interpolate == "auto"
        share = WITHOUT_VALIDATION if chosen else float(personalization.interpolate)
        composed = replace(
            composed, evaluated_model="interpolated", interpolation=share, chooses_interpolation=chosen
        )
    if personalization.proximal is not None:
        term = Proximal(strength=personalization.proximal)
        composed = replace(composed, proximal=lambda options: term)
    return composed if personalization.share else alone(composed)


def _without(holds: Callable[[str], bool], kept: tuple[str, ...]) -> Callable[[str], bool]:
    return lambda name: holds(name) and not name.startswith(kept)


@dataclass(frozen=True)
class LabelPrior:
    """Initial bias of the head from a client's label counts. `smoothing`: examples added to each label's."""

    smoothing: float

    def __call__(self, options: Options, labels: Labels, n_labels: int) -> Tensors:
        """log π, (n_labels,): π_y = (n_y + smoothing) / (n + smoothing · n_labels)."""
        counts = np.bincount(labels, minlength=n_labels) + self.smoothing
        return {BIAS: np.log(counts / counts.sum()).astype(np.float32)}


def part_problems(
    method: Method, personalization: PersonalizationSettings, aggregation: AggregationSettings
) -> Iterator[str]:
    """Yield one sentence for each part that the method cannot be given."""
    plain = method.preset_of or method
    if not personalization.share and plain.shared_projections:
        yield (
            f"personalization.share: '{method.name}' makes its projections from what clients send before round 1, "
            f"so that no client can train it separately; leave this out, or choose another method"
        )
    if personalization.proximal is not None and plain.proximal is not None:
        yield (
            f"personalization.proximal: '{method.name}' has a proximal term of its own; leave this out and set "
            f"the method's option"
        )
    if personalization.label_prior and plain.local_init is not None:
        yield f"personalization.label_prior: '{method.name}' has a label prior of its own; leave this out"
    for name in ("weights", "groups"):
        if getattr(aggregation, name) is not None and not can_aggregate(plain) and not sends_nothing(plain):
            yield f"aggregation.{name}: the server of '{method.name}' does not average uploads; leave it out"
    if aggregation.members and aggregation.groups != "given":
        yield "aggregation.members: used with aggregation.groups = 'given' alone; set that too, or leave this out"
    own_weights = plain.with_aggregation is not None or not can_aggregate(plain)
    if aggregation.rule != "mean" and own_weights and not sends_nothing(plain):
        yield f"aggregation.rule: the server of '{method.name}' has weights of its own; leave it out"
    yield from turn_problems(plain, aggregation)


def turn_problems(method: Method, aggregation: AggregationSettings) -> Iterator[str]:
    """Yield a sentence if a method whose rounds take turns is given groups that overlap.

    A tensor whose turn it is not has to be equal at all clients that share. Agreement is not transitive: two
    clients that do not share may both share with a third, whose average would then mix values that it does not
    get.
    """
    if aggregation.groups == "agreement" and len(method.turns) > 1:
        yield (
            f"aggregation.groups: with 'agreement' two clients may share with a third and not with each other; "
            f"the rounds of '{method.name}' take turns, for which all who share need equal tensors; set it to "
            f"'all' or 'given'"
        )


def partly_kept(method: Method, names: Iterable[str]) -> str:
    """Return a layer of which a client keeps some tensors that the server needs with the others; empty if none.

    This concerns methods that say what they receive: their server computes what it sends of a layer from all
    that it gets of it.

    Args:
        method: The composed method.
        names: Names of the parameters that it trains or receives.
    """
    plain = method.preset_of
    if plain is None or plain.receives is None:
        return ""
    kept: dict[str, set[bool]] = {}
    for name in names:
        if ".lora_" in name and _goes_either_way(plain, name):
            kept.setdefault(name.rsplit(".lora_", 1)[0], set()).add(not _goes_either_way(method, name))
    return next((layer for layer, found in kept.items() if len(found) > 1), "")


def _goes_either_way(method: Method, name: str) -> bool:
    return method.sends(name) or bool(method.receives and method.receives(name))


def parts_left_out(
    method: Method, personalization: PersonalizationSettings, aggregation: AggregationSettings, labelled: bool
) -> Iterator[str]:
    """Yield one sentence for each part that is set and has no meaning for the task or the method."""
    plain = method.preset_of or method
    if not labelled:
        for name in ("label_prior", "calibrate"):
            if getattr(personalization, name):
                yield f"personalization.{name}: left out, because this task has no label for each example"
        if aggregation.weights == "label-rows":
            yield "aggregation.weights: 'label-rows' counts as 'examples', because this task has no such label"
    elif (
        aggregation.weights == "label-rows"
        and not any(map(plain.sends, (BIAS, "head.weight")))
        and not (sends_nothing(plain))
    ):
        yield f"aggregation.weights: 'label-rows' counts as 'examples', because '{method.name}' sends no head"
    if sends_nothing(plain):
        given = {f"personalization.{name}": getattr(personalization, name) for name in ("interpolate", "proximal")}
        given |= {f"aggregation.{name}": getattr(aggregation, name) for name in ("weights", "groups")}
        for name in (name for name, value in given.items() if value is not None):
            yield f"{name}: left out, because '{method.name}' sends nothing"


def adapter_settings_left_out(method: Method, adapter: AdapterSettings) -> Iterator[str]:
    """Yield one sentence for each setting of the adapter that is set and has no meaning for the method."""
    if adapter.init_std is not None and method.adapter in ("public-frames", "none"):
        yield f"adapter.init_std: left out, because '{method.name}' does not use it"
    if adapter.train_norms and method.adapter == "none":
        yield f"adapter.train_norms: left out, because '{method.name}' trains the whole model and sends it"


def sends_nothing(method: Method) -> bool:
    """Return whether a method sends no parameter of any kind."""
    return not any(map(method.sends, EXAMPLES_OF_NAMES))


EXAMPLES_OF_NAMES = ("x.lora_A.weight", "x.lora_B.weight", "x.lora_C.weight", "head.weight", BIAS, "x.weight")
"""One parameter name of each kind: a method that sends none of them sends nothing."""
