"""Classification of images by their similarity to one sentence per class, with an image-text model.

The initial model is the zero-shot classifier of the papers cited in `towers`, plus an adapter in one tower or both
and a bias per class.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from trifed.config.settings import Augment, ModelSettings
from trifed.data import IMAGES, Examples
from trifed.tasks.base import Batch, Task
from trifed.tasks.base_model import LoadedBase
from trifed.tasks.headed import ClassificationModel
from trifed.tasks.image_classification import EncodedImages, encode_images
from trifed.tasks.towers import TwoTowerModel, embedding_size, load_two_towers, tokenize


class Bias(nn.Module):
    """One bias per class, initially 0."""

    def __init__(self, n_labels: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(n_labels))


class PromptedClassifier(ClassificationModel, TwoTowerModel):
    """A classifier whose logits are scaled cosines of an image with each class's sentence, plus a bias.

    The sentences are embedded only once if the text tower is frozen.
    """

    def __init__(self, encoder: nn.Module, hidden: int, sentences: dict[str, Tensor], augment: Augment) -> None:
        """Store the `sentences`: tokens of one sentence per class, (n_labels, length) each."""
        super().__init__(encoder, hidden, augment)
        self.head = Bias(len(sentences["input_ids"]))
        self._names = tuple(sentences)
        for name, tensor in sentences.items():
            self.register_buffer(f"sentence_{name}", tensor, persistent=False)
        self._cached: Tensor | None = None

    def classes(self) -> Tensor:
        """Return the embeddings of the classes' sentences, (n_labels, hidden), of norm 1."""
        if self._text_trains():
            self._cached = None
            return self._embed_sentences()
        if self._cached is None:
            self.towers.text_model.eval()  # no dropout in embeddings that are reused
            with torch.no_grad():
                self._cached = self._embed_sentences()
        return self._cached

    def _embed_sentences(self) -> Tensor:
        return self.embed_texts({name: getattr(self, f"sentence_{name}") for name in self._names})

    def _text_trains(self) -> bool:
        return any(
            param.requires_grad for name, param in self.towers.named_parameters() if name.startswith("text_")
        )

    def forward(self, batch: Batch) -> Tensor:
        """Return logits, (n, n_labels), float32."""
        return self.scaled_logits(normalize(self.features(batch), dim=-1) @ self.classes().T) + self.head.bias


def encode(base: LoadedBase, examples: Examples, settings: ModelSettings) -> EncodedImages:
    """Encode images for the vision tower; raises `ModelError` as `encode_images` does."""
    config = base.model.config.vision_config
    return encode_images(base.processor.image_processor, config, examples)


def _build(
    encoder: nn.Module, base: LoadedBase, labels: Sequence[str], settings: ModelSettings
) -> PromptedClassifier:
    texts = [settings.class_prompt.replace("{}", label.replace("_", " ")) for label in labels]
    return PromptedClassifier(encoder, embedding_size(base), tokenize(base, texts), settings.augment)


TASK = Task(
    name="image-text",
    metric="accuracy",
    roles=IMAGES,
    load=partial(load_two_towers, "image-text"),
    encode=encode,
    build=_build,
)
