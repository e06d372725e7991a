"""Text regression: a number for each text, by a head with one output on a pooled hidden state.

The loss is the mean squared error of standardised numbers, (y - model.target_mean) / model.target_scale. Both are
settings of the run, so that they are the same at all sites, and nothing has to be computed from a site's numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from transformers import AutoModelForSequenceClassification

from trifed.common.errors import ModelError
from trifed.config.settings import ModelSettings
from trifed.data import NUMBER, TEXTS, Examples
from trifed.tasks import text_classification
from trifed.tasks.base import Batch, BatchScores, Encoded, Task
from trifed.tasks.base_model import LoadedBase
from trifed.tasks.text_classification import TextClassifier, check_pooling, is_decoder, load_encoder
from trifed.tasks.tokens import EncodedTokens


class TextRegressor(TextClassifier):
    """A PEFT-wrapped model of texts whose head has one output, the standardised number."""

    def loss_of(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Return the mean squared error of standardised numbers, (n, 1), a scalar."""
        return mse_loss(outputs, batch["targets"])

    def score(self, batch: Batch) -> BatchScores:
        """Return the sum of squared errors, each of them as `right`, and the numbers in place of probabilities."""
        outputs = self(batch)
        errors = (outputs - batch["targets"]).square().sum(1)
        return BatchScores(errors.sum(), len(errors), errors, torch.zeros(0, dtype=torch.int64), outputs)

    def score_features(self, features: Tensor, labels: Tensor) -> BatchScores | None:
        """Return None: the numbers are no labels."""
        return None

    def shares_right(self, right: NDArray[np.float64], data: Encoded) -> NDArray[np.float64]:
        """Return each example's part in R², (n,), from squared errors, (n,).

        Their mean is R² = 1 - Σ error² / Σ (y - mean y)². A negative R², worse than the data's own mean, counts
        as 0 for all. If all numbers are equal, an example counts 1 where its error is 0, otherwise 0.
        """
        numbers = cast(NDArray[np.float32], cast(EncodedTokens, data).targets)
        spread = float(np.var(numbers, dtype=np.float64))
        parts = 1 - right / spread if spread else (right == 0).astype(np.float64)
        return parts if parts.mean() > 0 else np.zeros_like(parts)


def encode(base: LoadedBase, examples: Examples, settings: ModelSettings) -> EncodedTokens:
    """Tokenize examples as text classification does, with standardised numbers where there are any.

    Raises:
        ModelError: As for text classification, or a standardised number is too large.
    """
    encoded = text_classification.encode(base, examples, settings)
    if examples.targets is None:
        return encoded
    numbers = (examples.targets - mean_of(settings)) / scale_of(settings)
    large = np.abs(numbers) > LARGEST
    if large.any():
        raise ModelError(
            f"model.target_scale: got {scale_of(settings):g}, with which {examples.targets[large][0]:g} becomes "
            f"{numbers[large][0]:g}; set model.target_mean and model.target_scale to about the mean and the "
            "standard deviation of the numbers, or correct the number"
        )
    return replace(encoded, targets=numbers.astype(np.float32))


LARGEST = 1e9
"""Largest standardised number; squares of larger ones are not exact in float32, and no model learns them."""


def mean_of(settings: ModelSettings) -> float:
    """Return what is subtracted from numbers."""
    return settings.target_mean or 0.0


def scale_of(settings: ModelSettings) -> float:
    """Return what numbers are divided by."""
    return settings.target_scale or 1.0


def build(encoder: nn.Module, base: LoadedBase, labels: Sequence[str], settings: ModelSettings) -> TextRegressor:
    """Build the model around an encoder; there are no `labels`. Raises as `check_pooling` does."""
    check_pooling(base, settings)
    return TextRegressor(encoder, base.model.config.hidden_size, 1, settings.pooling, is_decoder(base))


TASK = Task(
    name="text-regression",
    roles=(*TEXTS, NUMBER),
    load=partial(load_encoder, task="text-regression"),
    encode=encode,
    build=build,
    code="classifier",
    native_class=AutoModelForSequenceClassification,
    probe=text_classification.TASK.probe,
    output="number",
)
