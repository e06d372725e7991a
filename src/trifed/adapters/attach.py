"""Puts the adapter that a method asks for onto a base model, checking first that it fits."""

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

_ALSO_KNOWN = (["q_proj", "v_proj"], ["query", "value"], ["pwconv1", "pwconv2"])
"""Where PEFT knows nothing: queries and values, as it chooses them for texts; what ConvNeXt has instead."""


def attach(
    base: PreTrainedModel, kind: AdapterKind, settings: AdapterSettings, seed: int
) -> PeftModel | PreTrainedModel:
    """Wrap `base` with a fresh adapter; all clients that share `seed` start from the same A.

    The kind "none" gives the base back as it is.

    Raises:
        ModelError: target modules match nothing, or the rank is larger than a layer.
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
        common["exclude_modules"] = sorted(_left_out(base, settings))
    config: LoraConfig
    if kind == "lora":
        config = LoraConfig(**common)
    else:
        config = TriLoraConfig(**common, train="all" if kind == "tri-matrix" else "core")
    with torch.random.fork_rng(devices=[]), without_renaming_warning():
        torch.manual_seed(seed)
        return get_peft_model(base, config)


def factor_values(base: PreTrainedModel, settings: AdapterSettings) -> int:
    """How many numbers A and B of all adapted layers have together: Σ r (d_in + d_out)."""
    targets = resolve_targets(base, settings)
    return sum(settings.rank * sum(shape) for _, shape in _matched(base, targets, settings))


def resolve_targets(base: PreTrainedModel, settings: AdapterSettings) -> list[str]:
    """The endings of module names that get an adapter, checked against the model."""
    linear = _linear_layers(base, settings)
    # As in PEFT, "all" is without the output layer of a language model, whose weights are often the embeddings'.
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
            # All that fit: two towers may name theirs differently.
            known = [name for names in _ALSO_KNOWN if set(names) <= set(endings) for name in names]
        if not known:
            raise ModelError(
                f"adapter.target_modules: 'auto' knows no layers for a model of type "
                f"'{base.config.model_type}'; name some of {', '.join(endings)}, or use 'all-linear'"
            )
        return list(known)
    if not wanted:
        raise ModelError(f"adapter.target_modules: got an empty list; name some of {', '.join(endings)}")
    for ending in wanted:
        if not any(name == ending or name.endswith("." + ending) for name in linear):
            raise ModelError(
                f"adapter.target_modules: '{ending}' matches no linear layer of this "
                f"'{base.config.model_type}' model; these would match: {', '.join(endings)}"
            )
    return list(wanted)


def _linear_layers(base: nn.Module, settings: AdapterSettings) -> dict[str, tuple[int, int]]:
    """Names and weight shapes of the layers that can carry an adapter."""
    left_out = _left_out(base, settings)
    return {
        name: _shape(module)
        for name, module in base.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and name not in left_out
    }


def _shape(module: nn.Linear | Conv1D) -> tuple[int, int]:
    """Outputs and inputs; not of the weight, which may be packed in fewer bits."""
    if isinstance(module, nn.Linear):
        return module.out_features, module.in_features
    return tuple(module.weight.shape)


def _left_out(base: nn.Module, settings: AdapterSettings) -> set[str]:
    """The linear layers of the tower that is not to be adapted."""
    if settings.towers == "both":
        return set()
    inner = {name: _tower(name) for name, module in base.named_modules() if isinstance(module, nn.Linear | Conv1D)}
    if not {"vision", "text"} <= set(inner.values()):
        raise ModelError(f"adapter.towers: got '{settings.towers}', but this model has one tower; leave it out")
    return {name for name, tower in inner.items() if tower not in (settings.towers, None)}


def _tower(name: str) -> str | None:
    """Which tower a layer belongs to, by the first part of its name that says so."""
    for part in name.split("."):
        if part.startswith(("vision_", "visual")):
            return "vision"
        if part.startswith(("text_", "language_model")):
            return "text"
    return None


def _matched(
    base: nn.Module, targets: list[str], settings: AdapterSettings
) -> Iterator[tuple[str, tuple[int, int]]]:
    """Names and weight shapes of the layers that get an adapter."""
    for name, shape in _linear_layers(base, settings).items():
        if any(name == ending or name.endswith("." + ending) for ending in targets):
            yield name, shape


def _check_rank(base: nn.Module, targets: list[str], settings: AdapterSettings) -> None:
    for name, shape in _matched(base, targets, settings):
        if settings.rank > min(shape):
            raise ModelError(
                f"adapter.rank: {settings.rank} is larger than layer '{name}' of shape {shape} allows; "
                f"use a rank of at most {min(shape)}"
            )
