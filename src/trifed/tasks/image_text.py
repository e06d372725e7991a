"""Image-text models: images are classified by how near they come to a sentence about each class.

The start is the zero-shot classifier of the papers named in `towers`; added to it are an adapter in one tower or
both, and a bias for each class.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from trifed.config.settings import Augment, ModelSettings
from trifed.data import IMAGES, Examples
from trifed.tasks.base import Batch, Scored, Task
from trifed.tasks.base_model import LoadedBase
from trifed.tasks.image_classification import EncodedImages, encode_images
from trifed.tasks.towers import Towers, common_size, load_two_towers, tokens_of


class Bias(nn.Module):
    """One number a class, 0 at the start."""

    def __init__(self, n_labels: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(n_labels))


class PromptedClassifier(Towers):
    """The logit of a class is the scaled cosine of image and sentence, and a bias.

    `sentences`: the classes' tokens. Where nothing of the text tower trains they are embedded once.
    """

    def __init__(self, encoder: nn.Module, hidden: int, sentences: dict[str, Tensor], augment: Augment) -> None:
        super().__init__(encoder, hidden, augment)
        self.head = Bias(len(sentences["input_ids"]))
        self._names = tuple(sentences)
        for name, tensor in sentences.items():
            self.register_buffer(f"sentence_{name}", tensor, persistent=False)
        self._kept: Tensor | None = None

    def classes(self) -> Tensor:
        """Embeddings of the classes' sentences, (n_labels, hidden), of norm 1."""
        if self._text_trains():
            self._kept = None
            return self._embedded()
        if self._kept is None:
            self.towers.text_model.eval()  # without dropout, because it is kept
            with torch.no_grad():
                self._kept = self._embedded()
        return self._kept

    def _embedded(self) -> Tensor:
        return self.said({name: getattr(self, f"sentence_{name}") for name in self._names})

    def _text_trains(self) -> bool:
        return any(
            param.requires_grad for name, param in self.towers.named_parameters() if name.startswith("text_")
        )

    def forward(self, batch: Batch) -> Tensor:
        """Logits, (n, n_labels), float32."""
        return self.scaled(normalize(self.features(batch), dim=-1) @ self.classes().T) + self.head.bias

    def loss(self, batch: Batch) -> Tensor:
        """Mean cross-entropy over the classes, in nats, a scalar."""
        return cross_entropy(self(batch), batch["labels"])

    def score(self, batch: Batch) -> Scored:
        """Summed cross-entropy and the most probable labels."""
        logits, labels = self(batch), batch["labels"]
        predictions = logits.argmax(-1)
        loss = cross_entropy(logits, labels, reduction="sum")
        return Scored(loss, len(labels), predictions == labels, predictions)


def encode(base: LoadedBase, examples: Examples, settings: ModelSettings) -> EncodedImages:
    """As for image classification; see `encode_images` for the errors."""
    config = base.model.config.vision_config
    return encode_images(base.processor.image_processor, config, examples)


def _build(
    encoder: nn.Module, base: LoadedBase, labels: Sequence[str], settings: ModelSettings
) -> PromptedClassifier:
    texts = [settings.class_prompt.replace("{}", label.replace("_", " ")) for label in labels]
    return PromptedClassifier(encoder, common_size(base), tokens_of(base, texts), settings.augment)


TASK = Task(
    name="image-text",
    metric="accuracy",
    roles=IMAGES,
    load=partial(load_two_towers, "image-text"),
    encode=encode,
    build=_build,
)
