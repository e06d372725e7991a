r"""Tri-matrix LoRA as a PEFT method: $y = W_0 x + s\,B C A x$.

Importing this module registers the PEFT type `TRILORA` for `get_peft_model`, `PeftModel.from_pretrained`
and `save_pretrained`. Sources: CE-LoRA, arXiv 2503.23869; LoRA-XS, arXiv 2405.17604.
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
from trifed.adapters.layer import TriLoraLayer, add_core_to_layer
from trifed.adapters.shared_projections import hash_projections
from trifed.common.errors import AdapterError

__all__ = ["TriLoraConfig", "TriLoraModel", "adapted_layers", "frames_hash"]

_NOT_LINEAR = (nn.Embedding, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.MultiheadAttention)


class TriLoraModel(LoraModel):  # type: ignore[misc]
    """PEFT's tuner for `TriLoraConfig`, usually made by `peft.get_peft_model`.

    Raises:
        AdapterError: Before any change of the base model, for a target that is not a linear layer and for a
            rank above the smaller side of one; while loading, for a file that lacks an A, B or C of the model.
    """

    def _check_new_adapter_config(self, config: Any) -> None:
        super()._check_new_adapter_config(config)
        if not isinstance(config, TriLoraConfig):
            raise AdapterError(f"peft_config: got a {type(config).__name__}, expected a TriLoraConfig")
        config.check()  # again: the fields may have been changed since construction

    def _prepare_model(self, peft_config: TriLoraConfig, model: nn.Module) -> None:
        # PEFT replaces one layer after the other: a later error would leave the base half adapted.
        super()._prepare_model(peft_config, model)
        problems = [
            problem
            for name, layer in self._targets(peft_config, model)
            for problem in _layer_problems(peft_config, name, layer)
        ]
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
        # PEFT detects this by itself but warns; users need not know how Conv1D stores its weight.
        lora_config.fan_in_fan_out = isinstance(base, Conv1D)
        super()._create_and_replace(lora_config, adapter_name, target, *args, **kwargs)

    @staticmethod
    def _create_new_module(
        lora_config: TriLoraConfig, adapter_name: str, target: nn.Module, **kwargs: Any
    ) -> nn.Module:
        return add_core_to_layer(
            LoraModel._create_new_module(lora_config, adapter_name, target, **kwargs),
            adapter_name,
            lora_config,
            str(kwargs.get("target_name", "")),
        )

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: TriLoraConfig, adapter_name: str, state_dict: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        # PEFT loads with strict=False and at most warns. Without its cores the file would be another
        # adapter, so the check is in the one hook that every way of loading uses.
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
        return [f"layer {name!r}: got a {type(base).__name__}, expected a linear layer"]
    d_in, d_out = _get_in_out_features(base)
    if d_in is None or d_out is None:
        return []  # PEFT decides when it replaces the layer, and names the layer in its error
    rank = config.rank_pattern.get(get_pattern_key(config.rank_pattern.keys(), name), config.r)
    if rank > min(d_in, d_out):
        return [
            f"layer {name!r}: got rank {rank}, expected at most {min(d_in, d_out)} for {d_out} outputs and "
            f"{d_in} inputs"
        ]
    return []


def adapted_layers(model: nn.Module, adapter_name: str = "default") -> Iterator[tuple[str, TriLoraLayer]]:
    """Yield (name in `model`, layer) for every layer that has a core of this adapter, in model order."""
    for name, module in model.named_modules():
        if isinstance(module, TriLoraLayer) and adapter_name in module.lora_C:
            yield name, module


def _check_complete(model: nn.Module, adapter_name: str, loaded: dict[str, torch.Tensor]) -> None:
    end = f".{adapter_name}.weight"
    expected = {
        f"{name}.{part}{end}": tuple(weight.shape)
        for name, layer in adapted_layers(model, adapter_name)
        for part, weight in zip(("lora_A", "lora_B", "lora_C"), layer.factors(adapter_name), strict=True)
    }
    found = {key: tuple(weight.shape) for key, weight in loaded.items() if ".lora_" in key}
    problems = [
        f"{key.removesuffix(end)}.weight "
        + (f"has shape {found[key]}, expected {shape}" if key in found else "is missing")
        for key, shape in expected.items()
        if found.get(key) != shape
    ]
    problems += [f"{key} belongs to no adapted layer" for key in sorted(found.keys() - expected.keys())]
    if problems:
        more = f"; and {len(problems) - 6} more" if len(problems) > 6 else ""
        raise AdapterError(f"adapter {adapter_name!r} does not fit its file: {'; '.join(problems[:6])}{more}")


def frames_hash(model: nn.Module, adapter_name: str = "default") -> str:
    """Return the SHA-256, 64 hexadecimal digits, of the shared projections of an adapter with `train="core"`.

    Clients with equal hashes have the same A and B, so their cores may be averaged. Entries are rounded to
    1/4096 (for B relative to its largest singular value): the hash does not depend on the SVD library's
    rounding, and does not reflect smaller changes of the base.

    Raises:
        AdapterError: The model has no such adapter, or its A and B train.
    """
    config = getattr(model, "peft_config", {}).get(adapter_name)
    if not isinstance(config, TriLoraConfig) or config.train != "core":
        raise AdapterError(f"adapter {adapter_name!r}: no shared projections, expected one with train='core'")
    return hash_projections(
        (name.removeprefix("base_model.model."), *layer.factors(adapter_name)[:2])
        for name, layer in adapted_layers(model, adapter_name)
    )


# PeftType is a closed enum, but PEFT's tables are plain dicts and compare the type as a string.
PEFT_TYPE_TO_CONFIG_MAPPING[PEFT_TYPE] = TriLoraConfig
PEFT_TYPE_TO_TUNER_MAPPING[PEFT_TYPE] = TriLoraModel
PEFT_TYPE_TO_PREFIX_MAPPING[PEFT_TYPE] = TriLoraModel.prefix
