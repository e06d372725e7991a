"""Two LoRAs on a layer, weighed for each example: y = W0 x + s ((1 - a) B A x + a B_l A_l x).

A, B are the global LoRA, A_l, B_l the local one, as in FedDPA (arXiv 2403.19211). In training a is a number. In
evaluation it is a(x) = <w, u(x)>, limited to [0, 1], where u(x) is the unit vector of the mean of the last hidden
states that the frozen base, without both LoRAs, has of the example. With w = scale times the mean of u over the
training examples, a(x) is scale times the mean cosine similarity of the example to those.

Importing this module registers the PEFT type `LORADUAL` for `get_peft_model` and `PeftModel.from_pretrained`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from peft.mapping import (
    PEFT_TYPE_TO_CONFIG_MAPPING,
    PEFT_TYPE_TO_PREFIX_MAPPING,
    PEFT_TYPE_TO_TUNER_MAPPING,
)
from torch import Tensor, nn
from torch.nn.functional import normalize

from trifed.adapters.config import DUAL_TYPE
from trifed.adapters.mixture import (
    LoraMixtureConfig,
    LoraMixtureModel,
    MixtureVariant,
    add_zeros,
    linear_layer,
    mixture_layers,
    second_lora,
)

PARTS = ("lora_A", "lora_B", "lora_local_A", "lora_local_B")


@dataclass
class LoraDualConfig(LoraMixtureConfig):
    """The fields of `peft.LoraConfig`; both LoRAs have them in common."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = DUAL_TYPE


@dataclass
class LocalShare:
    """The share of the local LoRA in the next forward pass of all layers of a model.

    Attributes:
        in_training: The share while the model trains.
        now: A number, the share of each of n examples, (n, 1), or None: neither LoRA is used.
    """

    in_training: float = 0.5
    now: float | Tensor | None = None


class DualVariant(MixtureVariant):
    """Forward pass of one layer; PEFT calls it instead of plain LoRA's."""

    @staticmethod
    def forward(module: Any, active_adapter: str, x: Tensor, result: Tensor, **kwargs: Any) -> Tensor:
        """Return `result` + s ((1 - a) B A + a B_l A_l) x. `x`: (..., d_in); `result`: (..., d_out)."""
        share: LocalShare = module.local_share
        a = share.now
        if a is None:
            return result
        if isinstance(a, Tensor):
            # Some models make several rows of an example, one after the other. DeBERTa's layers also read a table
            # of positions, which belongs to no example: both LoRAs count alike for it.
            rows, left = divmod(len(x), len(a))
            each = a.repeat_interleave(rows, 0).view(-1, *[1] * (x.dim() - 1)).to(x.device)
            a = 0.5 if left or not rows else each
        first, second, local_a, local_b = (getattr(module, part)[active_adapter] for part in PARTS)
        inputs = module.lora_dropout[active_adapter](x)
        mixed = (1 - a) * second(first(inputs))
        if not isinstance(a, float) or a:
            mixed = mixed + a * local_b(local_a(inputs))
        changed: Tensor = result + mixed * module.scaling[active_adapter]
        return changed


def add_local_lora(module: nn.Module, adapter_name: str, layer_name: str) -> nn.Module:
    """Add a local LoRA of zeros to a LoRA layer that PEFT has just made, and return this layer.

    Raises:
        AdapterError: The layer is not a linear map.
    """
    layer = linear_layer(module, layer_name)
    add_zeros(layer, adapter_name, second_lora(layer, adapter_name, "local"))
    layer.lora_variant[adapter_name] = DualVariant()
    return module


class LoraDualModel(LoraMixtureModel):
    """PEFT's tuner for `LoraDualConfig`, with w as `lora_share`, (1, hidden)."""

    parts = PARTS
    add_parts = staticmethod(add_local_lora)

    def __init__(self, model: nn.Module, config: Any, adapter_name: str, **kwargs: Any) -> None:
        super().__init__(model, config, adapter_name, **kwargs)
        facts: Any = model.config
        # Convolutional models have one size for each stage. A model without either is of a task without a head.
        hidden = getattr(facts, "hidden_size", None) or (getattr(facts, "hidden_sizes", None) or [1])[-1]
        add_zeros(self, adapter_name, {"lora_share": (hidden, 1)})
        self.local_share = LocalShare()
        for _, layer in mixture_layers(self, PARTS[-1]):
            layer.local_share = self.local_share

    @classmethod
    def _shapes(cls, model: nn.Module, adapter_name: str) -> dict[str, torch.Size]:
        shapes = super()._shapes(model, adapter_name)
        for name, module in model.named_modules():
            if isinstance(module, LoraDualModel):
                shapes[f"{name}.lora_share.{adapter_name}.weight"] = module.lora_share[adapter_name].weight.shape
        return shapes

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        """Set the share of the local LoRA for the forward pass that PEFT is about to run."""
        with super()._enable_peft_forward_hooks(*args, **kwargs):
            if self.training:
                self.local_share.now = self.local_share.in_training
            else:
                unit = self.unit_features(*args, **kwargs)
                self.local_share.now = self.lora_share[self.active_adapters[0]](unit).detach().clamp(0, 1)
            yield  # the share stays: with gradient checkpointing layers run again later

    @torch.no_grad()
    def unit_features(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return u of n examples, (n, hidden), float32; the arguments are those of the base model."""
        self.local_share.now = None
        states: Tensor = self.model(*args, **kwargs).last_hidden_state.float()
        if states.dim() == 4:  # (n, hidden, height, width) of a convolutional model
            return normalize(states.mean((2, 3)), dim=-1)
        mask = kwargs.get("attention_mask")  # images have none
        if mask is not None:
            states = states * mask[..., None]
        return normalize(states.sum(1), dim=-1)


def set_local_share(model: nn.Module, share: float) -> None:
    """Set the share of the local LoRA in training, in a model that has one."""
    for module in model.modules():
        if isinstance(module, LoraDualModel):
            module.local_share.in_training = share


def start_local_loras(model: PeftModel) -> None:
    """Set A_l of a fresh adapter to the initial A; B_l and w stay zero."""
    with torch.no_grad():
        for _, layer in mixture_layers(model, PARTS[-1]):
            for name, part in layer.lora_local_A.items():
                part.weight.copy_(layer.lora_A[name].weight)


# As for `tri_matrix`: PEFT's tables are plain dicts and compare the type as a string.
PEFT_TYPE_TO_CONFIG_MAPPING[DUAL_TYPE] = LoraDualConfig
PEFT_TYPE_TO_TUNER_MAPPING[DUAL_TYPE] = LoraDualModel
PEFT_TYPE_TO_PREFIX_MAPPING[DUAL_TYPE] = LoraDualModel.prefix
