"""LoRA with a residual: y = W0 x + s (B A + R) x, where R, (d_out, d_in), is frozen and comes from a server.

R stands for a change of the frozen weight W0, as in FedEx-LoRA (arXiv 2410.09432). It has a tensor of its own, so
that W0 stays the same for all clients of a process, and may be stored in fewer bits.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model_state_dict
from peft.tuners.lora.layer import Linear, LoraVariant
from safetensors.torch import save_file
from torch import Tensor, nn

from trifed.common.errors import ModelError

ADAPTER = "default"
SMALLEST = 1e-6
"""Singular values of R below this share of the largest one are left out of an export."""


class ResidualVariant(LoraVariant):  # type: ignore[misc]
    """Forward pass and merge of a LoRA layer with a residual; PEFT calls them instead of plain LoRA's."""

    @staticmethod
    def init(module: Any, adapter_name: str, **kwargs: Any) -> None:
        """Do nothing: `add_residuals` has prepared the layer."""

    @staticmethod
    def forward(module: Any, active_adapter: str, x: Tensor, result: Tensor, **kwargs: Any) -> Tensor:
        """Return `result` + s (B(A(dropout(x))) + R(x)). `x`: (..., d_in); `result`: (..., d_out)."""
        hidden = module.lora_A[active_adapter](module.lora_dropout[active_adapter](x))
        change = module.lora_B[active_adapter](hidden) + module.lora_R[active_adapter](x)
        changed: Tensor = result + change * module.scaling[active_adapter]
        return changed

    @staticmethod
    def merge_safe(module: Any, active_adapter: str, orig_weight: Tensor) -> Tensor:
        """Return a new weight with the adapter added."""
        return orig_weight + _delta(module, active_adapter).to(orig_weight.dtype)

    @staticmethod
    def merge_unsafe(module: Any, active_adapter: str, orig_weight: Tensor) -> None:
        """Add the adapter to the weight in place."""
        orig_weight.data += _delta(module, active_adapter).to(orig_weight.dtype)

    @staticmethod
    def unmerge(module: Any, active_adapter: str, orig_weight: Tensor) -> Tensor:
        """Return a new weight with the adapter taken out again."""
        return orig_weight - _delta(module, active_adapter).to(orig_weight.dtype)


def _delta(module: Any, adapter: str) -> Tensor:
    """Return s (B A + R) in the stored weight's layout, (d_out, d_in) or (d_in, d_out) for Conv1D."""
    a, b, r = (getattr(module, f"lora_{part}")[adapter].weight.float() for part in "ABR")
    delta: Tensor = (b @ a + r) * module.scaling[adapter]
    return delta.T if module.fan_in_fan_out else delta


def add_residuals(model: PeftModel) -> None:
    """Add R = 0 to every layer of a fresh plain LoRA adapter; no random number is drawn.

    Raises:
        ModelError: A layer cannot have one, such as a layer whose weights are packed into fewer bits.
    """
    for name, module in model.named_modules():
        if ADAPTER in getattr(module, "lora_A", ()) and not isinstance(module, Linear):
            raise ModelError(
                f"model.dtype: layer '{name}' is a {type(module).__name__}, which cannot have a residual; set "
                "model.dtype to float32 or bfloat16, or choose another method"
            )
    for _, layer in _layers(model):
        weight = layer.lora_A[ADAPTER].weight
        residual = nn.utils.skip_init(  # type: ignore[no-untyped-call]
            nn.Linear, layer.in_features, layer.out_features, bias=False, device=weight.device, dtype=weight.dtype
        )
        nn.init.zeros_(residual.weight)
        # It is none of the layer's `adapter_layer_names`: PEFT would let it train when adapters are switched on.
        layer.lora_R = nn.ModuleDict({ADAPTER: residual.requires_grad_(False)})
        layer.lora_variant[ADAPTER] = ResidualVariant()


def has_residuals(model: PeftModel) -> bool:
    """Return whether the adapter's layers have a residual."""
    return any(hasattr(layer, "lora_R") for _, layer in _layers(model))


def _layers(model: PeftModel) -> Iterator[tuple[str, Any]]:
    for name, module in model.named_modules():
        if isinstance(module, Linear) and ADAPTER in module.lora_A:
            yield name, module


def to_plain_lora(model: PeftModel) -> tuple[LoraConfig, dict[str, Tensor]]:
    """Return the plain LoRA of a higher rank that computes the same function.

    R = U S Vᵀ of rank q becomes q more columns of B, U √S, and as many rows of A, √S Vᵀ; the scale s stays. All
    layers get the largest q, since one rank is what most loaders read.

    Returns:
        The configuration, and tensors on the CPU under the names that `save_pretrained` uses.
    """
    config = model.peft_config[ADAPTER]
    saved = get_peft_model_state_dict(model, adapter_name=ADAPTER, save_embedding_layers=False)
    tensors = {name: tensor.detach().cpu() for name, tensor in saved.items()}
    parts = {}
    for name, _ in _layers(model):
        u, s, vt = torch.linalg.svd(tensors.pop(f"{name}.lora_R.weight").double(), full_matrices=False)
        keep = int((s > SMALLEST * s[0]).sum())
        root = s[:keep].sqrt()
        parts[name] = u[:, :keep] * root, root[:, None] * vt[:keep]
    most = max((len(rows) for _, rows in parts.values()), default=0)
    for name, (columns, rows) in parts.items():
        a, b = tensors[f"{name}.lora_A.weight"], tensors[f"{name}.lora_B.weight"]
        none = torch.zeros(most - len(rows), 1)
        more_rows = torch.cat([rows.to(a.dtype), none.to(a.dtype).expand(-1, a.shape[1])])
        more_columns = torch.cat([columns.to(b.dtype), none.to(b.dtype).T.expand(len(b), -1)], 1)
        tensors[f"{name}.lora_A.weight"] = torch.cat([a, more_rows])
        tensors[f"{name}.lora_B.weight"] = torch.cat([b, more_columns], 1)
    rank = config.r + most
    changed = {"r": rank, "lora_alpha": config.lora_alpha * rank / config.r, "inference_mode": True}
    return LoraConfig(**{**config.to_dict(), **changed}), {n: t.contiguous() for n, t in tensors.items()}


def export_with_residuals(model: PeftModel, folder: Path) -> None:
    """Write `to_plain_lora` as adapter_config.json and adapter_model.safetensors."""
    config, tensors = to_plain_lora(model)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config.save_pretrained(str(folder))
