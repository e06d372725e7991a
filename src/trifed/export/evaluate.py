"""Evaluate a client's classifier on a labelled file: accuracy, loss, F1, scores of each label, confusions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import accuracy_score, confusion_matrix, precision_recall_fscore_support

from trifed.common.errors import DataError
from trifed.export.inference_inputs import LabelledInputs, by_role
from trifed.export.locate import LocatedModel, join_names
from trifed.federation.client_model import Classifier
from trifed.federation.training import evaluate

CHUNK = 4096
"""Examples that are evaluated together. A run evaluates a client's all at once: up to this number, the scores are
equal to the last bit."""

Progress = Callable[[int], None]
"""Called with the number of examples that were finished since the last call."""


@dataclass(frozen=True)
class LabelScore:
    """Scores of one label. `examples`: rows with this label; `precision`, `recall`, `f1`: in [0, 1]."""

    label: str
    examples: int
    precision: float
    recall: float
    f1: float


@dataclass(frozen=True)
class Confusion:
    """The number of examples with one label that were predicted as another."""

    actual: str
    predicted: str
    count: int


@dataclass(frozen=True)
class Evaluation:
    """Scores of one client's classifier on one file.

    Attributes:
        client: Name of the client.
        examples: Number of rows.
        accuracy: In [0, 1].
        loss: Mean cross-entropy, nats.
        macro_f1: Mean F1 over `labels`, in [0, 1].
        labels: Scores of the labels that occur in the file or among the predictions.
        confusions: The most frequent first.
    """

    client: str
    examples: int
    accuracy: float
    loss: float
    macro_f1: float
    labels: list[LabelScore]
    confusions: list[Confusion]


def evaluate_client(
    located: LocatedModel, classifier: Classifier, data: LabelledInputs, progress: Progress = lambda count: None
) -> Evaluation:
    """Evaluate a client's classifier in the precision of `located.training`.

    A label that the model was not trained on is an error, not a wrong prediction: its loss would be infinite, and
    usually the cause is a wrong column or another spelling.

    Raises:
        DataError: The file has a label that the model was not trained on.
    """
    labels = _label_indices(located.name, classifier, data)
    predicted, total = np.zeros_like(labels), 0.0
    for first in range(0, len(labels), CHUNK):
        rows = slice(first, first + CHUNK)
        encoded = classifier.encode(by_role(data.inputs[rows]), labels[rows])
        scores = evaluate(classifier.model, encoded, located.training)
        predicted[rows] = scores.predictions
        total += scores.loss * scores.examples
        progress(scores.examples)
    return measure(located.name, labels, predicted, classifier.labels, total / len(labels))


def _label_indices(client: str, classifier: Classifier, data: LabelledInputs) -> NDArray[np.int64]:
    indices = {label: index for index, label in enumerate(classifier.labels)}
    unknown = [place for place, label in enumerate(data.labels) if label not in indices]
    if unknown:
        rows = f" ({len(unknown)} such rows in all)" if len(unknown) > 1 else ""
        raise DataError(
            f"{data.where}, {data.unit} {data.inputs[unknown[0]].row}: got the label '{data.labels[unknown[0]]}'"
            f"{rows}; expected one that the model of '{client}' was trained on: {join_names(classifier.labels)}. "
            f"Correct it, name another --label-column, or leave these rows out"
        )
    return np.array([indices[label] for label in data.labels], np.int64)


def measure(
    client: str, labels: NDArray[np.int64], predicted: NDArray[np.int64], names: list[str], loss: float
) -> Evaluation:
    """Return scores from labels and predictions, (n,) each. `names`: labels by index; `loss`: mean, nats."""
    present = np.union1d(labels, predicted)
    precision, recall, f1, support = precision_recall_fscore_support(
        labels, predicted, labels=present, zero_division=0.0
    )
    scores = zip(present, support, precision, recall, f1, strict=True)
    return Evaluation(
        client=client,
        examples=len(labels),
        accuracy=float(accuracy_score(labels, predicted)),
        loss=loss,
        macro_f1=float(np.mean(f1)),
        labels=[LabelScore(names[k], int(n), float(p), float(r), float(f)) for k, n, p, r, f in scores],
        confusions=_confusions(labels, predicted, names),
    )


def _confusions(labels: NDArray[np.int64], predicted: NDArray[np.int64], names: list[str]) -> list[Confusion]:
    matrix = confusion_matrix(labels, predicted, labels=np.arange(len(names)))
    np.fill_diagonal(matrix, 0)
    pairs = np.argwhere(matrix > 0)
    order = np.argsort(-matrix[pairs[:, 0], pairs[:, 1]], kind="stable")
    return [Confusion(names[a], names[b], int(matrix[a, b])) for a, b in pairs[order]]
