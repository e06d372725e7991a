"""Tri-matrix LoRA as a PEFT method, and its exact export to plain LoRA.

The public names load torch, so they are imported on first use. `trifed.adapters.settings` needs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trifed.adapters.attach import load_adapter
    from trifed.adapters.export import export_plain_lora, to_plain_lora
    from trifed.adapters.tri_matrix import TriLoraConfig, TriLoraModel, adapted_layers, frames_hash

_SUBMODULES = {
    "TriLoraConfig": "tri_matrix",
    "TriLoraModel": "tri_matrix",
    "adapted_layers": "tri_matrix",
    "export_plain_lora": "export",
    "frames_hash": "tri_matrix",
    "load_adapter": "attach",
    "to_plain_lora": "export",
}


def __getattr__(name: str) -> Any:
    if name not in _SUBMODULES:
        raise AttributeError(f"module 'trifed.adapters' has no attribute '{name}'")
    return getattr(import_module(f"trifed.adapters.{_SUBMODULES[name]}"), name)


__all__ = [
    "TriLoraConfig",
    "TriLoraModel",
    "adapted_layers",
    "export_plain_lora",
    "frames_hash",
    "load_adapter",
    "to_plain_lora",
]
