"""Norms of the base model, LayerNorm and RMSNorm, that train beside the adapter.

PEFT keeps a copy of each in the adapter (`modules_to_save`), so that its folders hold them, a merge takes them,
and without the adapter the base computes with its own.
"""

from __future__ import annotations

from torch import nn

_PLACE = ".modules_to_save."
_KINDS = ("LayerNorm", "RMSNorm")


def is_norm(name: str) -> bool:
    """Return whether a parameter is the weight or bias, (width,), of a norm that trains beside the adapter."""
    return _PLACE in name


def norm_layers(base: nn.Module) -> list[str]:
    """Return the names of the LayerNorms and RMSNorms of a base model, by the names of their classes."""
    return [
        name
        for name, module in base.named_modules()
        if any(kind in type(module).__name__ for kind in _KINDS) and any(True for _ in module.parameters())
    ]
