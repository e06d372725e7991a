"""What tasks of image-text models have in common: their files, both towers, and tokens of sentences.

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
from trifed.tasks.base_model import LoadedBase, Wanted, load_base
from trifed.tasks.image_classification import augmented

FIXED_LENGTH = ("siglip", "siglip2")
"""Models that learned texts of one length, padding read as words."""


class ImagesAndTexts:
    """An image processor and a tokenizer of one folder. `image_processor`, `tokenizer`: those of transformers."""

    def __init__(self, image_processor: Any, tokenizer: Any) -> None:
        self.image_processor = image_processor
        self.tokenizer = tokenizer

    @classmethod
    def from_pretrained(cls, source: str) -> ImagesAndTexts:
        """Both from a folder or hub name; raises what transformers raises."""
        return cls(AutoImageProcessor.from_pretrained(source), AutoTokenizer.from_pretrained(source))

    def save_pretrained(self, folder: str) -> None:
        """Both into a folder."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        self.image_processor.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)


TWO_TOWERS = Wanted(
    "image-text", "a model of images and texts, such as CLIP, SigLIP or a VisionTextDualEncoder", ImagesAndTexts,
    "preprocessor_config.json and tokenizer files",
)  # fmt: skip


def load_two_towers(task: TaskName, name: str, dtype: BaseDtype = "float32") -> LoadedBase:
    """A frozen model of images and texts with its processors; raises ModelError where it is none."""
    return load_base(name, replace(TWO_TOWERS, task=task), dtype)


class Towers(TaskModel):
    """Two PEFT-wrapped towers. `hidden`: of their common space."""

    def __init__(self, encoder: nn.Module, hidden: int, augment: Augment) -> None:
        super().__init__()
        self.encoder = encoder
        self.hidden = hidden
        self.augment = augment

    @property
    def towers(self) -> Any:
        """The dual encoder inside PEFT's wrapping."""
        inner: Any = self.encoder
        return inner.get_base_model() if hasattr(inner, "get_base_model") else inner

    def features(self, batch: Batch) -> Tensor:
        """Embeddings of the images in the common space, (n, hidden), float32."""
        pixels = batch["pixel_values"]
        seen = augmented(pixels, self.augment) if self.training else pixels
        found: Tensor = self.towers.get_image_features(pixel_values=seen).pooler_output
        return found.float()

    def said(self, tokens: Mapping[str, Tensor]) -> Tensor:
        """Embeddings of tokenised sentences, (n, hidden), of norm 1, float32."""
        return normalize(self.towers.get_text_features(**tokens).pooler_output.float(), dim=-1)

    def scaled(self, nearness: Tensor) -> Tensor:
        """Logits of cosines, with the scale and, of SigLIP, the offset that the model was pre-trained with."""
        offset: Any = getattr(self.towers, "logit_bias", 0.0)
        logits: Tensor = nearness * self.towers.logit_scale.float().exp() + offset
        return logits


def common_size(base: LoadedBase) -> int:
    """Numbers of an embedding in the common space."""
    config = base.model.config
    size: int = getattr(config, "projection_dim", None) or config.vision_config.hidden_size
    return size


def tokens_of(base: LoadedBase, texts: Sequence[str], most: int | None = None) -> dict[str, Tensor]:
    """Tokens as the text tower reads them, (n, length) each; what is longer than `most` or the model's is cut."""
    fixed = base.model.config.model_type in FIXED_LENGTH
    own = getattr(base.model.config.text_config, "max_position_embeddings", None)
    limit = own if fixed else min((size for size in (own, most) if size), default=None)
    tokens = base.processor.tokenizer(
        list(texts), padding="max_length" if fixed else True, truncation=True, max_length=limit,
        return_tensors="pt", return_attention_mask=not fixed, return_token_type_ids=False,
    )  # fmt: skip
    return dict(tokens)
