"""Which tasks a model can be used for, by what transformers knows of its architecture."""

from __future__ import annotations

from transformers import PreTrainedConfig
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING_NAMES,
)

from trifed.config.settings import TaskName


def fitting_tasks(config: PreTrainedConfig) -> list[TaskName]:
    """The tasks, in the order in which they are documented; none for a model that no task can use."""
    kind = config.model_type
    both = kind in (*MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING_NAMES, "vision-text-dual-encoder")
    found: list[TaskName] = []
    if kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not config.is_encoder_decoder:
        found.append("text-classification")
    if kind in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES and not both:
        found.append("image-classification")
    if both:
        found += ["image-text", "image-text-pairs"]
    if kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and kind not in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        found.append("causal-lm")
    # Not those that caption an image only: an image has a place among the tokens.
    if kind in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES and hasattr(config, "image_token_id"):
        found.append("image-text-to-text")
    return found
