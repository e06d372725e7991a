"""Baselines of every result: what the frozen base model reaches without federated training.

Four baselines use frozen pooled features, and one ignores the inputs. Results call them controls:

- `probe-alone`: logistic regression on the client's own training data;
- `probe-all`: logistic regression on all clients' data together, which a federation may not do;
- `probe-all-prior`: `probe-all` with each client's own label shares in the place of the common ones;
- `class-means`: the nearest class mean of all clients' projected features (64 numbers a class, sent once);
- `majority`: the client's own most frequent label.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from trifed.similarity import project

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline

Features = NDArray[np.floating]
Labels = NDArray[np.int64]
Scores = NDArray[np.float64]
Part = tuple[Features, Labels]
STRENGTHS = (0.001, 0.01, 0.1, 1.0)
"""Values of scikit-learn's C on standardised features; the best one on validation data is used."""
SMOOTHING = 0.1
"""Added to the count of every label before label shares are computed."""


@dataclass(frozen=True)
class ClientFeatures:
    """Frozen features (n, d) and labels (n,) of one client's training, validation and test data."""

    train: Part
    valid: Part
    test: Part


def run_baselines(clients: Sequence[ClientFeatures], projection_seed: int) -> dict[str, list[Labels]]:
    """Predict each client's test data with every baseline, in the order of `clients`."""
    own_labels, valid, test = (
        [c.train[1] for c in clients],
        [c.valid for c in clients],
        [c.test[0] for c in clients],
    )
    plain, own_prior = _probe(_concatenated(clients), valid, test, own_labels)
    return {
        "probe-alone": [linear_probe(c.train, c.valid, c.test[0]) for c in clients],
        "probe-all": plain,
        "probe-all-prior": own_prior,
        "class-means": class_means(clients, projection_seed),
        "majority": [_majority(labels, len(x)) for labels, x in zip(own_labels, test, strict=True)],
    }


def linear_probe(train: Part, valid: Part, test: Features) -> Labels:
    """Predict labels (n_test,) by a logistic regression whose strength is chosen on validation data."""
    return _probe(train, [valid], [test], [train[1]])[0][0]


def _probe(
    train: Part, valid: Sequence[Part], test: Sequence[Features], own_labels: Sequence[Labels]
) -> tuple[list[Labels], list[Labels]]:
    """Predict each client's test data by one logistic regression.

    Args:
        train: Training data.
        valid: Validation data of each client.
        test: Test features of each client.
        own_labels: Training labels of each client.

    Returns:
        Each client's labels as predicted, and with the client's label shares in the place of those in `train`.
    """
    from sklearn.linear_model import LogisticRegression  # imported late: most runs have no use for it
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    features, labels = train
    if len(np.unique(labels)) < 2:
        same = [_majority(labels, len(x)) for x in test]
        return same, same
    with warnings.catch_warnings():
        # With few examples of many labels scikit-learn suspects that the labels are a quantity.
        warnings.filterwarnings("ignore", message="The number of unique classes", category=UserWarning)
        regressions = [LogisticRegression(C=strength, max_iter=5000) for strength in STRENGTHS]
        models = [make_pipeline(StandardScaler(), model).fit(features, labels) for model in regressions]
    common = _log_shares(labels, models[0].classes_)
    own = [_log_shares(y, models[0].classes_) - common for y in own_labels]
    return _predict(models, valid, test, [np.zeros_like(common)] * len(test)), _predict(models, valid, test, own)


def _predict(
    models: list[Pipeline], valid: Sequence[Part], test: Sequence[Features], shifts: Sequence[Scores]
) -> list[Labels]:
    """Predict by the strength that is most often right on all clients' validation data, 0.1 without any.

    Each client's shift (n_labels,) is added to log p(label | x).
    """
    right = np.zeros(len(STRENGTHS))
    for (features, labels), shift in zip(valid, shifts, strict=True):
        right += (_by_strength(models, features, shift) == labels).sum(1)
    place = int(right.argmax()) if any(len(labels) for _, labels in valid) else STRENGTHS.index(0.1)
    return [_by_strength(models, features, shift)[place] for features, shift in zip(test, shifts, strict=True)]


def _by_strength(models: list[Pipeline], features: Features, shift: Scores) -> Labels:
    """Predict labels with each strength, (n_strengths, n)."""
    if not len(features):
        return np.zeros((len(models), 0), np.int64)
    # log p up to a constant of all labels; of two labels scikit-learn returns the difference alone.
    scores = np.stack([model.decision_function(features) for model in models])
    if scores.ndim == 2:
        scores = np.stack([np.zeros_like(scores), scores], axis=-1)
    return np.asarray(models[0].classes_[(scores + shift).argmax(-1)], np.int64)


def _log_shares(labels: Labels, known: Labels) -> Scores:
    """Return the logarithm of each known label's smoothed share, (n_labels,)."""
    counts = (labels[:, None] == known[None]).sum(0) + SMOOTHING
    return np.asarray(np.log(counts / counts.sum()), np.float64)


def class_means(clients: Sequence[ClientFeatures], projection_seed: int) -> list[Labels]:
    """Predict each client's labels by the nearest of all clients' class means, in 64 projected dimensions."""
    features, labels = _concatenated(clients)
    if not len(labels):
        return [np.zeros(len(client.test[0]), np.int64) for client in clients]
    projected = project(features, dim=64, seed=projection_seed)
    known = np.unique(labels)
    means = np.stack([projected[labels == label].mean(0) for label in known])
    points = (project(client.test[0], dim=64, seed=projection_seed) for client in clients)
    distances = (((tested[:, None] - means[None]) ** 2).sum(-1) for tested in points)
    return [known[to_means.argmin(1)] for to_means in distances]


def _majority(labels: Labels, count: int) -> Labels:
    """Predict the most frequent label, 0 without any."""
    return np.full(count, np.bincount(labels, minlength=1).argmax(), np.int64)


def _concatenated(clients: Sequence[ClientFeatures]) -> Part:
    """Return all clients' training data together."""
    features, labels = zip(*(client.train for client in clients), strict=True)
    return np.concatenate(features), np.concatenate(labels)
