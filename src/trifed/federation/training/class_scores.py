"""Precision, recall and F1 of each class in a client's test data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from trifed.config.metrics import Labels


def class_scores(labels: Labels, predictions: Labels, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return precision, recall, F1 and test examples of each class that occurs, by its name.

    Precision is None for a class that is never predicted, and recall for one without examples.

    Args:
        labels: True labels, (n,).
        predictions: Predicted labels, (n,).
        names: All classes in order.
    """
    from sklearn.metrics import precision_recall_fscore_support

    present = np.union1d(labels, predictions)
    if not len(present):
        return {}
    values = precision_recall_fscore_support(labels, predictions, labels=present, zero_division=np.nan)
    return {
        names[int(label)]: {
            "precision": None if np.isnan(precision) else float(precision),
            "recall": None if np.isnan(recall) else float(recall),
            "f1": None if np.isnan(f1) else float(f1),
            "examples": int(examples),
        }
        for label, precision, recall, f1, examples in zip(present, *values, strict=True)
    }
