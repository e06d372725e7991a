"""Image-text models: which caption belongs to which image, learned from pairs. No labels are needed.

The loss is that which the model was pre-trained with: cross-entropy over the images and the captions of a step for
CLIP and dual encoders, of each pair by itself for SigLIP (the papers are named in `towers`). Pairs of a step with
the same caption are all right, as those with the same label in Yang et al., "Unified Contrastive Learning in
Image-Text-Label Space", CVPR 2022, arXiv 2204.03610.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, logsigmoid, normalize

from trifed.config.settings import ModelSettings
from trifed.data import IMAGES, TEXT, Examples
from trifed.tasks.base import Batch, Scored, Task
from trifed.tasks.base_model import LoadedBase
from trifed.tasks.image_classification import EncodedImages, encode_images
from trifed.tasks.towers import FIXED_LENGTH, Towers, common_size, load_two_towers, tokens_of

TOKENS: tuple[str, ...] = ("input_ids", "attention_mask")
TOGETHER = 32
"""Pairs that are told apart when a model is scored: by chance about one in 32 is right."""


@dataclass(frozen=True)
class EncodedPairs:
    """Images and the tokens of their captions, (n, length) each."""

    images: EncodedImages
    tokens: dict[str, Tensor]
    cut: int

    def __len__(self) -> int:
        return len(self.images)

    @property
    def labels(self) -> NDArray[np.int64]:
        """What the pairs are, (n,)."""
        return self.images.labels

    @property
    def lengths(self) -> NDArray[np.int64]:
        """All alike, (n,): which captions are compared must not depend on their lengths."""
        return self.images.lengths

    def inputs(self, row: int) -> dict[str, set[Any]]:
        """The patches of an image, which one tower reads, and the tokens of its caption, which the other reads."""
        return {"vis": self.images.inputs(row)[""], "text": set(self.tokens["input_ids"][row].tolist())}

    def batch(self, rows: NDArray[np.int64], device: torch.device) -> Batch:
        """Images and captions of the given rows."""
        captions = {name: tensor[rows].to(device) for name, tensor in self.tokens.items()}
        return {**self.images.batch(rows, device), **captions}


class PairedTowers(Towers):
    """Tells which captions of a batch belong to which images. `sigmoid`: learns each pair by itself, as SigLIP."""

    compared = TOGETHER

    def __init__(self, encoder: nn.Module, hidden: int, settings: ModelSettings, sigmoid: bool) -> None:
        super().__init__(encoder, hidden, settings.augment)
        self.sigmoid = sigmoid

    def forward(self, batch: Batch) -> Tensor:
        """How well images (rows) and captions (columns) of the batch fit each other: logits, (n, n), float32."""
        tokens = {name: batch[name] for name in TOKENS if name in batch}
        return self.scaled(normalize(self.features(batch), dim=-1) @ self.said(tokens).T)

    def loss(self, batch: Batch) -> Tensor:
        """Mean over the pairs of the batch, in nats, a scalar; of CLIP's kind also over both directions."""
        return self._loss(self(batch), same_captions(batch))

    def _loss(self, logits: Tensor, same: Tensor) -> Tensor:
        if self.sigmoid:
            return -logsigmoid(torch.where(same, logits, -logits)).sum() / len(logits)
        wanted = same.float() / same.sum(1, keepdim=True)
        return (cross_entropy(logits, wanted) + cross_entropy(logits.T, wanted)) / 2

    def score(self, batch: Batch) -> Scored:
        """Right is half for the caption that an image finds, half for the image that a caption finds."""
        logits, same = self(batch), same_captions(batch)
        found = torch.arange(len(logits), device=logits.device)
        right = same[found, logits.argmax(1)].float() + same[logits.argmax(0), found].float()
        nothing = torch.zeros(0, dtype=torch.long)
        return Scored(self._loss(logits, same) * len(logits), len(logits), right / 2, nothing)


def same_captions(batch: Batch) -> Tensor:
    """Which captions of a batch are the same, (n, n) bool, token by token."""
    ids = batch["input_ids"]
    return (ids[:, None] == ids[None]).all(-1)


def encode(base: LoadedBase, examples: Examples, settings: ModelSettings) -> EncodedPairs:
    """Images as for image classification, see `encode_images` for the errors; captions to `model.max_length`."""
    images = encode_images(base.processor.image_processor, base.model.config.vision_config, examples)
    captions = examples.inputs["text"]
    tokens = tokens_of(base, captions, settings.max_length) if captions else {}
    most = tokens["input_ids"].shape[1] if captions else 0
    whole = base.processor.tokenizer(captions, verbose=False)["input_ids"] if captions else []
    return EncodedPairs(images, tokens, sum(len(ids) > most for ids in whole))


def _build(encoder: nn.Module, base: LoadedBase, labels: Sequence[str], settings: ModelSettings) -> PairedTowers:
    return PairedTowers(encoder, common_size(base), settings, base.model.config.model_type in FIXED_LENGTH)


TASK = Task(
    name="image-text-pairs",
    metric="matching accuracy",
    roles=(*IMAGES, TEXT),
    load=partial(load_two_towers, "image-text-pairs"),
    encode=encode,
    build=_build,
    gives="match",
)
