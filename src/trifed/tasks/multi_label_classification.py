"""Multi-label classification: any number of labels for each text, each decided by itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits
from transformers import AutoModelForSequenceClassification

from trifed.config.settings import ModelSettings
from trifed.data import LABEL_LIST, TEXTS, Examples
from trifed.tasks import text_classification
from trifed.tasks.base import Batch, BatchScores, Task
from trifed.tasks.base_model import LoadedBase
from trifed.tasks.text_classification import TextClassifier, check_pooling, is_decoder, load_encoder
from trifed.tasks.tokens import EncodedTokens

THRESHOLD = 0.5
"""Probability above which a label is predicted."""


class MultiLabelTextClassifier(TextClassifier):
    """A PEFT-wrapped model of texts whose head has one output for each label, the logit of its probability."""

    def loss_of(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Return the mean binary cross-entropy over examples and labels, in nats, a scalar."""
        return binary_cross_entropy_with_logits(outputs, batch["targets"])

    def score(self, batch: Batch) -> BatchScores:
        """Return the sum over examples of the mean loss over labels, and the F1 of each example's labels.

        F1 = 2 |predicted and right| / (|predicted| + |right|), and 1 if there are none of both.
        """
        logits, targets = self(batch), batch["targets"]
        losses = binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(1)
        probabilities = logits.sigmoid()
        predicted = (probabilities > THRESHOLD).float()
        both, either = (predicted * targets).sum(1), (predicted + targets).sum(1)
        f1 = torch.where(either > 0, 2 * both / either.clamp(min=1), 1.0)
        return BatchScores(losses.sum(), len(losses), f1, torch.zeros(0, dtype=torch.int64), probabilities)

    def score_features(self, features: Tensor, labels: Tensor) -> BatchScores | None:
        """Return None: an example has not one label."""
        return None


def encode(base: LoadedBase, examples: Examples, settings: ModelSettings) -> EncodedTokens:
    """Tokenize examples as text classification does, with 1 for each of their labels where there are any."""
    encoded = text_classification.encode(base, examples, settings)
    if examples.targets is None:
        return encoded
    return replace(encoded, targets=examples.targets.astype(np.float32))


def _build(
    encoder: nn.Module, base: LoadedBase, labels: Sequence[str], settings: ModelSettings
) -> MultiLabelTextClassifier:
    check_pooling(base, settings)
    hidden = base.model.config.hidden_size
    return MultiLabelTextClassifier(encoder, hidden, len(labels), settings.pooling, is_decoder(base))


TASK = Task(
    name="multi-label-classification",
    roles=(*TEXTS, LABEL_LIST),
    load=partial(load_encoder, task="multi-label-classification"),
    encode=encode,
    build=_build,
    code="classifier",
    native_class=AutoModelForSequenceClassification,
    probe=text_classification.TASK.probe,
    output="labels",
)
