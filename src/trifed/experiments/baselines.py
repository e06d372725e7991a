"""Cheap and humbling: what the frozen base alone can do with a client's data. They stand beside every result.

Four controls on frozen pooled features, and one that looks at nothing:

- `probe-alone`: logistic regression on the client's own training data;
- `probe-all`: the same on everybody's data together, which no federation may do;
- `probe-all-prior`: that one with each client's own label shares in place of everybody's;
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
Scores = NDArray[np.float64]
STRENGTHS = (0.001, 0.01, 0.1, 1.0)
"""Values of scikit-learn's C on standardised features; the best on validation data is taken."""


@dataclass(frozen=True)
class ClientFeatures:
    """Frozen features (n, d) and labels (n,) of one client's three parts."""

    train: tuple[Features, Labels]
    valid: tuple[Features, Labels]
    test: tuple[Features, Labels]


SMOOTHING = 0.1
"""Examples added to those of every label in a client's label shares."""


@dataclass(frozen=True)
class _Probes:
    """Logistic regressions of all `STRENGTHS` on standardised features."""

    scaler: StandardScaler
    models: list[LogisticRegression]

    @property
    def labels(self) -> Labels:
        """The labels that the models know, (n_labels,)."""
        return np.asarray(self.models[0].classes_, np.int64)

    def answers(self, features: Features, shift: Scores) -> NDArray[np.int64]:
        """Predicted labels by strength, (n_strengths, n), with `shift` (n_labels,) added to log p(label | x)."""
        if not len(features):
            return np.zeros((len(self.models), 0), np.int64)
        # log p up to what is equal for all labels; of two labels scikit-learn gives the second's lead alone.
        scores = np.stack([model.decision_function(self.scaler.transform(features)) for model in self.models])
        if len(self.labels) == 2:
            scores = np.stack([np.zeros_like(scores), scores], axis=-1)
        predicted: NDArray[np.int64] = self.labels[(scores + shift).argmax(-1)]
        return predicted


def run_baselines(clients: Sequence[ClientFeatures], projection_seed: int) -> dict[str, list[Labels]]:
    """Each control's predicted labels for each client's test data, in the order of `clients`."""
    plain, own_prior = _probe_together(clients)
    return {
        "probe-alone": [linear_probe(c.train, c.valid, c.test[0]) for c in clients],
        "probe-all": plain,
        "probe-all-prior": own_prior,
        "class-means": class_means(clients, projection_seed),
        "majority": [_majority(c.train[1], len(c.test[0])) for c in clients],
    }


def linear_probe(train: tuple[Features, Labels], valid: tuple[Features, Labels], test: Features) -> Labels:
    """Logistic regression, its strength chosen on validation data: predicted labels (n_test,)."""
    features, labels = train
    if not len(test) or len(np.unique(labels)) < 2:
        return _majority(labels, len(test))
    probes = _fit(features, labels)
    return _chosen(probes, [valid], [test], [np.zeros(len(probes.labels))])[0]


def _fit(features: Features, labels: Labels) -> _Probes:
    scaler = StandardScaler().fit(features)
    with warnings.catch_warnings():
        # Few examples of many labels: scikit-learn asks whether the labels are a quantity. They are not.
        warnings.filterwarnings("ignore", message="The number of unique classes", category=UserWarning)
        models = [
            LogisticRegression(C=strength, max_iter=5000).fit(scaler.transform(features), labels)
            for strength in STRENGTHS
        ]
    return _Probes(scaler, models)


def _chosen(
    probes: _Probes, valid: Sequence[tuple[Features, Labels]], test: Sequence[Features], shifts: Sequence[Scores]
) -> list[Labels]:
    """Each client's predictions by the strength that is most often right on all clients' validation data."""
    right = np.zeros(len(STRENGTHS))
    for (features, labels), shift in zip(valid, shifts, strict=True):
        right += (probes.answers(features, shift) == labels).sum(1)
    place = int(right.argmax()) if any(len(labels) for _, labels in valid) else STRENGTHS.index(0.1)
    return [probes.answers(features, shift)[place] for features, shift in zip(test, shifts, strict=True)]


def _probe_together(clients: Sequence[ClientFeatures]) -> tuple[list[Labels], list[Labels]]:
    """One probe on everybody's data: as it is, and with each client's own prior."""
    features, labels = _together([c.train for c in clients])
    if len(np.unique(labels)) < 2:
        same = [_majority(labels, len(c.test[0])) for c in clients]
        return same, same
    probes = _fit(features, labels)
    valid, test = [c.valid for c in clients], [c.test[0] for c in clients]
    everybody = _log_shares(labels, probes.labels)
    own = [_log_shares(c.train[1], probes.labels) - everybody for c in clients]
    plain = [np.zeros_like(everybody)] * len(clients)
    return _chosen(probes, valid, test, plain), _chosen(probes, valid, test, own)


def _log_shares(labels: Labels, known: Labels) -> Scores:
    """log of each known label's share, (n_labels,), smoothed."""
    counts = (labels[:, None] == known[None]).sum(0) + SMOOTHING
    shares: Scores = np.log(counts / counts.sum())
    return shares


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
