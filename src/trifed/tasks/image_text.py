"""Image-text models: images are classified by how near they come to a sentence about each class.

Radford et al., "Learning Transferable Visual Models From Natural Language Supervision" (CLIP), ICML 2021, arXiv
2103.00020; Zhai et al., "Sigmoid Loss for Language Image Pre-Training" (SigLIP), ICCV 2023, arXiv 2303.15343. The
start is the zero-shot classifier; added to it are an adapter in one tower or both, and a bias for each class.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize
from transformers import AutoImageProcessor, AutoTokenizer

from trifed.data import IMAGES, Examples
from trifed.settings import Augment, BaseDtype, ModelSettings
from trifed.tasks.base_model import LoadedBase, Wanted, load_base
from trifed.tasks.image_classification import EncodedImages, augmented, encode_images
from trifed.tasks.interface import Batch, Scored, Task, TaskModel

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


class Bias(nn.Module):
    """One number a class, 0 at the start."""

    def __init__(self, n_labels: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(n_labels))


class PromptedClassifier(TaskModel):
    """Two PEFT-wrapped towers; the logit of a class is the scaled cosine of image and sentence, and a bias.

    `sentences`: the classes' tokens. Where nothing of the text tower trains they are embedded once.
    """

    def __init__(self, encoder: nn.Module, hidden: int, sentences: dict[str, Tensor], augment: Augment) -> None:
        super().__init__()
        self.encoder = encoder
        self.hidden = hidden
        self.head = Bias(len(sentences["input_ids"]))
        self.augment = augment
        self._names = tuple(sentences)
        for name, tensor in sentences.items():
            self.register_buffer(f"sentence_{name}", tensor, persistent=False)
        self._kept: Tensor | None = None

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
        sentences = {name: getattr(self, f"sentence_{name}") for name in self._names}
        return normalize(self.towers.get_text_features(**sentences).pooler_output.float(), dim=-1)

    def _text_trains(self) -> bool:
        return any(
            param.requires_grad for name, param in self.towers.named_parameters() if name.startswith("text_")
        )

    def forward(self, batch: Batch) -> Tensor:
        """Logits, (n, n_labels), float32."""
        nearness = normalize(self.features(batch), dim=-1) @ self.classes().T
        offset: Any = getattr(self.towers, "logit_bias", 0.0)
        logits: Tensor = nearness * self.towers.logit_scale.float().exp() + offset + self.head.bias
        return logits

    def loss(self, batch: Batch) -> Tensor:
        """Mean cross-entropy over the classes, in nats, a scalar."""
        return cross_entropy(self(batch), batch["labels"])

    def score(self, batch: Batch) -> Scored:
        """Summed cross-entropy and the most probable labels."""
        logits, labels = self(batch), batch["labels"]
        predictions = logits.argmax(-1)
        loss = cross_entropy(logits, labels, reduction="sum")
        return Scored(loss, len(labels), predictions == labels, predictions)


def load_two_towers(name: str, dtype: BaseDtype = "float32") -> LoadedBase:
    """A frozen model of images and texts with its processors; raises ModelError where it is none."""
    return load_base(name, TWO_TOWERS, dtype)


def encode(base: LoadedBase, examples: Examples, settings: ModelSettings) -> EncodedImages:
    """As for image classification; see `encode_images` for the errors."""
    config = base.model.config.vision_config
    return encode_images(base.processor.image_processor, config, examples)


def sentences(base: LoadedBase, labels: Sequence[str], settings: ModelSettings) -> dict[str, Tensor]:
    """Tokens of a sentence about each label, (n_labels, length) each."""
    texts = [settings.class_prompt.replace("{}", label.replace("_", " ")) for label in labels]
    fixed = base.model.config.model_type in FIXED_LENGTH
    most = getattr(base.model.config.text_config, "max_position_embeddings", None)
    tokens = base.processor.tokenizer(
        texts, padding="max_length" if fixed else True, truncation=True, max_length=most, return_tensors="pt",
        return_attention_mask=not fixed, return_token_type_ids=False,
    )  # fmt: skip
    return dict(tokens)


def _build(
    encoder: nn.Module, base: LoadedBase, labels: Sequence[str], settings: ModelSettings
) -> PromptedClassifier:
    config = base.model.config
    hidden = getattr(config, "projection_dim", None) or config.vision_config.hidden_size
    return PromptedClassifier(encoder, hidden, sentences(base, labels, settings), settings.augment)


TASK = Task(
    name="image-text",
    metric="accuracy",
    roles=IMAGES,
    load=load_two_towers,
    encode=encode,
    build=_build,
)
