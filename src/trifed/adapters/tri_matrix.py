r"""Tri-matrix LoRA as a PEFT method of its own: $y = W_0 x + s\,B C A x$.

Importing this module registers the PEFT type `TRILORA`, and `get_peft_model`, `PeftModel.from_pretrained`
and `save_pretrained` then work with it. Sources: CE-LoRA, arXiv 2503.23869; LoRA-XS, arXiv 2405.17604.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NoReturn

import torch
from peft.mapping import (
    PEFT_TYPE_TO_CONFIG_MAPPING,
    PEFT_TYPE_TO_PREFIX_MAPPING,
    PEFT_TYPE_TO_TUNER_MAPPING,
)
from peft.tuners.lora import LoraModel
from peft.tuners.tuners_utils import BaseTunerLayer, _get_in_out_features, _maybe_include_all_linear_layers
from peft.utils.other import get_pattern_key
from torch import nn
from transformers.pytorch_utils import Conv1D

from trifed.adapters.config import PEFT_TYPE, TriLoraConfig
from trifed.adapters.layer import TriLoraLayer, with_core
from trifed.adapters.shared_projections import hash_frames
from trifed.common.errors import AdapterError

__all__ = ["TriLoraConfig", "TriLoraModel", "adapted_layers", "frames_hash"]

_NOT_LINEAR = (nn.Embedding, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.MultiheadAttention)


class TriLoraModel(LoraModel):  # type: ignore[misc]
    """PEFT's tuner for `TriLoraConfig`; made by `peft.get_peft_model`, seldom by hand.

    Raises `AdapterError`, before the base model is touched, for a target that is not a linear layer and
    for a rank above the smaller side of one; while loading, for a file that lacks one of the A, B or C
    that the model has.
    """

    def _check_new_adapter_config(self, config: Any) -> None:
        super()._check_new_adapter_config(config)
        if not isinstance(config, TriLoraConfig):
            raise AdapterError(f"expected a TriLoraConfig, got {type(config).__name__}")
        config.check()  # again: the fields may have been changed since construction

    def _prepare_model(self, peft_config: TriLoraConfig, model: nn.Module) -> None:
        # PEFT replaces one layer after the other: a refusal on the way would leave the base half adapted.
        super()._prepare_model(peft_config, model)
        problems = []
        for name, layer in self._targets(peft_config, model):
            problems += _layer_problems(peft_config, name, layer)
        if problems:
            raise AdapterError("; ".join(problems))

    def _targets(self, config: TriLoraConfig, model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
        config = _maybe_include_all_linear_layers(config, model)
        inside: tuple[str, ...] = ()
        for name, module in model.named_modules():
            if not name or name.startswith(inside):
                continue
            if isinstance(module, BaseTunerLayer):
                inside += (f"{name}.",)
            if self._check_target_module_exists(config, name):
                yield name, module

    def _create_and_replace(
        self, lora_config: TriLoraConfig, adapter_name: str, target: nn.Module, *args: Any, **kwargs: Any
    ) -> None:
        base = target.get_base_layer() if isinstance(target, BaseTunerLayer) else target
        # PEFT finds this out itself, but warns; nobody should have to know how Conv1D stores its weight.
        lora_config.fan_in_fan_out = isinstance(base, Conv1D)
        super()._create_and_replace(lora_config, adapter_name, target, *args, **kwargs)

    @staticmethod
    def _create_new_module(
        lora_config: TriLoraConfig, adapter_name: str, target: nn.Module, **kwargs: Any
    ) -> nn.Module:
        module = LoraModel._create_new_module(lora_config, adapter_name, target, **kwargs)
        return with_core(module, adapter_name, lora_config, str(kwargs.get("target_name", "")))

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: TriLoraConfig, adapter_name: str, state_dict: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        # PEFT loads with strict=False and at most warns. Without its cores this file would be another
        # adapter, so the check sits in the one hook that every way of loading passes through.
        remapped: dict[str, torch.Tensor] = super()._remap_adapter_state_dict_for_load(
            model, config, adapter_name, state_dict
        )
        _check_complete(model, adapter_name, remapped)
        return remapped

    def add_weighted_adapter(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Raise `AdapterError`: PEFT's mixtures are defined on A and B and would ignore the cores."""
        raise AdapterError(
            "add_weighted_adapter is not supported for tri-matrix adapters: it would ignore the cores. "
            "Mix the cores themselves, or export to plain LoRA first (trifed.adapters.export_plain_lora)"
        )


def _layer_problems(config: TriLoraConfig, name: str, module: nn.Module) -> list[str]:
    base = module
    if isinstance(module, BaseTunerLayer):
        base = module.get_base_layer()
        if config.train == "core" and module.merged_adapters:
            return [f"layer {name!r}: {module.merged_adapters} is merged into the weight; unmerge it first"]
    if isinstance(base, _NOT_LINEAR):
        return [f"layer {name!r} is a {type(base).__name__}: only linear layers can be adapted"]
    d_in, d_out = _get_in_out_features(base)
    if d_in is None or d_out is None:
        return []  # PEFT itself decides, and names the layer, when it is about to replace it
    rank = config.rank_pattern.get(get_pattern_key(config.rank_pattern.keys(), name), config.r)
    if rank > min(d_in, d_out):
        shape = f"{d_out} outputs and {d_in} inputs"
        return [f"layer {name!r} has {shape}: rank {rank} is too large, the largest is {min(d_in, d_out)}"]
    return []


def adapted_layers(model: nn.Module, adapter_name: str = "default") -> Iterator[tuple[str, TriLoraLayer]]:
    """Yield (name in `model`, layer) for every layer that has a core of this adapter, in model order."""
    for name, module in model.named_modules():
        if isinstance(module, TriLoraLayer) and adapter_name in module.lora_C:
            yield name, module


def _check_complete(model: nn.Module, adapter_name: str, loaded: dict[str, torch.Tensor]) -> None:
    problems, expected = [], set()
    for layer_name, layer in adapted_layers(model, adapter_name):
        for part, weight in zip(("lora_A", "lora_B", "lora_C"), layer.factors(adapter_name), strict=True):
            key = f"{layer_name}.{part}.{adapter_name}.weight"
            shown = f"{layer_name}.{part}.weight"
            expected.add(key)
            shape = tuple(weight.shape)
            if key not in loaded:
                problems.append(f"{shown} is missing")
            elif tuple(loaded[key].shape) != shape:
                problems.append(f"{shown} has shape {tuple(loaded[key].shape)}, expected {shape}")
    surplus = {k for k in loaded if ".lora_" in k} - expected
    problems += [f"{key} belongs to no adapted layer" for key in sorted(surplus)]
    if problems:
        shown_problems = "; ".join(problems[:6]) + (f"; and {len(problems) - 6} more" if len(problems) > 6 else "")
        raise AdapterError(f"adapter {adapter_name!r} does not fit its file: {shown_problems}")


def frames_hash(model: nn.Module, adapter_name: str = "default") -> str:
    """Return the SHA-256, 64 hexadecimal digits, of the frames of an adapter with `train="core"`.

    Clients whose hashes agree start from the same A and B, so their cores may be averaged. Entries are
    rounded to 1/4096 (relative to the largest singular value for B): the hash survives the rounding of
    another SVD library, and does not see a change of the base below that.

    Raises `AdapterError` if the model has no such adapter, or one whose A and B train.
    """
    config = getattr(model, "peft_config", {}).get(adapter_name)
    if not isinstance(config, TriLoraConfig) or config.train != "core":
        raise AdapterError(f"adapter {adapter_name!r} has no public frames: expected one with train='core'")
    shared_projections = []
    for name, layer in adapted_layers(model, adapter_name):
        a_frame, b_frame, _ = layer.factors(adapter_name)
        shared_projections.append((name.removeprefix("base_model.model."), a_frame, b_frame))
    return hash_frames(shared_projections)


# PeftType is a closed enum, but PEFT's tables are plain dicts and compare the type as a string.
PEFT_TYPE_TO_CONFIG_MAPPING[PEFT_TYPE] = TriLoraConfig
PEFT_TYPE_TO_TUNER_MAPPING[PEFT_TYPE] = TriLoraModel
PEFT_TYPE_TO_PREFIX_MAPPING[PEFT_TYPE] = TriLoraModel.prefix
