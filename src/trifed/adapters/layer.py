"""The adapted layer: what a core adds to a PEFT LoRA layer."""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora.layer import Linear, LoraLayer, LoraVariant
from peft.utils.integrations import dequantize_module_weight
from peft.utils.other import transpose
from torch import nn

from trifed.adapters.config import TriLoraConfig
from trifed.adapters.shared_projections import public_frames
from trifed.common.errors import AdapterError


class TriLoraVariant(LoraVariant):  # type: ignore[misc]
    """Forward and merge of one layer with a core; PEFT calls these in place of plain LoRA's."""

    @staticmethod
    def init(module: Any, adapter_name: str, **kwargs: Any) -> None:
        """Nothing: `TriLoraLayer.add_core` prepares the layer before PEFT can ask for it."""

    @staticmethod
    def forward(
        module: Any, active_adapter: str, x: torch.Tensor, result: torch.Tensor, **kwargs: Any
    ) -> torch.Tensor:
        """Return `result` + s·B(C(A(dropout(x)))). `x`: (..., d_in); `result`: (..., d_out)."""
        hidden = module.lora_A[active_adapter](module.lora_dropout[active_adapter](x))
        hidden = module.lora_C[active_adapter](hidden)
        scaling = module.scaling[active_adapter]
        if scaling != 1.0:
            # Scaled here, at r numbers a token; PEFT scales the d_out numbers behind B. It pays
            # for the core.
            hidden = hidden * scaling
        changed: torch.Tensor = result + module.lora_B[active_adapter](hidden)
        return changed

    @staticmethod
    def merge_safe(module: Any, active_adapter: str, orig_weight: torch.Tensor) -> torch.Tensor:
        """Return a new weight with the adapter added."""
        delta: torch.Tensor = module.get_delta_weight(active_adapter)
        return orig_weight + delta.to(orig_weight.dtype)

    @staticmethod
    def merge_unsafe(module: Any, active_adapter: str, orig_weight: torch.Tensor) -> None:
        """Add the adapter to the weight in place."""
        orig_weight.data += module.get_delta_weight(active_adapter).to(orig_weight.dtype)

    @staticmethod
    def unmerge(module: Any, active_adapter: str, orig_weight: torch.Tensor) -> torch.Tensor:
        """Return a new weight with the adapter taken out again."""
        delta: torch.Tensor = module.get_delta_weight(active_adapter)
        return orig_weight - delta.to(orig_weight.dtype)


class TriLoraLayer:
    """Mixed into a PEFT LoRA layer after PEFT has made it, so that all of PEFT's kinds of layer are kept.

    `lora_C`: one `nn.Linear(r, r, bias=False)` for each adapter name, as `lora_A` and `lora_B` have.
    """

    # PEFT moves, casts, freezes, activates and deletes what is named here.
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
        """Add one more adapter to a layer that has some; see `add_core` for the errors."""
        super().update_layer(adapter_name, r, lora_alpha=lora_alpha, config=config, **kwargs)  # type: ignore[misc]
        self.add_core(adapter_name, config, str(kwargs.get("target_name", "")))

    def add_core(self, adapter_name: str, config: TriLoraConfig, layer_name: str) -> None:
        """Give an adapter that has A and B its core C, shape (r, r), and the start of `config.train`.

        Raises `AdapterError` naming the layer if its weight has no frames of this rank.
        """
        rank = self.r[adapter_name]
        sibling = _weight(self.lora_A, adapter_name)
        # skip_init draws no random numbers: A, B and the head start as plain LoRA's do from one seed.
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
                self._start_from_frames(adapter_name, layer_name)
        elif not on_meta:
            nn.init.eye_(_weight(self.lora_C, adapter_name))
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)  # type: ignore[attr-defined]

    def _start_from_frames(self, adapter_name: str, layer_name: str) -> None:
        weight = dequantize_module_weight(self.get_base_layer())  # type: ignore[attr-defined]
        try:
            a_frame, b_frame = public_frames(self._as_linear(weight), self.r[adapter_name])
        except AdapterError as error:
            raise AdapterError(f"layer {layer_name!r}: {error}") from error
        # float32 also over a base of 16 bits, where PEFT would first round A and B to the base's dtype:
        # frames that are not orthonormal to float32 accuracy would be a different public start.
        dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
        core = torch.zeros(a_frame.shape[0], a_frame.shape[0])
        for part, start in ((self.lora_A, a_frame), (self.lora_B, b_frame), (self.lora_C, core)):
            part[adapter_name].weight = nn.Parameter(start.to(device=weight.device, dtype=dtype))

    def factors(self, adapter_name: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return A (r, d_in), B (d_out, r) and C (r, r), the parameters themselves."""
        a, b, c = (_weight(part, adapter_name) for part in (self.lora_A, self.lora_B, self.lora_C))
        return a, b, c

    def _as_linear(self, weight: torch.Tensor) -> torch.Tensor:
        """Turn the stored weight into (d_out, d_in), or back; Conv1D stores (d_in, d_out)."""
        turned: torch.Tensor = transpose(weight, getattr(self, "fan_in_fan_out", False))
        return turned

    def get_delta_weight(self, adapter: str) -> torch.Tensor:
        """Return s·B·C·A in the orientation of the stored weight: (d_out, d_in), for Conv1D (d_in, d_out)."""
        a, b, c = self.factors(adapter)
        # Products of 16-bit matrices are slow on some CPUs and lose digits between the two factors.
        work = torch.promote_types(b.dtype, torch.float32)
        delta = (b.to(work) @ c.to(work)) @ a.to(work)
        return self._as_linear(delta * self.scaling[adapter]).to(b.dtype)


def _weight(part: nn.ModuleDict, adapter_name: str) -> torch.Tensor:
    weight: torch.Tensor = part[adapter_name].get_parameter("weight")
    return weight


class TriLinear(TriLoraLayer, Linear):  # type: ignore[misc]
    """Adapted `nn.Linear` or transformers `Conv1D` (GPT-2)."""


_CLASSES: dict[type, type] = {Linear: TriLinear}


def with_core(module: nn.Module, adapter_name: str, config: TriLoraConfig, layer_name: str) -> nn.Module:
    """Turn a LoRA layer that PEFT has just made into one with a core; returns the same object.

    Raises `AdapterError` if the layer is not a linear map.
    """
    parts = [getattr(module, name, {}) for name in ("lora_A", "lora_B")]
    if not all(adapter_name in part and isinstance(part[adapter_name], nn.Linear) for part in parts):
        raise AdapterError(f"layer {layer_name!r} is a {type(module).__name__}: only linear layers can be adapted")
    plain = type(module)
    if plain not in _CLASSES:  # a quantised kind, whose class exists only where its package is installed
        _CLASSES[plain] = type(f"Tri{plain.__name__}", (TriLoraLayer, plain), {})
    module.lora_C = nn.ModuleDict({})
    module.__class__ = _CLASSES[plain]
    module.add_core(adapter_name, config, layer_name)  # type: ignore[operator]
    return module
