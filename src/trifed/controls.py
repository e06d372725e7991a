"""Cheap and humbling: what the frozen base alone can do with a client's data. They stand beside every result.

Three controls on frozen pooled features, and one that looks at nothing:

- `probe-alone`: logistic regression on the client's own training data;
- `probe-all`: the same on everybody's data together, which no federation may do;
- `class-means`: the nearest class mean of all clients' projected features (64 numbers a class, sent once);
- `majority`: the client's own most frequent label.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from trifed.similarity import project

Features = NDArray[np.floating]
Labels = NDArray[np.int64]
STRENGTHS = (0.001, 0.01, 0.1, 1.0)
"""Values of scikit-learn's C on standardised features; the best on validation data is taken."""


@dataclass(frozen=True)
class ClientFeatures:
    """Frozen features (n, d) and labels (n,) of one client's three parts."""

    train: tuple[Features, Labels]
    valid: tuple[Features, Labels]
    test: tuple[Features, Labels]


def run_controls(clients: Sequence[ClientFeatures], projection_seed: int) -> dict[str, list[Labels]]:
    """Each control's predicted labels for each client's test data, in the order of `clients`."""
    return {
        "probe-alone": [linear_probe(c.train, c.valid, c.test[0]) for c in clients],
        "probe-all": _probe_together(clients),
        "class-means": class_means(clients, projection_seed),
        "majority": [_majority(c.train[1], len(c.test[0])) for c in clients],
    }


def linear_probe(train: tuple[Features, Labels], valid: tuple[Features, Labels], test: Features) -> Labels:
    """Logistic regression, its strength chosen on validation data: predicted labels (n_test,)."""
    features, labels = train
    if not len(test) or len(np.unique(labels)) < 2:
        return _majority(labels, len(test))
    scaler = StandardScaler().fit(features)
    with warnings.catch_warnings():
        # Few examples of many labels: scikit-learn asks whether the labels are a quantity. They are not.
        warnings.filterwarnings("ignore", message="The number of unique classes", category=UserWarning)
        fitted = [
            LogisticRegression(C=strength, max_iter=5000).fit(scaler.transform(features), labels)
            for strength in STRENGTHS
        ]
    if len(valid[0]):
        best = max(fitted, key=lambda model: model.score(scaler.transform(valid[0]), valid[1]))
    else:
        best = fitted[STRENGTHS.index(0.1)]
    return np.asarray(best.predict(scaler.transform(test)), np.int64)


def _probe_together(clients: Sequence[ClientFeatures]) -> list[Labels]:
    """One probe on everybody's data, applied to each client's test data."""
    train = _together([c.train for c in clients])
    valid = _together([c.valid for c in clients])
    predicted = linear_probe(train, valid, np.concatenate([c.test[0] for c in clients]))
    return list(np.split(predicted, np.cumsum([len(c.test[0]) for c in clients])[:-1]))


def class_means(clients: Sequence[ClientFeatures], projection_seed: int) -> list[Labels]:
    """Nearest of all clients' class means in 64 projected dimensions: predicted labels a client."""
    features, labels = _together([c.train for c in clients])
    if not len(labels):
        return [np.zeros(len(client.test[0]), np.int64) for client in clients]
    projected = project(features, dim=64, seed=projection_seed)
    known = np.unique(labels)
    means = np.stack([projected[labels == label].mean(0) for label in known])
    predictions = []
    for client in clients:
        if not len(client.test[0]):
            predictions.append(np.zeros(0, np.int64))
            continue
        points = project(client.test[0], dim=64, seed=projection_seed)
        distances = ((points[:, None] - means[None]) ** 2).sum(-1)
        predictions.append(known[distances.argmin(1)])
    return predictions


def _majority(labels: Labels, count: int) -> Labels:
    if not len(labels):
        return np.zeros(count, np.int64)
    return np.full(count, np.bincount(labels).argmax(), np.int64)


def _together(parts: Sequence[tuple[Features, Labels]]) -> tuple[Features, Labels]:
    return np.concatenate([features for features, _ in parts]), np.concatenate([labels for _, labels in parts])
