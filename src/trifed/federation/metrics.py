"""Metrics of a classifier's predictions and probabilities, by the names that the setting `metrics` takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Labels = NDArray[np.int64]
Probabilities = NDArray[np.float64]

BINS = 15
"""Bins of the calibration error, of equal width."""


@dataclass(frozen=True)
class Metric:
    """One metric.

    Attributes:
        compute: True labels (n,), predicted labels (n,) and probabilities (n, n_labels) → the value.
        lower_is_better: True for losses and errors.
        share: True if the value lies in [0, 1] and is shown as a percentage.
    """

    compute: Callable[[Labels, Labels, Probabilities], float]
    lower_is_better: bool = False
    share: bool = True


def compute_metrics(
    names: Sequence[str], labels: Labels, predictions: Labels, probabilities: NDArray[np.float32]
) -> dict[str, float]:
    """Return the metrics of n examples by name; NaN where one is not defined, as without any example.

    Args:
        names: Names in `METRICS`.
        labels: True labels, (n,).
        predictions: Predicted labels, (n,).
        probabilities: Predicted probabilities, (n, n_labels).
    """
    if not len(labels) or not np.isfinite(probabilities).all():  # as after training that diverged
        return dict.fromkeys(names, np.nan)
    exact = probabilities.astype(np.float64)
    exact /= exact.sum(axis=1, keepdims=True)  # float32 rows do not add up to 1 in the last digits
    return {name: float(METRICS[name].compute(labels, predictions, exact)) for name in names}


def _f1(average: str) -> Callable[[Labels, Labels, Probabilities], float]:
    def compute(labels: Labels, predictions: Labels, _: Probabilities) -> float:
        from sklearn.metrics import f1_score

        return float(f1_score(labels, predictions, average=average, zero_division=0))

    return compute


def _balanced_accuracy(labels: Labels, predictions: Labels, _: Probabilities) -> float:
    from sklearn.metrics import recall_score

    return float(recall_score(labels, predictions, labels=np.unique(labels), average="macro", zero_division=0))


def _ranked(name: str) -> Callable[[Labels, Labels, Probabilities], float]:
    """Return the mean over labels, each against all others, of a scikit-learn score of one column."""

    def compute(labels: Labels, _: Labels, probabilities: Probabilities) -> float:
        from sklearn import metrics

        present = [label for label in np.unique(labels) if (labels != label).any()]
        columns = [getattr(metrics, name)(labels == label, probabilities[:, label]) for label in present]
        return float(np.mean(columns)) if columns else np.nan

    return compute


def _log_loss(labels: Labels, _: Labels, probabilities: Probabilities) -> float:
    from sklearn.metrics import log_loss

    if probabilities.shape[1] == 1:
        return 0.0
    return float(log_loss(labels, probabilities, labels=np.arange(probabilities.shape[1])))


def _brier(labels: Labels, _: Labels, probabilities: Probabilities) -> float:
    """Return ½ Σ_y (p_y − [y is the label])², in [0, 1]: of two labels, the usual Brier score (1950)."""
    right = np.eye(probabilities.shape[1])[labels]
    return float(((probabilities - right) ** 2).sum(axis=1).mean() / 2)


def _calibration_error(labels: Labels, predictions: Labels, probabilities: Probabilities) -> float:
    """Return Σ_b n_b/n |accuracy_b − confidence_b| over `BINS` bins; Guo et al., ICML 2017, arXiv 1706.04599."""
    confidence, right = probabilities.max(axis=1), predictions == labels
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    gaps = [abs((right - confidence)[bins == number].sum()) for number in range(BINS)]
    return float(np.sum(gaps) / len(labels))


METRICS: dict[str, Metric] = {
    "f1_macro": Metric(_f1("macro")),
    "f1_weighted": Metric(_f1("weighted")),
    "balanced_accuracy": Metric(_balanced_accuracy),
    "auroc": Metric(_ranked("roc_auc_score")),
    "average_precision": Metric(_ranked("average_precision_score")),
    "log_loss": Metric(_log_loss, lower_is_better=True, share=False),
    "brier": Metric(_brier, lower_is_better=True, share=False),
    "calibration_error": Metric(_calibration_error, lower_is_better=True),
}
