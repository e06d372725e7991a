"""Clients' models whose outputs are no single label: a number, or any number of labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from trifed.federation.client_model import ClientModel, load_model
from trifed.federation.training.evaluation import length_order
from trifed.tasks.multi_label_classification import THRESHOLD
from trifed.tasks.text_regression import mean_of, scale_of

BATCH_SIZE = 64
"""Texts that are computed together."""


@torch.no_grad()
def _outputs(model: ClientModel, inputs: Mapping[str, list[Any]], width: int) -> NDArray[np.float32]:
    """Return the head's outputs, (n, width), for inputs by role."""
    data = model.encode(inputs)
    result = np.zeros((len(data), width), np.float32)
    model.model.eval()
    for rows in length_order(data, BATCH_SIZE):
        result[rows] = model.model(data.batch(rows, model.device)).cpu().numpy()
    return result


@dataclass(frozen=True)
class Regressor(ClientModel):
    """A model that estimates a number."""

    output = "number"

    def predict(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> NDArray[np.float64]:
        """Return a number for each text, (n,), in the units of the training data. `pairs`: second texts."""
        return self.predict_of(self.by_role(texts, pairs))

    def predict_of(self, inputs: Mapping[str, list[Any]]) -> NDArray[np.float64]:
        """Return numbers, (n,), for inputs by role, as in `trifed.data.Examples`."""
        return self.in_units(_outputs(self, inputs, 1)[:, 0])

    def in_units(self, standardised: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return standardised numbers, (n,), in the units of the training data."""
        return standardised.astype(np.float64) * scale_of(self.settings) + mean_of(self.settings)


@dataclass(frozen=True)
class MultiLabelClassifier(ClientModel):
    """A model that decides about each label by itself; `labels` are in the order of the probabilities' columns."""

    output = "labels"

    @property
    def classes_(self) -> NDArray[np.str_]:
        """Labels in the order of the probabilities' columns, under scikit-learn's name, (n_labels,)."""
        return np.array(self.labels)

    def predict_proba(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> NDArray[np.float32]:
        """Return the probability of each label, (n, n_labels); they do not sum to one. `pairs`: second texts."""
        return self.probabilities_of(self.by_role(texts, pairs))

    def probabilities_of(self, inputs: Mapping[str, list[Any]]) -> NDArray[np.float32]:
        """Return probabilities, (n, n_labels), of inputs by role, as in `trifed.data.Examples`."""
        return torch.from_numpy(_outputs(self, inputs, len(self.labels))).sigmoid().numpy()

    def predict(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> list[list[str]]:
        """Return the labels with a probability over 0.5 for each text, the most probable first."""
        return [[label for label, _ in self.chosen(row)] for row in self.predict_proba(texts, pairs)]

    def chosen(self, probabilities: NDArray[np.float32]) -> list[tuple[str, float]]:
        """Return the labels over 0.5 of a row of probabilities, (n_labels,), the most probable first."""
        order = np.argsort(-probabilities, kind="stable")
        return [(self.labels[k], float(probabilities[k])) for k in order if probabilities[k] > THRESHOLD]


def load_regressor(folder: str | Path, base: str | None = None) -> Regressor:
    """Load a client's model of numbers; see `load_model` for arguments and errors."""
    return load_model(Regressor, folder, base)


def load_multi_label_classifier(folder: str | Path, base: str | None = None) -> MultiLabelClassifier:
    """Load a client's classifier with several labels; see `load_model` for arguments and errors."""
    return load_model(MultiLabelClassifier, folder, base)
