"""A client's model on a labelled file: accuracy, loss, F1, each label, and what is taken for what."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import accuracy_score, confusion_matrix, precision_recall_fscore_support

from trifed.common.errors import DataError
from trifed.data import Examples
from trifed.export.inference_inputs import Labelled, split_inputs
from trifed.export.locate import LocatedModel, join_names
from trifed.federation.client_model import Classifier
from trifed.federation.training import evaluate

CHUNK = 4096
"""Examples that are measured together. A run measures all of a client's together: of so many, equal to the bit."""

Told = Callable[[int], None]
"""Hears how many examples more are done."""


@dataclass(frozen=True)
class LabelScore:
    """One label: `examples` in the file that carry it; `precision`, `recall` and `f1` in [0, 1]."""

    label: str
    examples: int
    precision: float
    recall: float
    f1: float


@dataclass(frozen=True)
class Confusion:
    """How many examples of one label are taken for another."""

    actual: str
    predicted: str
    count: int


@dataclass(frozen=True)
class Evaluation:
    """One client's model on one file.

    `loss`: mean cross-entropy, nats; `accuracy` and `macro_f1` in [0, 1], the latter the mean over `labels`, which
    are those that occur in the file or among the predictions. `confusions`: the most frequent first.
    """

    client: str
    examples: int
    accuracy: float
    loss: float
    macro_f1: float
    labels: list[LabelScore]
    confusions: list[Confusion]


def evaluate_client(
    found: LocatedModel, classifier: Classifier, data: Labelled, told: Told = lambda count: None
) -> Evaluation:
    """Measure a client's model, in the precision of `found.training`.

    A label that the model does not know is refused, not counted as wrong: the model gives it no probability, so
    there would be no loss; and mostly it is another column, or another spelling.

    Raises:
        DataError: the file has a label that the model does not know.
    """
    labels = _indices(found.name, classifier, data)
    predicted, total = np.zeros_like(labels), 0.0
    for first in range(0, len(labels), CHUNK):
        rows = slice(first, first + CHUNK)
        examples = Examples(split_inputs(data.asked[rows]), labels[rows])
        encoded = classifier.task.encode(classifier.base, examples, classifier.settings)
        scores = evaluate(classifier.model, encoded, found.training)
        predicted[rows] = scores.predictions
        total += scores.loss * scores.examples
        told(scores.examples)
    return measure(found.name, labels, predicted, classifier.labels, total / len(labels))


def _indices(client: str, classifier: Classifier, data: Labelled) -> NDArray[np.int64]:
    known = {label: place for place, label in enumerate(classifier.labels)}
    odd = [place for place, label in enumerate(data.labels) if label not in known]
    if odd:
        rows = f" ({len(odd)} such rows in all)" if len(odd) > 1 else ""
        raise DataError(
            f"{data.where}, {data.unit} {data.asked[odd[0]].row}: the label '{data.labels[odd[0]]}' is none that "
            f"the model of '{client}' knows{rows}; it knows {join_names(classifier.labels)}. Correct it, "
            f"name another --label-column, or leave these rows out"
        )
    return np.array([known[label] for label in data.labels], np.int64)


def measure(
    client: str, labels: NDArray[np.int64], predicted: NDArray[np.int64], names: list[str], loss: float
) -> Evaluation:
    """Scores from labels and predictions, (n,) each; `names`: of the classes; `loss`: mean, nats."""
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
