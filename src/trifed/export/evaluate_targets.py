"""Evaluate a model whose label is a list of labels or a number on a file, in the precision of its training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import mean_absolute_error, mean_squared_error, r2_score

from trifed.common.errors import DataError
from trifed.data import Examples
from trifed.data.columns import spelling
from trifed.data.targets import label_matrix
from trifed.export.evaluate import LabelScore, Progress, Scores
from trifed.export.inference_inputs import LabelledInputs, by_role
from trifed.export.locate import LocatedModel, join_names
from trifed.federation.client_model import ClientModel
from trifed.federation.target_models import MultiLabelClassifier, Regressor
from trifed.federation.training.evaluation import Scores as ModelScores
from trifed.federation.training.evaluation import evaluate
from trifed.tasks.multi_label_classification import THRESHOLD

Numbers = NDArray[np.float64]
Chosen = NDArray[np.bool_]


@dataclass(frozen=True)
class NumberEvaluation(Scores):
    """Scores of a model of numbers, in the units of the file; None where a score is not defined.

    Attributes:
        accuracy: R², or 0 if it is negative, in [0, 1].
        r2: 1 - Σ error² / Σ (y - mean y)², at most 1.
        mse: Mean squared error.
        mae: Mean absolute error.
        pearson: Correlation of the model's numbers with the file's, in [-1, 1].
        spearman: Correlation of their ranks, in [-1, 1].
    """

    accuracy: float
    r2: float | None
    mse: float | None
    mae: float | None
    pearson: float | None
    spearman: float | None


@dataclass(frozen=True)
class MultiLabelEvaluation(Scores):
    """Scores of a classifier with several labels.

    Attributes:
        accuracy: Mean over examples of the F1 of their labels, in [0, 1].
        loss: Mean binary cross-entropy over examples and labels, nats.
        f1_micro: F1 over all labels of all examples together, in [0, 1].
        f1_macro: Mean F1 over `labels`, in [0, 1].
        exact: Share of the examples of which all labels are right.
        labels: Scores of the labels that occur in the file or among the predictions.
    """

    accuracy: float
    loss: float
    f1_micro: float
    f1_macro: float
    exact: float
    labels: list[LabelScore]


def evaluate_regressor(
    located: LocatedModel, regressor: Regressor, data: LabelledInputs, progress: Progress = lambda count: None
) -> NumberEvaluation:
    """Evaluate a client's model of numbers."""
    numbers = np.array(data.labels, np.float64)
    scores = _evaluate(located, regressor, data, numbers[:, None])
    progress(len(numbers))
    return measure_numbers(located.name, numbers, regressor.in_units(scores.probabilities[:, 0]))


def evaluate_multi_label(
    located: LocatedModel,
    classifier: MultiLabelClassifier,
    data: LabelledInputs,
    progress: Progress = lambda count: None,
) -> MultiLabelEvaluation:
    """Evaluate a client's classifier with several labels.

    Raises:
        DataError: The file has a label that the model was not trained on.
    """
    _check_known(located.name, classifier, data)
    targets, _ = label_matrix(data.labels, classifier.labels)
    scores = _evaluate(located, classifier, data, targets)
    progress(len(targets))
    predicted = scores.probabilities > THRESHOLD
    return measure_labels(located.name, targets, predicted, classifier.labels, scores)


def _evaluate(
    located: LocatedModel, model: ClientModel, data: LabelledInputs, targets: NDArray[Any]
) -> ModelScores:
    examples = Examples(by_role(data.inputs), np.zeros(len(targets), np.int64), targets)
    encoded = model.task.encode(model.base, examples, model.settings)
    return evaluate(model.model, encoded, located.training)


def _check_known(client: str, classifier: MultiLabelClassifier, data: LabelledInputs) -> None:
    known = {spelling(label) for label in classifier.labels}
    unknown = [(row, label) for row, labels in enumerate(data.labels) for label in labels if label not in known]
    if unknown:
        row, label = unknown[0]
        rows = f" ({len(unknown)} such labels in all)" if len(unknown) > 1 else ""
        raise DataError(
            f"{data.where}, {data.unit} {data.inputs[row].row}: got the label '{label}'{rows}; expected those "
            f"that the model of '{client}' was trained on: {join_names(classifier.labels)}. Correct it, name "
            f"another --label-column, or leave it out"
        )


def measure_numbers(client: str, numbers: Numbers, predicted: Numbers) -> NumberEvaluation:
    """Return scores from the file's numbers and the model's, (n,) each."""
    if not np.isfinite(predicted).all():  # as after training that diverged
        return NumberEvaluation(client, len(numbers), 0.0, None, None, None, None, None)
    vary = len(numbers) > 1 and min(np.ptp(numbers), np.ptp(predicted)) > 0
    r2 = float(r2_score(numbers, predicted)) if len(numbers) > 1 else None
    return NumberEvaluation(
        client=client,
        examples=len(numbers),
        accuracy=max(0.0, r2 or 0.0),
        r2=r2,
        mse=float(mean_squared_error(numbers, predicted)),
        mae=float(mean_absolute_error(numbers, predicted)),
        pearson=_defined(pearsonr(numbers, predicted).statistic) if vary else None,
        spearman=_defined(spearmanr(numbers, predicted).statistic) if vary else None,
    )


def _defined(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def measure_labels(
    client: str, targets: Chosen, predicted: Chosen, names: Sequence[str], scores: ModelScores
) -> MultiLabelEvaluation:
    """Return scores from the labels of a file and of a model, (n, n_labels) each.

    They are counted here: of a single label scikit-learn would take the absence for a label too.
    """
    both, found, right = ((part).sum(axis=0) for part in (targets & predicted, predicted, targets))
    present = np.flatnonzero(found + right)
    f1 = 2 * both / np.maximum(found + right, 1)
    precision, recall = both / np.maximum(found, 1), both / np.maximum(right, 1)
    return MultiLabelEvaluation(
        client=client,
        examples=len(targets),
        accuracy=scores.accuracy,
        loss=scores.loss,
        f1_micro=float(2 * both.sum() / max(1, (found + right).sum())),
        f1_macro=float(f1[present].mean()) if len(present) else 0.0,
        exact=float((targets == predicted).all(axis=1).mean()),
        labels=[
            LabelScore(names[k], int(right[k]), float(precision[k]), float(recall[k]), float(f1[k]))
            for k in present.tolist()
        ],
    )
