"""Shapes of well-known base models, for cost estimates without their files.

Each entry holds the fields that determine the number and size of the weights, from the model's public config.json
on the Hugging Face hub; all other fields have transformers' defaults.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForSeq2SeqLM,
    PreTrainedConfig,
    PreTrainedModel,
)

from trifed.common.errors import ModelError
from trifed.config.settings import WRITING
from trifed.tasks.base_model import first_line, fitting_tasks

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
"""Architecture in transformers and fields of its configuration, by name."""


def shape_config(name: str) -> PreTrainedConfig:
    """Return the configuration of one of `SHAPES`."""
    kind, values = SHAPES[name]
    return AutoConfig.for_model(kind, **values)


def is_generative(config: PreTrainedConfig) -> bool:
    """Return True for a model that predicts the next token and so needs no additional head."""
    return bool(set(fitting_tasks(config)) & set(WRITING))


def is_two_tower(config: PreTrainedConfig) -> bool:
    """Return True for an image-text model, which classifies images by sentences about the classes."""
    return "image-text" in fitting_tasks(config)


def build_on_meta(config: PreTrainedConfig, *, whole_lm: bool) -> PreTrainedModel:
    """Build a model without weights on torch's meta device.

    Args:
        config: The model's configuration.
        whole_lm: Include the output layer over the vocabulary, if the architecture has one.

    Raises:
        ModelError: transformers cannot build this model.
    """
    writing = {
        "causal-lm": AutoModelForCausalLM,
        "sequence-to-sequence": AutoModelForSeq2SeqLM,
        "image-text-to-text": AutoModelForImageTextToText,
    }
    kind = next(writing[task] for task in fitting_tasks(config) if task in writing) if whole_lm else AutoModel
    try:
        with torch.device("meta"):
            model: PreTrainedModel = kind.from_config(config, dtype=torch.float32, trust_remote_code=False)
    except (ValueError, ImportError) as error:
        raise ModelError(
            f"model.name: a '{config.model_type}' model cannot be built here ({first_line(error)}); "
            f"give a model that transformers builds by itself, such as {', '.join(SHAPES)}"
        ) from error
    return model


def feature_size(config: PreTrainedConfig) -> int:
    """Return the input size of a linear head.

    Raises:
        ModelError: The configuration has no hidden size.
    """
    # Swin has hidden_size, ConvNeXt a list of which the last one counts.
    size = getattr(config, "hidden_size", None) or (getattr(config, "hidden_sizes", None) or [None])[-1]
    if isinstance(size, int):
        return size
    raise ModelError(
        f"model.name: got a '{config.model_type}' configuration without hidden_size, so the size of a head is "
        f"unknown; set the number of labels to 0 to count without a head"
    )
