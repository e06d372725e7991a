"""Shared parts of the tasks of image-text models: loading, the two towers, and tokenization.

Radford et al., "Learning Transferable Visual Models From Natural Language Supervision" (CLIP), ICML 2021, arXiv
2103.00020; Zhai et al., "Sigmoid Loss for Language Image Pre-Training" (SigLIP), ICCV 2023, arXiv 2303.15343.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import normalize
from transformers import AutoImageProcessor, AutoTokenizer

from trifed.config.settings import Augment, BaseDtype, TaskName
from trifed.tasks.base import Batch, TaskModel
from trifed.tasks.base_model import LoadedBase, ModelRequirement, load_base
from trifed.tasks.image_classification import augmented

FIXED_LENGTH = ("siglip", "siglip2")
"""Model types that were pre-trained on texts padded to one length without a mask."""


class ImagesAndTexts:
    """A model's image processor and tokenizer, both of transformers."""

    def __init__(self, image_processor: Any, tokenizer: Any) -> None:
        self.image_processor = image_processor
        self.tokenizer = tokenizer

    @classmethod
    def from_pretrained(cls, source: str) -> ImagesAndTexts:
        """Load both from a folder or hub name; raises transformers' errors."""
        return cls(AutoImageProcessor.from_pretrained(source), AutoTokenizer.from_pretrained(source))

    def save_pretrained(self, folder: str) -> None:
        """Save both to a folder."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        self.image_processor.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)


TWO_TOWERS = ModelRequirement(
    "image-text", "a model of images and texts, such as CLIP, SigLIP or a VisionTextDualEncoder", ImagesAndTexts,
    "preprocessor_config.json and tokenizer files",
)  # fmt: skip


def load_two_towers(task: TaskName, name: str, dtype: BaseDtype = "float32") -> LoadedBase:
    """Load a frozen image-text model with its processors; raises `ModelError` for another kind of model."""
    return load_base(replace(TWO_TOWERS, task=task), name, dtype)


class TwoTowerModel(TaskModel):
    """Two PEFT-wrapped towers with a common embedding space of size `hidden`."""

    def __init__(self, encoder: nn.Module, hidden: int, augment: Augment) -> None:
        super().__init__(encoder, hidden)
        self.augment = augment

    @property
    def towers(self) -> Any:
        """The dual encoder without PEFT's wrapper."""
        inner: Any = self.encoder
        return inner.get_base_model() if hasattr(inner, "get_base_model") else inner

    def features(self, batch: Batch) -> Tensor:
        """Return the images' embeddings in the common space, (n, hidden), float32."""
        pixels = augmented(batch["pixel_values"], self.augment if self.training else "none")
        embeddings: Tensor = self.towers.get_image_features(pixel_values=pixels).pooler_output
        return embeddings.float()

    def embed_texts(self, tokens: Mapping[str, Tensor]) -> Tensor:
        """Return the embeddings of tokenised sentences, (n, hidden), of norm 1, float32."""
        return normalize(self.towers.get_text_features(**tokens).pooler_output.float(), dim=-1)

    def scaled_logits(self, cosines: Tensor) -> Tensor:
        """Return logits from cosines by the pre-trained scale and, for SigLIP, the pre-trained offset."""
        offset: Any = getattr(self.towers, "logit_bias", 0.0)
        logits: Tensor = cosines * self.towers.logit_scale.float().exp() + offset
        return logits


def embedding_size(base: LoadedBase) -> int:
    """Return the size of an embedding in the common space."""
    config = base.model.config
    size: int = getattr(config, "projection_dim", None) or config.vision_config.hidden_size
    return size


def tokenize(base: LoadedBase, texts: Sequence[str], most: int | None = None) -> dict[str, Tensor]:
    """Tokenize texts for the text tower, truncated to `most` tokens and to the model's own limit.

    Returns:
        The tower's inputs by name, (n, length) each.
    """
    fixed = base.model.config.model_type in FIXED_LENGTH
    positions = getattr(base.model.config.text_config, "max_position_embeddings", None)
    limit = positions if fixed else min((size for size in (positions, most) if size), default=None)
    tokens = base.processor.tokenizer(
        list(texts), padding="max_length" if fixed else True, truncation=True, max_length=limit,
        return_tensors="pt", return_attention_mask=not fixed, return_token_type_ids=False,
    )  # fmt: skip
    return dict(tokens)
