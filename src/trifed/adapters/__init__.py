"""Adapters: the tri-matrix LoRA as a PEFT method, and its exact export to plain LoRA."""

from trifed.adapters.export import export_plain_lora, to_plain_lora
from trifed.adapters.loading import load_adapter
from trifed.adapters.tri_matrix import TriLoraConfig, TriLoraModel, adapted_layers, frames_hash

__all__ = [
    "TriLoraConfig",
    "TriLoraModel",
    "adapted_layers",
    "export_plain_lora",
    "frames_hash",
    "load_adapter",
    "to_plain_lora",
]
