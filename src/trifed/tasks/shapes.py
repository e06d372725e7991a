"""Shapes of well-known base models, so that what they would cost is known without their files.

Each entry holds the fields that decide the number and size of the weights, as the model's public config.json on
the Hugging Face hub gives them; the rest stays at the defaults of transformers.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedConfig,
    PreTrainedModel,
)

from trifed.common.errors import ModelError
from trifed.config.settings import WRITING
from trifed.tasks.fits import fitting_tasks

_ROBERTA = {"vocab_size": 50265, "max_position_embeddings": 514, "type_vocab_size": 1, "pad_token_id": 1}
_7B = {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "vocab_size": 32000}
_BASE = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
_LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
_CLIP_TEXT = {
    "hidden_size": 512,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "intermediate_size": 2048,
    "vocab_size": 49408,
    "max_position_embeddings": 77,
}

SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "roberta-base": ("roberta", {**_ROBERTA, **_BASE}),  # FacebookAI/roberta-base
    "roberta-large": ("roberta", {**_ROBERTA, **_LARGE}),  # FacebookAI/roberta-large
    "llama-7b": ("llama", {**_7B, "intermediate_size": 11008}),  # huggyllama/llama-7b
    "mistral-7b": (  # mistralai/Mistral-7B-v0.1
        "mistral",
        {**_7B, "intermediate_size": 14336, "num_key_value_heads": 8},
    ),
    "clip-vit-b32": (  # openai/clip-vit-base-patch32
        "clip",
        {
            "projection_dim": 512,
            "text_config": _CLIP_TEXT,
            "vision_config": {**_BASE, "image_size": 224, "patch_size": 32},
        },
    ),
    "vit-base": ("vit", {**_BASE, "image_size": 224, "patch_size": 16}),  # google/vit-base-patch16-224-in21k
}
"""Name → architecture in transformers, and the fields of its configuration."""


def shape_config(name: str) -> PreTrainedConfig:
    """The configuration of one of `SHAPES`."""
    kind, values = SHAPES[name]
    return AutoConfig.for_model(kind, **values)


def writes(config: PreTrainedConfig) -> bool:
    """Is this a model that predicts the next token, and so needs no head of ours?"""
    return bool(set(fitting_tasks(config)) & set(WRITING))


def compares(config: PreTrainedConfig) -> bool:
    """Is this a model of images and texts, which takes an image for the class whose sentence is nearest?"""
    return "image-text" in fitting_tasks(config)


def weightless(config: PreTrainedConfig, *, whole_lm: bool) -> PreTrainedModel:
    """The model without its weights: names and shapes on torch's meta device.

    `whole_lm`: with the output layer over the vocabulary, where the architecture has one.

    Raises:
        ModelError: transformers knows no such model.
    """
    kind = AutoModel
    if whole_lm:
        kind = AutoModelForCausalLM if "causal-lm" in fitting_tasks(config) else AutoModelForImageTextToText
    try:
        with torch.device("meta"):
            model: PreTrainedModel = kind.from_config(config, dtype=torch.float32)
    except (ValueError, ImportError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelError(
            f"model.name: a '{config.model_type}' model cannot be built here ({reason}); "
            f"give a model that transformers builds by itself, such as {', '.join(SHAPES)}"
        ) from error
    return model


def feature_size(config: PreTrainedConfig) -> int:
    """Numbers that a linear head reads.

    Raises:
        ModelError: the configuration does not say.
    """
    # Swin's and the last of ConvNeXt's, as their configurations name them.
    found = getattr(config, "hidden_size", None) or (getattr(config, "hidden_sizes", None) or [None])[-1]
    if isinstance(found, int):
        return found
    raise ModelError(
        f"model.name: the configuration of this '{config.model_type}' model names no hidden_size, so the size of "
        f"a head is unknown; count without one: 0 labels"
    )
