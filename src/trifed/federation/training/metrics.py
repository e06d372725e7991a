"""Metrics of a model's predictions, by the names that the settings `metrics` and `metric` take."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from trifed.common.errors import RunError
from trifed.config.metrics import REGISTERED, Labels, Metric, Probabilities, load_metrics_of_packages

Key = TypeVar("Key")

BINS = 15
"""Bins of the calibration error, of equal width."""

FUNCTION_ERRORS = (ArithmeticError, AttributeError, LookupError, NameError, TypeError, ValueError)
"""Errors of a user's function that are reported with its name."""


def metric_named(name: str) -> Metric | None:
    """Return a metric; None if it is not known here, as one that was registered in another process."""
    own = METRICS.get(name) or SCORES.get(name)
    if own is None:
        load_metrics_of_packages()
    return own or REGISTERED.get(name)


def better(name: str, value: float | None, than: float | None) -> bool:
    """Return whether a value of a metric is better than another; None and NaN are worse than any number."""
    metric = metric_named(name)
    if value is None or math.isnan(value):
        return False
    if than is None or math.isnan(than):
        return True
    return value < than if metric is not None and metric.lower_is_better else value > than


def best_of(name: str, values: Mapping[Key, float | None]) -> Key | None:
    """Return the key with the best value of a metric, the first of equal ones; None if no value is a number."""
    best: Key | None = None
    for key, value in values.items():
        if better(name, value, None if best is None else values[best]):
            best = key
    return best


def spread_of(name: str, parts: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """Return mean, worst and best of a metric over the clients with a value, of scores that were logged.

    Worst and best are None for a metric that is not known here, because its direction is not.
    """
    values = [part[name] for part in parts if part.get(name) is not None and np.isfinite(part[name])]
    metric = metric_named(name)
    if not values:
        return {"mean": None, "worst": None, "best": None}
    mean, low, high = float(np.mean(values)), float(min(values)), float(max(values))
    if metric is None:
        return {"mean": mean, "worst": None, "best": None}
    worst, best = (high, low) if metric.lower_is_better else (low, high)
    return {"mean": mean, "worst": worst, "best": best}


def compute_metrics(
    names: Sequence[str], labels: Labels, predictions: Labels, probabilities: NDArray[np.float32]
) -> dict[str, float]:
    """Return the metrics of n examples by name; NaN where one is not defined, as without any example.

    Args:
        names: Names in `METRICS`, or of registered metrics.
        labels: True labels, (n,).
        predictions: Predicted labels, (n,).
        probabilities: Predicted probabilities, (n, n_labels).

    Raises:
        RunError: A registered function failed, or returned no number.
    """
    if not len(labels) or not np.isfinite(probabilities).all():  # as after training that diverged
        return dict.fromkeys(names, np.nan)
    exact = probabilities.astype(np.float64)
    exact /= exact.sum(axis=1, keepdims=True)  # float32 rows do not add up to 1 in the last digits
    return {name: _value(name, labels, predictions, exact) for name in names}


def _value(name: str, labels: Labels, predictions: Labels, probabilities: Probabilities) -> float:
    metric = metric_named(name)
    if metric is None or metric.compute is None:
        raise RunError(f"metrics: '{name}' is not known here; register it with trifed.register_metric first")
    try:
        return float(metric.compute(labels, predictions, probabilities))
    except FUNCTION_ERRORS as error:
        if name in METRICS:
            raise
        raise RunError(
            f"metric '{name}': its function failed ({type(error).__name__}: {error}); it gets true labels "
            f"{labels.shape}, predicted labels {predictions.shape} and probabilities {probabilities.shape}, and "
            "returns a number"
        ) from error


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


def entity_f1(counts: NDArray[np.int64]) -> float:
    """Return F1 of whole entities, 2 right / (true + predicted), in [0, 1]; NaN without any.

    Args:
        counts: Numbers of true, predicted and rightly predicted entities of each example, (n, 3).
    """
    true, predicted, right = counts.sum(axis=0).tolist() if len(counts) else (0, 0, 0)
    return 2 * right / (true + predicted) if true + predicted else np.nan


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

SCORES: dict[str, Metric] = {
    "accuracy": Metric(None),
    "loss": Metric(None, lower_is_better=True, share=False),
    "perplexity": Metric(None, lower_is_better=True, share=False),
    "exact_match": Metric(None),
    "rouge_l": Metric(None),
    "f1_entities": Metric(None),
}
"""Metrics that are not computed from labels and probabilities."""

LOGGED = ("loss", "accuracy", "examples")
"""Names of the values that the scores of every model have, whatever metrics are set."""


def further_metrics(parts: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the names of the metrics that were logged beside accuracy and loss, those of this package first."""
    logged = dict.fromkeys(name for part in parts for name in part if name not in LOGGED)
    own = [name for name in (*METRICS, *SCORES) if name in logged]
    return [*own, *(name for name in logged if name not in own)]
