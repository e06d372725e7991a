"""Contrastive training of image-text models on pairs of images and captions, without labels.

The loss is the one of pre-training: cross-entropy over the images and the captions of a step for CLIP and dual
encoders, a separate one per pair for SigLIP (papers in `image_text`). All pairs of a step with equal captions
count as matches, like those with equal labels in Yang et al., "Unified Contrastive Learning in Image-Text-Label
Space", CVPR 2022, arXiv 2204.03610.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, logsigmoid, normalize

from trifed.config.settings import ModelSettings
from trifed.data import IMAGES, TEXT, Examples
from trifed.tasks.base import Batch, BatchScores, Task
from trifed.tasks.base_model import LoadedBase
from trifed.tasks.image_classification import EncodedImages, encode_images
from trifed.tasks.image_text import FIXED_LENGTH, TwoTowerModel, embedding_size, load_two_towers, tokenize

PAIRS_PER_SCORE = 32
"""Pairs that a score compares with each other, so that chance accuracy is about 1 in 32."""


@dataclass(frozen=True)
class EncodedPairs(EncodedImages):
    """Images and the tokens of their captions, (n, length) each tensor.

    Lengths are equal, so that caption lengths do not decide which captions are compared.
    """

    tokens: dict[str, Tensor] = field(kw_only=True)

    def inputs(self, row: int) -> dict[str, set[Hashable]]:
        """Return the image's patches for the vision tower, and the caption's tokens for the text tower."""
        return {"vis": super().inputs(row)[""], "text": set(self.tokens["input_ids"][row].tolist())}

    def batch(self, rows: NDArray[np.int64], device: torch.device) -> Batch:
        """Return images and captions of the given rows on `device`."""
        captions = {name: tensor[rows].to(device) for name, tensor in self.tokens.items()}
        return {**super().batch(rows, device), **captions}


class PairedTowers(TwoTowerModel):
    """A model that matches captions and images of a batch; `sigmoid` scores each pair separately, as SigLIP."""

    compared = PAIRS_PER_SCORE

    def __init__(self, encoder: nn.Module, hidden: int, settings: ModelSettings, sigmoid: bool) -> None:
        super().__init__(encoder, hidden, settings.augment)
        self.sigmoid = sigmoid

    def outputs(self, batch: Batch) -> Tensor:
        """Return the embeddings of each image and its caption, (n, 2, hidden), of norm 1, float32."""
        tokens = {name: ids for name, ids in batch.items() if name in ("input_ids", "attention_mask")}
        return torch.stack([normalize(self.features(batch), dim=-1), self.embed_texts(tokens)], 1)

    def forward(self, batch: Batch) -> Tensor:
        """Return logits of every image (row) with every caption (column) of the batch, (n, n), float32."""
        return self.logits(self.outputs(batch))

    def logits(self, outputs: Tensor) -> Tensor:
        """Return logits of every image with every caption of a batch from their `outputs`, (n, n), float32."""
        return self.scaled_logits(outputs[:, 0] @ outputs[:, 1].T)

    def loss_of(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Return the mean loss over the batch's pairs, in nats, a scalar; for CLIP also over both directions."""
        return self._loss(self.logits(outputs), same_captions(batch))

    def _loss(self, logits: Tensor, same: Tensor) -> Tensor:
        if self.sigmoid:
            return -logsigmoid(torch.where(same, logits, -logits)).sum() / len(logits)
        targets = same.float() / same.sum(1, keepdim=True)
        return (cross_entropy(logits, targets) + cross_entropy(logits.T, targets)) / 2

    def score(self, batch: Batch) -> BatchScores:
        """Return scores that average both directions: each image's best caption and each caption's best image."""
        logits, same = self.logits(self.outputs(batch)), same_captions(batch)
        rows = torch.arange(len(logits), device=logits.device)
        right = same[rows, logits.argmax(1)].float() + same[logits.argmax(0), rows].float()
        return BatchScores(
            loss=self._loss(logits, same) * len(logits),
            count=len(logits),
            right=right / 2,
            predictions=torch.zeros(0, dtype=torch.long),
        )


def same_captions(batch: Batch) -> Tensor:
    """Return a matrix that is True where two captions of a batch have equal tokens, (n, n) bool."""
    ids = batch["input_ids"]
    return (ids[:, None] == ids[None]).all(-1)


def encode(base: LoadedBase, examples: Examples, settings: ModelSettings) -> EncodedPairs:
    """Encode images, and captions of at most `model.max_length` tokens; raises as `encode_images` does."""
    captions, tokens, cut = examples.inputs["text"], {}, 0
    if captions:
        tokens = tokenize(base, captions, settings.max_length)
        whole = base.processor.tokenizer(captions, verbose=False)["input_ids"]
        cut = sum(len(ids) > tokens["input_ids"].shape[1] for ids in whole)
    return EncodedPairs(**{**vars(encode_images(base, examples)), "cut": cut}, tokens=tokens)


def _build(encoder: nn.Module, base: LoadedBase, labels: Sequence[str], settings: ModelSettings) -> PairedTowers:
    return PairedTowers(encoder, embedding_size(base), settings, base.model.config.model_type in FIXED_LENGTH)


TASK = Task(
    name="image-text-pairs",
    roles=(*IMAGES, TEXT),
    load=partial(load_two_towers, task="image-text-pairs"),
    encode=encode,
    build=_build,
    code="image_text",
    output="match",
)
