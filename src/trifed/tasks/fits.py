"""Tasks that a model fits, from transformers' tables of architectures."""

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
    """Return the tasks that a model fits, in the documented order."""
    kind = config.model_type
    both = kind in (*MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING_NAMES, "vision-text-dual-encoder")
    masked = kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    # Models that only caption an image are excluded: they have no token for an image in the text.
    image_in_text = kind in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES and hasattr(config, "image_token_id")
    fits: dict[TaskName, bool] = {
        "text-classification": masked and not config.is_encoder_decoder,
        "image-classification": kind in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES and not both,
        "image-text": both,
        "image-text-pairs": both,
        "causal-lm": kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and not masked,
        "image-text-to-text": image_in_text,
    }
    return [task for task, fit in fits.items() if fit]
