"""Attach an adapter to a base model, fresh or from a folder, after a check that the adapter fits."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import _get_in_out_features
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from safetensors import SafetensorError
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from trifed.adapters.config import PEFT_TYPE
from trifed.adapters.dual import LoraDualConfig, start_local_loras
from trifed.adapters.mixture import LoraMixtureConfig, start_mixers
from trifed.adapters.norms import is_norm, norm_layers
from trifed.adapters.residual import add_residuals, export_with_residuals, has_residuals
from trifed.adapters.settings import AdapterKind, AdapterSettings
from trifed.adapters.tokens import is_token_embedding
from trifed.adapters.tri_matrix import TriLoraConfig
from trifed.common.errors import AdapterError, ModelError
from trifed.common.seeding import seeded

_FALLBACK_TARGETS = (
    ["q_proj", "v_proj"],
    ["query", "value"],
    ["q_lin", "v_lin"],  # DistilBERT
    ["q", "v"],  # MPNet, T5
    ["Wqkv"],  # ModernBERT
    ["qkv_proj"],  # Phi-3
    ["pwconv1", "pwconv2"],  # ConvNeXt, which has no attention
)
"""Target modules for architectures that PEFT has no default for: queries and values, if there are any."""


def attach(
    base: PreTrainedModel, kind: AdapterKind, settings: AdapterSettings, seed: int, tokens: Sequence[int] = ()
) -> PeftModel | PreTrainedModel:
    """Wrap `base` with a fresh adapter; all clients that share `seed` start from the same A.

    Args:
        base: The model, which is changed.
        kind: The kind of adapter.
        settings: Its settings.
        seed: Seed of its initial values.
        tokens: Ids of the tokens whose embeddings train too.

    Returns:
        The wrapped model, or `base` itself for the kind "none".

    Raises:
        ModelError: The target modules match no layer, or the rank is larger than a layer.
    """
    targets = resolve_targets(base, settings)
    for name, shape in _target_layers(base, targets, settings):
        if settings.rank > min(shape):
            raise ModelError(
                f"adapter.rank: got {settings.rank}, which is too large for layer '{name}' of shape {shape}; "
                f"use a rank of at most {min(shape)}"
            )
    if kind == "none":
        return base
    trains: dict[AdapterKind, Literal["all", "core"]] = {"tri-matrix": "all", "public-frames": "core"}
    two_loras = {"lora-mixture": LoraMixtureConfig, "lora-dual": LoraDualConfig}
    make = partial(TriLoraConfig, train=trains[kind]) if kind in trains else two_loras.get(kind, LoraConfig)
    config = make(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=targets,
        exclude_modules=sorted(_excluded_layers(base, settings)) or None,
        trainable_token_indices=list(tokens) or None,
        modules_to_save=_trained_norms(base, settings) or None,
    )
    with seeded(base.device, seed), without_peft_warnings():
        wrapped = get_peft_model(base, config)
    if kind == "lora-residual":
        add_residuals(wrapped)
    start_mixers(wrapped, seed)
    for name, param in wrapped.named_parameters():
        if is_token_embedding(name) or is_norm(name):
            param.data = param.data.float()  # as all that trains
    if settings.init_std is not None and kind not in ("public-frames", "none"):
        _draw_first_factors(wrapped, settings.init_std, seed)
    start_local_loras(wrapped)
    return wrapped


def _draw_first_factors(model: PeftModel, std: float, seed: int) -> None:
    """Set every A to numbers from N(0, std²), in model order; the same ones on every device and in every dtype."""
    generator = torch.Generator("cpu").manual_seed(seed)
    with torch.no_grad():
        for name, param in model.named_parameters():
            if ".lora_A." in name and not param.is_meta:
                param.copy_(torch.randn(param.shape, generator=generator, device="cpu") * std)


def _trained_norms(base: nn.Module, settings: AdapterSettings) -> list[str]:
    """Return the names of the norms that train, those of a tower without adapters left out.

    Raises:
        ModelError: Norms are to train, and the model has none.
    """
    if not settings.train_norms:
        return []
    found = [
        name for name in norm_layers(base) if settings.towers == "both" or _tower(name) in (settings.towers, None)
    ]
    if not found:
        raise ModelError(
            "adapter.train_norms: got true, but this model has no LayerNorm or RMSNorm with weights; set "
            "adapter.train_norms = false"
        )
    return found


def save_adapter(model: PeftModel, folder: Path) -> None:
    """Write adapter_config.json and adapter_model.safetensors; LoRA with residuals becomes plain LoRA."""
    if has_residuals(model):
        export_with_residuals(model, folder)
        return
    model.create_or_update_model_card = lambda output_dir: None  # PEFT's card is an empty form
    # "auto" would ask a hub if the embeddings were resized.
    model.save_pretrained(str(folder), save_embedding_layers=False)


def load_adapter(
    base: nn.Module, folder: str | Path, *, adapter_name: str = "default", trainable: bool = False
) -> PeftModel:
    """Attach the adapter that `save_pretrained` wrote to `folder` to `base`, which is changed in place.

    In addition to `PeftModel.from_pretrained`, this names a missing head, rejects weights stored with pickle
    and never contacts a model hub.

    Raises:
        AdapterError: The folder lacks a file, holds another PEFT type, is damaged, or does not fit `base`.
    """
    source = Path(folder)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        if not (source / name).is_file():
            raise AdapterError(f"{source}: no {name} there, expected a folder written by save_pretrained")
    try:
        peft_type = json.loads((source / "adapter_config.json").read_text(encoding="utf-8")).get("peft_type")
    except (ValueError, AttributeError) as error:
        raise AdapterError(f"{source / 'adapter_config.json'}: expected a JSON object ({error})") from error
    if peft_type != PEFT_TYPE:
        raise AdapterError(f"{source}: got an adapter of type {peft_type!r}, expected {PEFT_TYPE!r}")
    try:
        with without_peft_warnings():
            return PeftModel.from_pretrained(base, str(source), adapter_name=adapter_name, is_trainable=trainable)
    except KeyError as error:  # PEFT's error for a module of modules_to_save that the file lacks
        raise AdapterError(f"{source}: adapter_model.safetensors lacks {error}") from error
    except SafetensorError as error:
        raise AdapterError(f"{source}: adapter_model.safetensors is damaged: {error}") from error


@contextmanager
def without_peft_warnings() -> Iterator[None]:
    """Suppress warnings of PEFT 0.21 that users cannot act on.

    They are about a property that transformers 5 renamed, about adapters on layers that share their weight, to
    which an export with full weights gives weights of their own, and about GPT-2's transposed weights, which PEFT
    finds by itself.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set to False", category=UserWarning)
        warnings.filterwarnings("ignore", message="Model has `tie_word_embeddings=True`", category=UserWarning)
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
        yield


def factor_values(base: PreTrainedModel, settings: AdapterSettings) -> int:
    """Return the number of values in A and B of all adapted layers, Σ r (d_in + d_out)."""
    layers = _target_layers(base, resolve_targets(base, settings), settings)
    return settings.rank * sum(sum(shape) for _, shape in layers)


def resolve_targets(base: PreTrainedModel, settings: AdapterSettings) -> list[str]:
    """Return the endings of the names of the modules that get an adapter.

    Raises:
        ModelError: `target_modules` is empty, or an ending matches no linear layer of the model.
    """
    linear, kind = _linear_layers(base, settings), base.config.model_type
    # As in PEFT, "all-linear" excludes a language model's output layer: it often shares the embeddings' weights.
    output = base.get_output_embeddings()
    endings = sorted({name.rsplit(".", 1)[-1] for name in linear if base.get_submodule(name) is not output})
    wanted = settings.target_modules
    if wanted == "all-linear":
        return endings
    if wanted == "auto":
        known: list[str] = [*TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.get(kind, [])]
        if not set(known) & set(endings):
            # Take every fallback that fits: the two towers of a model may name their layers differently.
            known = [name for names in _FALLBACK_TARGETS if set(names) <= set(endings) for name in names]
        if not known:
            raise ModelError(
                f"adapter.target_modules: got 'auto', which has no default layers for a model of type "
                f"'{kind}'; name some of {', '.join(endings)}, or use 'all-linear'"
            )
        return known
    if not wanted:
        raise ModelError(f"adapter.target_modules: got an empty list; name some of {', '.join(endings)}")
    for ending in wanted:
        if not any(_ends_with(name, [ending]) for name in linear):
            raise ModelError(
                f"adapter.target_modules: got '{ending}', which matches no linear layer of this "
                f"'{kind}' model; expected some of {', '.join(endings)}"
            )
    return list(wanted)


def _linear_layers(base: nn.Module, settings: AdapterSettings) -> dict[str, tuple[int, int]]:
    """Return the layers that can carry an adapter: name → (d_out, d_in)."""
    excluded = _excluded_layers(base, settings)
    return {
        name: _get_in_out_features(module)[::-1]  # not read from the weight, which may be packed into fewer bits
        for name, module in base.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and name not in excluded
    }


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
    base: nn.Module, targets: Sequence[str], settings: AdapterSettings
) -> Iterator[tuple[str, tuple[int, int]]]:
    """Yield (name, (d_out, d_in)) of every layer that gets an adapter."""
    return (item for item in _linear_layers(base, settings).items() if _ends_with(item[0], targets))


def _ends_with(name: str, endings: Sequence[str]) -> bool:
    return f".{name}".endswith(tuple(f".{ending}" for ending in endings))
