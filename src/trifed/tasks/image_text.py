"""Classification of images by their similarity to one sentence per class, with an image-text model.

The initial model is a zero-shot classifier, plus an adapter in one tower or both and a bias per class.

Radford et al., "Learning Transferable Visual Models From Natural Language Supervision" (CLIP), ICML 2021, arXiv
2103.00020; Zhai et al., "Sigmoid Loss for Language Image Pre-Training" (SigLIP), ICCV 2023, arXiv 2303.15343.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from transformers import AutoImageProcessor, AutoTokenizer

from trifed.config.settings import Augment, ModelSettings
from trifed.data import IMAGES
from trifed.tasks.base import Batch, BiasHead, ClassificationModel, Task, TaskModel
from trifed.tasks.base_model import LoadedBase, load_base
from trifed.tasks.image_classification import augmented, encode_images
from trifed.tasks.tokens import check_vocabulary

FIXED_LENGTH = ("siglip", "siglip2")
"""Model types that were pre-trained on texts padded to one length without a mask."""


class ImagesAndTexts:
    """A model's image processor and tokenizer, both of transformers."""

    def __init__(self, image_processor: Any, tokenizer: Any) -> None:
        self.image_processor = image_processor
        self.tokenizer = tokenizer

    @classmethod
    def from_pretrained(cls, source: str, *, trust_remote_code: Literal[False]) -> ImagesAndTexts:
        """Load both from a folder or hub name; raises transformers' errors."""
        images = AutoImageProcessor.from_pretrained(source, trust_remote_code=False)
        return cls(images, AutoTokenizer.from_pretrained(source, trust_remote_code=False))

    def save_pretrained(self, folder: str) -> None:
        """Save both to a folder."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        self.image_processor.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)


load_two_towers = partial(
    load_base,
    description="a model of images and texts, such as CLIP, SigLIP or a VisionTextDualEncoder",
    processor=ImagesAndTexts,
    files="preprocessor_config.json and tokenizer files",
)
"""Load a frozen image-text model that fits the keyword argument `task`."""


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

    def augmented(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Return the batch with images changed as `model.augment` says."""
        return augmented(batch, self.augment, generator)

    def features(self, batch: Batch) -> Tensor:
        """Return the images' embeddings in the common space, (n, hidden), float32."""
        embeddings: Tensor = self.towers.get_image_features(pixel_values=batch["pixel_values"]).pooler_output
        return embeddings.float()

    def embed_texts(self, tokens: Mapping[str, Tensor]) -> Tensor:
        """Return the embeddings of tokenised sentences on any device, (n, hidden), of norm 1, float32."""
        inputs = {name: tensor.to(self.towers.logit_scale.device) for name, tensor in tokens.items()}
        return normalize(self.towers.get_text_features(**inputs).pooler_output.float(), dim=-1)

    def scaled_logits(self, cosines: Tensor) -> Tensor:
        """Return logits from cosines by the pre-trained scale and, for SigLIP, the pre-trained offset."""
        scale: Tensor = self.towers.logit_scale.float().exp()
        return cosines * scale + getattr(self.towers, "logit_bias", 0.0)


def embedding_size(base: LoadedBase) -> int:
    """Return the size of an embedding in the common space."""
    config = base.model.config
    return int(getattr(config, "projection_dim", None) or config.vision_config.hidden_size)


def tokenize(base: LoadedBase, texts: Sequence[str], most: int | None = None) -> dict[str, Tensor]:
    """Tokenize texts for the text tower, truncated to `most` tokens and to the model's own limit.

    Returns:
        The tower's inputs by name, (n, length) each.

    Raises:
        ModelError: The tokenizer has more tokens than the model.
    """
    fixed = base.model.config.model_type in FIXED_LENGTH
    positions = getattr(base.model.config.text_config, "max_position_embeddings", None)
    limit = positions if fixed else min((size for size in (positions, most) if size), default=None)
    tokens = dict(
        base.processor.tokenizer(
            list(texts),
            padding="max_length" if fixed else True,
            truncation=True,
            max_length=limit,
            return_tensors="pt",
            return_attention_mask=not fixed,
            return_token_type_ids=False,
        )
    )
    check_vocabulary(base.model, tokens["input_ids"].tolist())
    return tokens


class PromptedClassifier(ClassificationModel, TwoTowerModel):
    """A classifier whose logits are scaled cosines of an image with each class's sentence, plus a bias.

    The sentences are embedded only once if the text tower is frozen.
    """

    def __init__(self, encoder: nn.Module, hidden: int, sentences: dict[str, Tensor], augment: Augment) -> None:
        """Store the `sentences`: tokens of one sentence per class, (n_labels, length) each."""
        super().__init__(encoder, hidden, augment)
        self.head = BiasHead(len(sentences["input_ids"]))
        self.further_rows = len(sentences["input_ids"])
        self._sentences = sentences
        self._cached: Tensor | None = None

    def classes(self) -> Tensor:
        """Return the embeddings of the classes' sentences, of norm 1: (n_labels, hidden) from a frozen tower.

        From a tower that trains, those of each of the batch's clients, (clients, n_labels, hidden).
        """
        if any(param.requires_grad for name, param in self.towers.named_parameters() if name.startswith("text_")):
            self._cached = None
            repeated = {name: ids.repeat(self.clients, 1) for name, ids in self._sentences.items()}
            embeddings = self.embed_texts(repeated)
            return embeddings.view(self.clients, -1, embeddings.shape[-1])
        if self._cached is None:
            self.towers.text_model.eval()  # no dropout in embeddings that are reused
            with torch.no_grad():
                self._cached = self.embed_texts(self._sentences)
        return self._cached

    def forward(self, batch: Batch) -> Tensor:
        """Return logits, (n, n_labels), float32."""
        images = normalize(self.features(batch), dim=-1).view(self.clients, -1, self.hidden)
        logits: Tensor = self.head(self.scaled_logits(images @ self.classes().mT).flatten(0, 1))
        return logits


def _build(
    encoder: nn.Module, base: LoadedBase, labels: Sequence[str], settings: ModelSettings
) -> PromptedClassifier:
    texts = [settings.class_prompt.replace("{}", label.replace("_", " ")) for label in labels]
    return PromptedClassifier(encoder, embedding_size(base), tokenize(base, texts), settings.augment)


TASK = Task(
    name="image-text",
    roles=IMAGES,
    load=partial(load_two_towers, task="image-text"),
    encode=encode_images,
    build=_build,
    code="image_text",
)
