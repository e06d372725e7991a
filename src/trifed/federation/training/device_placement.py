"""Placement of a base model on one device, or of its consecutive layers on all GPUs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from accelerate import dispatch_model, infer_auto_device_map
from accelerate.utils import get_balanced_memory
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from trifed.common.errors import ModelError, RunError
from trifed.config.settings import ALL_GPUS, TrainingSettings


def choose_device(settings: TrainingSettings) -> torch.device:
    """Return the device of `training.device`; 'auto' is CUDA if available, and all GPUs means the first one.

    Raises:
        RunError: This machine has no such device.
    """
    if settings.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device, count = torch.device(settings.device.replace(ALL_GPUS, "cuda:0")), torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= count:
        raise RunError(
            f"training.device: got '{settings.device}' with {count} CUDA devices on this machine; "
            f"expected 'cpu' or 'auto'{', or cuda:0' if count else ''}"
        )
    return device


def choose_precision(settings: TrainingSettings, device: torch.device) -> torch.dtype:
    """Return bfloat16 or float32 for autocast; 'auto' is bfloat16 if the hardware can multiply it."""
    narrow = _has_bf16(device) if settings.precision == "auto" else settings.precision == "bf16"
    return torch.bfloat16 if narrow else torch.float32


def slow_precision(settings: TrainingSettings) -> Iterator[str]:
    """Yield a warning if bfloat16 is asked for, and the device can only emulate it."""
    device = choose_device(settings)
    if settings.precision == "bf16" and not _has_bf16(device):
        found = "processor" if device.type == "cpu" else "GPU"
        yield (
            f"training.precision: got 'bf16', but this machine's {found} has no bfloat16 arithmetic and emulates "
            "it, which can take many times as long as 'fp32'; set it to 'auto' or 'fp32'"
        )


def device_and_precision(model: nn.Module, settings: TrainingSettings) -> tuple[torch.device, torch.dtype]:
    """Return the device of a model, or of its first layer, and the precision of passes through it."""
    device = next(model.parameters()).device
    return device, choose_precision(settings, device)


def narrow_frozen_weights(model: nn.Module, settings: TrainingSettings, own: Iterable[nn.Parameter] = ()) -> int:
    """Keep frozen weights of linear layers in bfloat16 where autocast would convert them in every pass.

    Results stay the same to the last bit, since autocast rounds the same way. Nothing may use the model without
    autocast afterwards.

    Args:
        model: The model.
        settings: The training settings.
        own: Parameters that belong to a client, which stay as they are even if they are frozen.

    Returns:
        The number of layers that were changed.
    """
    if device_and_precision(model, settings)[1] != torch.bfloat16:
        return 0
    linear = [part for part in model.modules() if isinstance(part, nn.Linear | Conv1D)]
    # A language model's output layer may share its weight with the embeddings, which autocast does not convert.
    others = {id(p) for part in model.modules() if part not in set(linear) for p in part.parameters(recurse=False)}
    others |= set(map(id, own))
    found = [part for part in linear if part.weight.dtype == torch.float32 and not part.weight.requires_grad]
    changed = [part for part in found if id(part.weight) not in others]
    for part in changed:
        for param in part.parameters(recurse=False):
            if not param.requires_grad:
                param.data = param.data.to(torch.bfloat16)
    return len(changed)


def _has_bf16(device: torch.device) -> bool:
    """Return whether the hardware multiplies bfloat16 itself, without emulation."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return _cpu_has_bf16()


def _cpu_has_bf16() -> bool:
    # On processors without bfloat16 oneDNN emulates it, which is slower than float32. A torch that was built
    # without oneDNN lacks the operator, so it is asked last.
    hardware = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return bool(hardware and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def autocast(device: torch.device, precision: torch.dtype) -> torch.autocast:
    """Return the context of a mixed-precision forward pass, which has no effect for float32."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == torch.bfloat16)


def place_model(model: PreTrainedModel, settings: TrainingSettings) -> torch.device:
    """Move a base model to the device or devices of `training.device`.

    Returns:
        The device of the model's inputs and of a head.

    Raises:
        ModelError: All GPUs together do not have room for the model, or it cannot be distributed.
        RunError: There is no such device.
    """
    device = choose_device(settings)
    if settings.device != ALL_GPUS:
        # The model's own `to` rejects some quantized models, even if nothing has to be moved.
        nn.Module.to(model, device)
        return device
    if getattr(model, "is_quantized", False):
        raise ModelError(
            f"training.device: got '{ALL_GPUS}', expected one GPU for a base with model.dtype = 'int8' or "
            f"'nf4'; name one, such as 'cuda:0'"
        )
    dispatch_model(model, device_map=device_map(model))
    return torch.device(next(model.parameters()).device)


def device_map(model: PreTrainedModel, memory: dict[int | str, int] | None = None) -> dict[str, int | str]:
    """Assign each part of the model to a device, without splitting a block.

    Args:
        model: The model.
        memory: Bytes per device; None for the free memory.

    Raises:
        ModelError: There is no room for a part on any GPU.
    """
    blocks = list(getattr(model, "_no_split_modules", None) or ()) or None
    found: dict[str, int | str] = infer_auto_device_map(
        model,
        max_memory=memory or get_balanced_memory(model, no_split_module_classes=blocks),
        no_split_module_classes=blocks,
    )
    outside = next((name for name, device in found.items() if device in ("cpu", "disk")), None)
    if outside is not None:
        raise ModelError(
            f"training.device: all GPUs together have no room for this model, beginning with '{outside}'. Use "
            f"fewer bits (model.dtype = 'bfloat16'), or name one GPU and model.dtype = 'nf4'"
        )
    return found
