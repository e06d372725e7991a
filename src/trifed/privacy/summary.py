"""A client's private one-time summary, released by one Gaussian mechanism for all labels together.

Every projected feature vector is scaled to norm 1 before any statistic: x ← x/‖x‖ (0 stays 0). The norm of a base
model's features is neither public nor equal for two models, and their meaning is in the direction; a bound
computed from the data would itself be a release.

For every public label, present at the client or not, the release contains

    [n, Σ x, Σ x²],  (1 + 2·dim) numbers each, x² coordinate by coordinate.

Sensitivity. Adding or removing one example changes the numbers of its own label alone, by the vector [1, x, x²].
Its squared L2 norm is 1 + ‖x‖² + Σ_j x_j⁴ ≤ 1 + 1 + 1 = 3, because ‖x‖ ≤ 1 and hence x_j² ≤ 1, so that
Σ_j x_j⁴ ≤ Σ_j x_j² ≤ 1. All labels together are therefore one query of sensitivity √3: one Gaussian mechanism with
noise √3 z on every number, and additional labels cost nothing (parallel composition). An x on a coordinate axis
reaches the bound.

Everything else is post-processing of these numbers, without privacy loss.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from trifed.privacy.noise import Noise
from trifed.similarity import Summary
from trifed.similarity.checks import Floats, Ints

SENSITIVITY = math.sqrt(3)
"""L2 sensitivity of [n, Σ x, Σ x²] of all labels, for one example added or removed; derived above."""
FLOOR = 20
"""The smallest noised count for which a label gets a component; below it the moments would be noise."""
LEAST_VARIANCE = 1e-6


def unit(features: NDArray[np.floating]) -> Floats:
    """Scale each row of features (n, dim) to norm 1; rows that are 0 or not finite become 0."""
    x = np.asarray(features, np.float64)
    x = np.where(np.isfinite(x).all(1, keepdims=True), x, 0.0)
    largest = np.abs(x).max(1, initial=0.0, keepdims=True)
    x = np.divide(x, largest, out=np.zeros_like(x), where=largest > 0)  # avoids overflow of large numbers' squares
    norm = np.linalg.norm(x, axis=1, keepdims=True)
    return np.asarray(np.divide(x, norm, out=np.zeros_like(x), where=norm > 0), np.float64)


def statistics(features: NDArray[np.floating], labels: Ints, n_labels: int) -> Floats:
    """Return [n, Σ x, Σ x²] of every public label, (n_labels, 1 + 2·dim), of sensitivity √3."""
    x = unit(features)
    sums = np.zeros((n_labels, 1 + 2 * x.shape[1]))
    known = (labels >= 0) & (labels < n_labels)
    each = np.concatenate([np.ones((len(x), 1)), x, x**2], axis=1)
    np.add.at(sums, labels[known], each[known])
    return sums


def noised_summary(
    features: NDArray[np.floating], labels: Ints, n_labels: int, multiplier: float, noise: Noise
) -> Summary:
    """Return a private summary with one diagonal Gaussian per label.

    Counts are rounded and at least 0. A label has a component if its noised count is at least 20 and at least
    three standard deviations. The noise in a mean has the variance σ²/n², so a component's variances include
    σ²/n, and variance / n remains the squared error of the mean that comparisons of summaries assume. As
    features have norm 1, the total variance is 1 − ‖mean‖². `self_distance` is the expected distance between
    two such summaries of the same data, from noise and sampling.

    Args:
        features: (n, dim), in the public projection.
        labels: (n,).
        n_labels: Number of public labels.
        multiplier: z; the noise on each number has standard deviation √3 z.
        noise: Source of the noise.
    """
    sigma = SENSITIVITY * multiplier
    exact = statistics(features, labels, n_labels)
    return from_noised(exact + sigma * noise(exact.size).reshape(exact.shape), sigma)


def from_noised(noised: Floats, sigma: float) -> Summary:
    """Return the summary of noised [n, Σ x, Σ x²], (n_labels, 1 + 2·dim), with noise of deviation `sigma`."""
    dim = (noised.shape[1] - 1) // 2
    counts = np.maximum(0, np.rint(noised[:, 0])).astype(np.int64)
    own = np.flatnonzero(counts >= max(FLOOR, 3 * sigma))
    n = counts[own, None].astype(np.float64)
    means = noised[own, 1 : 1 + dim] / n
    own_noise = (sigma / n) ** 2  # of each coordinate of a mean
    raw = np.maximum(noised[own, 1 + dim :] / n - means**2 + own_noise, LEAST_VARIANCE)
    total = 1 - (means**2).sum(1, keepdims=True) + dim * own_noise
    within = raw / raw.sum(1, keepdims=True) * np.clip(total, dim * LEAST_VARIANCE, 1.0)
    variances = within + n * own_noise
    shares = counts[own] / max(1, counts[own].sum())
    return Summary(
        labels=own.astype(np.int64),
        counts=counts[own],
        means=means.astype(np.float32),
        variances=variances.astype(np.float32),
        self_distance=float(shares @ (2 * variances / n).sum(1)),
        class_labels=np.arange(len(noised), dtype=np.int64),
        class_counts=counts,
    )
