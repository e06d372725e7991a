"""Where a base model lies: on one device, or its layers one behind the other on all GPUs."""

from __future__ import annotations

import torch
from accelerate import dispatch_model, infer_auto_device_map
from accelerate.utils import get_balanced_memory
from torch import nn
from transformers import PreTrainedModel

from trifed.common.errors import ModelError
from trifed.config.settings import ALL_GPUS, TrainingSettings
from trifed.federation.training import choose_device

Places = dict[str, int | str]


def place(model: PreTrainedModel, settings: TrainingSettings) -> torch.device:
    """Bring a base model to where `training.device` says; returns where its inputs and a head belong.

    Raises:
        ModelError: all GPUs together do not hold it, or it cannot be spread.
        RunError: there is no such device.
    """
    device = choose_device(settings)
    if settings.device != ALL_GPUS:
        # Not the model's own `to`, which refuses some of those in few bits, even where nothing moves.
        nn.Module.to(model, device)
        return device
    if getattr(model, "is_quantized", False):
        raise ModelError(
            f"training.device: '{ALL_GPUS}' spreads bases of 32 and 16 bits; with model.dtype = 'int8' or 'nf4' "
            f"name one GPU"
        )
    spread(model, places(model))
    first: torch.device = next(model.parameters()).device
    return first


def places(model: PreTrainedModel, memory: dict[int | str, int] | None = None) -> Places:
    """Which part of the model goes where; no block is cut in two. `memory`: bytes by device, or else what is free.

    Raises:
        ModelError: a part has no place on a GPU.
    """
    whole = getattr(model, "_no_split_modules", None)
    kept = list(whole) if whole else None
    limits = memory or get_balanced_memory(model, no_split_module_classes=kept)
    found: Places = infer_auto_device_map(model, max_memory=limits, no_split_module_classes=kept)
    outside = [name for name, where in found.items() if where in ("cpu", "disk")]
    if outside:
        raise ModelError(
            f"training.device: all GPUs together do not hold this model; '{outside[0]}' found no place. Hold it "
            f"in fewer bits (model.dtype = 'bfloat16'), or name one GPU and model.dtype = 'nf4'"
        )
    return found


def spread(model: PreTrainedModel, where: Places, main: str | None = None) -> None:
    """Move the parts; what passes between them is moved as it goes. `main`: where inputs are, if not on a GPU."""
    dispatch_model(model, device_map=where, main_device=main)
