"""Two LoRAs on a layer and a mixer: y = W0 x + s (g_0 B_r A_r x + g_1 B A x), where g = softmax(M x).

A, B are a client's own; A_r, B_r, the "rest", are frozen and come from a server; M, (2, d_in), weighs both for
each token, as in FedALT (arXiv 2503.11880). The weights depend on the input, so no plain LoRA computes the same.

Importing this module registers the PEFT type `LORAMIXTURE` for `get_peft_model` and `PeftModel.from_pretrained`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NoReturn

import torch
from peft import LoraConfig, PeftModel
from peft.mapping import (
    PEFT_TYPE_TO_CONFIG_MAPPING,
    PEFT_TYPE_TO_PREFIX_MAPPING,
    PEFT_TYPE_TO_TUNER_MAPPING,
)
from peft.tuners.lora import LoraModel
from peft.tuners.lora.layer import Linear, LoraVariant
from torch import Tensor, nn

from trifed.adapters.config import MIXTURE_TYPE
from trifed.common.errors import AdapterError

PARTS = ("lora_A", "lora_B", "lora_rest_A", "lora_rest_B", "lora_mixer")


@dataclass
class LoraMixtureConfig(LoraConfig):  # type: ignore[misc]
    """The fields of `peft.LoraConfig`; both LoRAs have them in common."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = MIXTURE_TYPE


class MixtureVariant(LoraVariant):  # type: ignore[misc]
    """Forward pass of one layer; PEFT calls it instead of plain LoRA's."""

    @staticmethod
    def init(module: Any, adapter_name: str, **kwargs: Any) -> None:
        """Do nothing: `add_mixture` has prepared the layer."""

    @staticmethod
    def forward(module: Any, active_adapter: str, x: Tensor, result: Tensor, **kwargs: Any) -> Tensor:
        """Return `result` + s (g_0 B_r A_r + g_1 B A) x. `x`: (..., d_in); `result`: (..., d_out)."""
        a, b, rest_a, rest_b, mixer = (getattr(module, part)[active_adapter] for part in PARTS)
        inputs = module.lora_dropout[active_adapter](x)
        shares = mixer(x).float().softmax(-1)
        rest, own = rest_b(rest_a(inputs)), b(a(inputs))
        mixed = shares[..., :1] * rest + shares[..., 1:] * own
        changed: Tensor = result + mixed * module.scaling[active_adapter]
        return changed

    @staticmethod
    def merge_safe(module: Any, active_adapter: str, orig_weight: Tensor) -> NoReturn:
        """Raise AdapterError: no weight computes the same."""
        raise AdapterError("a mixture of two LoRAs depends on the input; it cannot be merged into a weight")

    merge_unsafe = merge_safe


def add_mixture(module: nn.Module, adapter_name: str, layer_name: str) -> nn.Module:
    """Add a second LoRA and a mixer, all zero, to a LoRA layer that PEFT has just made; return this layer.

    Raises:
        AdapterError: The layer is not a linear map.
    """
    layer = linear_layer(module, layer_name)
    add_zeros(
        layer, adapter_name, {**second_lora(layer, adapter_name, "rest"), "lora_mixer": (layer.in_features, 2)}
    )
    layer.lora_variant[adapter_name] = MixtureVariant()
    return module


def linear_layer(module: nn.Module, layer_name: str) -> Any:
    """Return a LoRA layer that PEFT has made; raise AdapterError if it is not a linear map."""
    if not isinstance(module, Linear):
        raise AdapterError(
            f"layer {layer_name!r}: got a {type(module).__name__}, expected a linear layer; "
            f"remove it from target_modules"
        )
    return module


def second_lora(layer: Any, adapter_name: str, name: str) -> dict[str, tuple[int, int]]:
    """Return the sizes (d_in, d_out) of the linear maps of a second LoRA beside a layer's first one."""
    rank = layer.r[adapter_name]
    return {f"lora_{name}_A": (layer.in_features, rank), f"lora_{name}_B": (rank, layer.out_features)}


def add_zeros(module: nn.Module, adapter_name: str, sizes: Mapping[str, tuple[int, int]]) -> None:
    """Add frozen linear maps of zeros to a module, by name, on the device of its parameters."""
    device = next(module.parameters()).device
    for name, (d_in, d_out) in sizes.items():
        # float32 for a 16-bit base too, as PEFT makes A and B in the end.
        part = nn.utils.skip_init(  # type: ignore[no-untyped-call]
            nn.Linear, d_in, d_out, bias=False, device=device, dtype=torch.float32
        )
        nn.init.zeros_(part.weight)
        setattr(module, name, nn.ModuleDict({adapter_name: part.requires_grad_(False)}))


class LoraMixtureModel(LoraModel):  # type: ignore[misc]
    """PEFT's tuner for `LoraMixtureConfig`."""

    parts: ClassVar[tuple[str, ...]] = PARTS
    add_parts = staticmethod(add_mixture)

    @classmethod
    def _create_new_module(
        cls, config: LoraConfig, adapter_name: str, target: nn.Module, **kwargs: Any
    ) -> nn.Module:
        module = LoraModel._create_new_module(config, adapter_name, target, **kwargs)
        return cls.add_parts(module, adapter_name, str(kwargs.get("target_name", "")))

    @classmethod
    def _shapes(cls, model: nn.Module, adapter_name: str) -> dict[str, torch.Size]:
        """Return the shape of each tensor of an adapter's file, by name."""
        return {
            f"{name}.{part}.{adapter_name}.weight": getattr(layer, part)[adapter_name].weight.shape
            for name, layer in mixture_layers(model, cls.parts[-1])
            for part in cls.parts
        }

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: LoraConfig, adapter_name: str, state_dict: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        # PEFT loads with strict=False; without some of its parts the file would be another adapter.
        remapped: dict[str, Tensor] = super()._remap_adapter_state_dict_for_load(
            model, config, adapter_name, state_dict
        )
        expected = cls._shapes(model, adapter_name)
        found = {key: tensor.shape for key, tensor in remapped.items() if ".lora_" in key}
        wrong = sorted(key for key in expected.keys() | found.keys() if expected.get(key) != found.get(key))
        if wrong:
            raise AdapterError(f"adapter {adapter_name!r} does not fit its file: {', '.join(wrong[:6])}")
        return remapped


def mixture_layers(model: nn.Module, part: str = "lora_mixer") -> Iterator[tuple[str, Any]]:
    """Yield (name in `model`, layer) for every LoRA layer that has a part, the mixer, in the model's order."""
    for name, module in model.named_modules():
        if isinstance(module, Linear) and hasattr(module, part):
            yield name, module


def start_mixers(model: PeftModel, seed: int) -> None:
    """Draw the mixers of a fresh adapter as `nn.Linear` does; other random numbers stay what they are."""
    generator = torch.Generator().manual_seed(seed)
    for _, layer in mixture_layers(model):
        for mixer in layer.lora_mixer.values():
            if mixer.weight.device.type == "meta":
                continue
            drawn = torch.empty(mixer.weight.shape)
            nn.init.kaiming_uniform_(drawn, a=math.sqrt(5), generator=generator)
            with torch.no_grad():
                mixer.weight.copy_(drawn)


# As for `tri_matrix`: PEFT's tables are plain dicts and compare the type as a string.
PEFT_TYPE_TO_CONFIG_MAPPING[MIXTURE_TYPE] = LoraMixtureConfig
PEFT_TYPE_TO_TUNER_MAPPING[MIXTURE_TYPE] = LoraMixtureModel
PEFT_TYPE_TO_PREFIX_MAPPING[MIXTURE_TYPE] = LoraMixtureModel.prefix
