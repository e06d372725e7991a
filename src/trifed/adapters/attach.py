"""Attach a method's adapter to a base model, after a check that the adapter fits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from trifed.adapters.loading import without_renaming_warning
from trifed.adapters.settings import AdapterKind, AdapterSettings
from trifed.adapters.tri_matrix import TriLoraConfig
from trifed.common.errors import ModelError

_FALLBACK_TARGETS = (["q_proj", "v_proj"], ["query", "value"], ["pwconv1", "pwconv2"])
"""Target modules for architectures that PEFT has no default for: queries and values, or ConvNeXt's layers."""


def attach(
    base: PreTrainedModel, kind: AdapterKind, settings: AdapterSettings, seed: int
) -> PeftModel | PreTrainedModel:
    """Wrap `base` with a fresh adapter; all clients that share `seed` start from the same A.

    Returns:
        The wrapped model, or `base` itself for the kind "none".

    Raises:
        ModelError: The target modules match no layer, or the rank is larger than a layer.
    """
    targets = resolve_targets(base, settings)
    _check_rank(base, targets, settings)
    if kind == "none":
        return base
    common: dict[str, Any] = {
        "r": settings.rank,
        "lora_alpha": settings.alpha,
        "lora_dropout": settings.dropout,
        "target_modules": targets,
    }
    if settings.towers != "both":
        common["exclude_modules"] = sorted(_excluded_layers(base, settings))
    config: LoraConfig
    if kind == "lora":
        config = LoraConfig(**common)
    else:
        config = TriLoraConfig(**common, train="all" if kind == "tri-matrix" else "core")
    with torch.random.fork_rng(devices=[]), without_renaming_warning():
        torch.manual_seed(seed)
        return get_peft_model(base, config)


def factor_values(base: PreTrainedModel, settings: AdapterSettings) -> int:
    """Return the number of values in A and B of all adapted layers, Σ r (d_in + d_out)."""
    targets = resolve_targets(base, settings)
    return sum(settings.rank * sum(shape) for _, shape in _target_layers(base, targets, settings))


def resolve_targets(base: PreTrainedModel, settings: AdapterSettings) -> list[str]:
    """Return the endings of the names of the modules that get an adapter.

    Raises:
        ModelError: `target_modules` is empty, or an ending matches no linear layer of the model.
    """
    linear = _linear_layers(base, settings)
    # As in PEFT, "all-linear" excludes a language model's output layer: it often shares the embeddings' weights.
    output = base.get_output_embeddings()
    inner = [name for name in linear if base.get_submodule(name) is not output]
    endings = sorted({name.rsplit(".", 1)[-1] for name in inner})
    wanted = settings.target_modules
    if wanted == "all-linear":
        return endings
    if wanted == "auto":
        kind = base.config.model_type
        known = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.get(kind, [])
        if not set(known) & set(endings):
            # Take every fallback that fits: the two towers of a model may name their layers differently.
            known = [name for names in _FALLBACK_TARGETS if set(names) <= set(endings) for name in names]
        if not known:
            raise ModelError(
                f"adapter.target_modules: got 'auto', which has no default layers for a model of type "
                f"'{base.config.model_type}'; name some of {', '.join(endings)}, or use 'all-linear'"
            )
        return list(known)
    if not wanted:
        raise ModelError(f"adapter.target_modules: got an empty list; name some of {', '.join(endings)}")
    for ending in wanted:
        if not any(name == ending or name.endswith("." + ending) for name in linear):
            raise ModelError(
                f"adapter.target_modules: got '{ending}', which matches no linear layer of this "
                f"'{base.config.model_type}' model; expected some of {', '.join(endings)}"
            )
    return list(wanted)


def _linear_layers(base: nn.Module, settings: AdapterSettings) -> dict[str, tuple[int, int]]:
    """Return the layers that can carry an adapter: name → (d_out, d_in)."""
    excluded = _excluded_layers(base, settings)
    return {
        name: _shape(module)
        for name, module in base.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and name not in excluded
    }


def _shape(module: nn.Linear | Conv1D) -> tuple[int, int]:
    """Return (d_out, d_in), not read from the weight, which may be packed into fewer bits."""
    if isinstance(module, nn.Linear):
        return module.out_features, module.in_features
    return tuple(module.weight.shape)


def _excluded_layers(base: nn.Module, settings: AdapterSettings) -> set[str]:
    """Return the names of the linear layers in the tower that gets no adapter."""
    if settings.towers == "both":
        return set()
    inner = {name: _tower(name) for name, module in base.named_modules() if isinstance(module, nn.Linear | Conv1D)}
    if not {"vision", "text"} <= set(inner.values()):
        raise ModelError(
            f"adapter.towers: got '{settings.towers}', expected 'both' for a model with one tower; "
            f"remove the setting"
        )
    return {name for name, tower in inner.items() if tower not in (settings.towers, None)}


def _tower(name: str) -> str | None:
    """Return the tower of a layer from the first part of its name that identifies one."""
    for part in name.split("."):
        if part.startswith(("vision_", "visual")):
            return "vision"
        if part.startswith(("text_", "language_model")):
            return "text"
    return None


def _target_layers(
    base: nn.Module, targets: list[str], settings: AdapterSettings
) -> Iterator[tuple[str, tuple[int, int]]]:
    """Yield (name, (d_out, d_in)) of every layer that gets an adapter."""
    for name, shape in _linear_layers(base, settings).items():
        if any(name == ending or name.endswith("." + ending) for ending in targets):
            yield name, shape


def _check_rank(base: nn.Module, targets: list[str], settings: AdapterSettings) -> None:
    for name, shape in _target_layers(base, targets, settings):
        if settings.rank > min(shape):
            raise ModelError(
                f"adapter.rank: got {settings.rank}, which is too large for layer '{name}' of shape {shape}; "
                f"use a rank of at most {min(shape)}"
            )
