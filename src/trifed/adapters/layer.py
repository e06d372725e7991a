"""The adapted layer: a PEFT LoRA layer with a core between A and B."""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora.layer import Linear, LoraLayer, LoraVariant
from peft.utils.integrations import dequantize_module_weight
from torch import nn

from trifed.adapters.config import TriLoraConfig
from trifed.adapters.shared_projections import svd_projections
from trifed.common.errors import AdapterError


class TriLoraVariant(LoraVariant):  # type: ignore[misc]
    """Forward pass and merge of one layer with a core; PEFT calls them instead of plain LoRA's."""

    @staticmethod
    def init(module: Any, adapter_name: str, **kwargs: Any) -> None:
        """Do nothing: `TriLoraLayer.add_core` has prepared the layer before PEFT calls this."""

    @staticmethod
    def forward(
        module: Any, active_adapter: str, x: torch.Tensor, result: torch.Tensor, **kwargs: Any
    ) -> torch.Tensor:
        """Return `result` + s·B(C(A(dropout(x)))). `x`: (..., d_in); `result`: (..., d_out)."""
        hidden = module.lora_A[active_adapter](module.lora_dropout[active_adapter](x))
        hidden = module.lora_C[active_adapter](hidden)
        scaling = module.scaling[active_adapter]
        if scaling != 1.0:
            # Scaling r numbers a token here, not d_out numbers after B as PEFT does, saves what the core costs.
            hidden = hidden * scaling
        return result.add(module.lora_B[active_adapter](hidden))

    @staticmethod
    def merge_safe(module: Any, active_adapter: str, orig_weight: torch.Tensor) -> torch.Tensor:
        """Return a new weight with the adapter added."""
        return orig_weight.add(module.get_delta_weight(active_adapter).to(orig_weight.dtype))

    @staticmethod
    def merge_unsafe(module: Any, active_adapter: str, orig_weight: torch.Tensor) -> None:
        """Add the adapter to the weight in place."""
        orig_weight.data += module.get_delta_weight(active_adapter).to(orig_weight.dtype)

    @staticmethod
    def unmerge(module: Any, active_adapter: str, orig_weight: torch.Tensor) -> torch.Tensor:
        """Return a new weight with the adapter taken out again."""
        return orig_weight.sub(module.get_delta_weight(active_adapter).to(orig_weight.dtype))


class TriLoraLayer:
    """Mixin that adds a core to a PEFT LoRA layer after PEFT has made it, for all of PEFT's kinds of layer.

    Attributes:
        lora_C: One `nn.Linear(r, r, bias=False)` for each adapter name, like `lora_A` and `lora_B`.
    """

    # PEFT moves, casts, freezes, activates and deletes the parts that are named here.
    adapter_layer_names: tuple[str, ...] = (*LoraLayer.adapter_layer_names, "lora_C")

    lora_A: nn.ModuleDict  # noqa: N815  (PEFT's names)
    lora_B: nn.ModuleDict  # noqa: N815
    lora_C: nn.ModuleDict  # noqa: N815
    r: dict[str, int]
    lora_alpha: dict[str, float]
    scaling: dict[str, float]
    lora_variant: dict[str, Any]
    frozen_peft_weight_names: dict[str, tuple[str, ...]]

    def update_layer(
        self, adapter_name: str, r: int, lora_alpha: float, config: TriLoraConfig, **kwargs: Any
    ) -> None:
        """Add another adapter to an adapted layer.

        Raises:
            AdapterError: The layer's weight has no projections of this rank.
        """
        super().update_layer(adapter_name, r, lora_alpha=lora_alpha, config=config, **kwargs)  # type: ignore[misc]
        self.add_core(adapter_name, config, str(kwargs.get("target_name", "")))

    def add_core(self, adapter_name: str, config: TriLoraConfig, layer_name: str) -> None:
        """Add the core C, shape (r, r), to an adapter that has A and B, and initialise it for `config.train`.

        Raises:
            AdapterError: The weight of the layer `layer_name` has no projections of this rank.
        """
        rank = self.r[adapter_name]
        sibling = _weight(self.lora_A, adapter_name)
        # skip_init draws no random numbers, so that A, B and the head equal plain LoRA's for the same seed.
        self.lora_C[adapter_name] = nn.utils.skip_init(  # type: ignore[no-untyped-call]
            nn.Linear, rank, rank, bias=False, device=sibling.device, dtype=sibling.dtype
        )
        self.lora_variant[adapter_name] = TriLoraVariant()
        on_meta = sibling.device.type == "meta"  # PEFT's low_cpu_mem_usage: the values come from a file
        if config.train == "core":
            # set_scale and unscale_layer compute alpha / r anew, so alpha has to agree with a scale of 1.
            self.lora_alpha[adapter_name] = rank
            self.scaling[adapter_name] = 1.0
            self.frozen_peft_weight_names = {
                **self.frozen_peft_weight_names,
                adapter_name: ("lora_A", "lora_B"),
            }
            if not on_meta:
                self._init_from_svd(adapter_name, layer_name)
        elif not on_meta:
            nn.init.eye_(_weight(self.lora_C, adapter_name))
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)  # type: ignore[attr-defined]

    def _init_from_svd(self, adapter_name: str, layer_name: str) -> None:
        weight = dequantize_module_weight(self.get_base_layer())  # type: ignore[attr-defined]
        try:
            a, b = svd_projections(self._as_linear(weight), self.r[adapter_name])
        except AdapterError as error:
            raise AdapterError(f"layer {layer_name!r}: {error}") from error
        # float32 even for a 16-bit base, where PEFT would round A and B to the base's dtype: rounded
        # projections are not orthonormal to float32 accuracy and would differ between clients.
        dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
        for part, start in ((self.lora_A, a), (self.lora_B, b), (self.lora_C, torch.zeros(len(a), len(a)))):
            part[adapter_name].weight = nn.Parameter(start.to(device=weight.device, dtype=dtype))

    def factors(self, adapter_name: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the parameters A (r, d_in), B (d_out, r) and C (r, r), without a copy."""
        return (
            _weight(self.lora_A, adapter_name),
            _weight(self.lora_B, adapter_name),
            _weight(self.lora_C, adapter_name),
        )

    def _as_linear(self, weight: torch.Tensor) -> torch.Tensor:
        """Convert between the stored layout and (d_out, d_in); Conv1D stores (d_in, d_out)."""
        return weight.T if getattr(self, "fan_in_fan_out", False) else weight

    def get_delta_weight(self, adapter: str) -> torch.Tensor:
        """Return s·B·C·A in the stored weight's layout, (d_out, d_in) or (d_in, d_out) for Conv1D."""
        a, b, c = self.factors(adapter)
        # Products of 16-bit matrices are slow on some CPUs and lose digits between the two factors.
        work = torch.promote_types(b.dtype, torch.float32)
        delta = (b.to(work) @ c.to(work)) @ a.to(work)
        return self._as_linear(delta * self.scaling[adapter]).to(b.dtype)


def _weight(part: nn.ModuleDict, adapter_name: str) -> torch.Tensor:
    return part[adapter_name].get_parameter("weight")


class TriLinear(TriLoraLayer, Linear):  # type: ignore[misc]
    """Adapted `nn.Linear` or transformers `Conv1D` (GPT-2)."""


_CLASSES: dict[type, type] = {Linear: TriLinear}


def add_core_to_layer(module: nn.Module, adapter_name: str, config: TriLoraConfig, layer_name: str) -> nn.Module:
    """Add a core to a LoRA layer that PEFT has just made; change and return this layer.

    Raises:
        AdapterError: The layer is not a linear map.
    """
    parts = [getattr(module, name, {}) for name in ("lora_A", "lora_B")]
    if not all(adapter_name in part and isinstance(part[adapter_name], nn.Linear) for part in parts):
        raise AdapterError(
            f"layer {layer_name!r}: got a {type(module).__name__}, expected a linear layer; "
            f"remove it from target_modules"
        )
    plain = type(module)
    if plain not in _CLASSES:  # a quantised layer's class exists only where its package is installed
        _CLASSES[plain] = type(f"Tri{plain.__name__}", (TriLoraLayer, plain), {})
    module.lora_C = nn.ModuleDict({})
    module.__class__ = _CLASSES[plain]
    module.add_core(adapter_name, config, layer_name)  # type: ignore[operator]
    return module
