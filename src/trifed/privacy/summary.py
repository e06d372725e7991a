"""A client's one-time summary, released once by one Gaussian mechanism for all labels together.

Every projected feature is brought to norm 1 before any statistic: x ← x/‖x‖ (0 stays 0). The norm of a base
model's features is neither known in public nor the same for two models, and their direction is what they mean; a
bound taken from the data would itself be a release.

Released are, label by label and for every public label, whether the client has it or not,

    [n, Σ x, Σ x²],  (1 + 2·dim) numbers each, x² coordinate by coordinate.

Sensitivity. Adding or removing one example changes the numbers of its own label alone, by the vector [1, x, x²].
Its squared L2 norm is 1 + ‖x‖² + Σ_j x_j⁴ ≤ 1 + 1 + 1 = 3, because ‖x‖ ≤ 1 and hence x_j² ≤ 1, so that
Σ_j x_j⁴ ≤ Σ_j x_j² ≤ 1. All labels together are therefore one query of sensitivity √3: one Gaussian mechanism with
noise √3 z on every number, and the labels cost nothing beside each other (parallel composition). The bound is
reached by x on a coordinate axis.

All else is post-processing of these numbers, and costs nothing.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from trifed.privacy.noise import Noise
from trifed.similarity import Summary
from trifed.similarity.checks import Floats, Ints

SENSITIVITY = math.sqrt(3)
"""L2, of [n, Σ x, Σ x²] for all labels, one example added or removed; see the module."""
FLOOR = 20
"""Noised examples under which a label's moments are not told: they would be noise."""
LEAST_VARIANCE = 1e-6


def unit(features: NDArray[np.floating]) -> Floats:
    """Features (n, dim), each brought to norm 1 by itself; 0, and what is not finite, becomes 0."""
    x = np.asarray(features, np.float64)
    x = np.where(np.isfinite(x).all(1, keepdims=True), x, 0.0)
    largest = np.abs(x).max(1, initial=0.0, keepdims=True)
    x = np.divide(x, largest, out=np.zeros_like(x), where=largest > 0)  # else squares of large numbers overflow
    norm = np.linalg.norm(x, axis=1, keepdims=True)
    found: Floats = np.divide(x, norm, out=np.zeros_like(x), where=norm > 0)
    return found


def statistics(features: NDArray[np.floating], labels: Ints, n_labels: int) -> Floats:
    """[n, Σ x, Σ x²] of every label, (n_labels, 1 + 2·dim), of sensitivity √3; other labels are left out."""
    x = unit(features)
    sums = np.zeros((n_labels, 1 + 2 * x.shape[1]))
    known = (labels >= 0) & (labels < n_labels)
    each = np.concatenate([np.ones((len(x), 1)), x, x**2], axis=1)
    np.add.at(sums, labels[known], each[known])
    return sums


def noised_summary(
    features: NDArray[np.floating], labels: Ints, n_labels: int, multiplier: float, noise: Noise
) -> Summary:
    """The summary, one diagonal Gaussian a label, from noised numbers alone.

    - `features`: (n, dim), in the public projection. `labels`: (n,). `n_labels`: how many there are in public.
    - `multiplier`: z; the noise on each number has standard deviation √3 z.

    Counts are rounded and at least 0. A label has a component where its noised count is at least 20 and three
    standard deviations. A component's variances hold σ²/n beside the data's own: the noise in a mean has the
    variance σ²/n², so that variance / n is again how far the mean may lie from the truth, which is what
    comparisons of summaries reckon with. As features have norm 1, the total variance is 1 − ‖mean‖².
    `self_distance` is what noise and sampling bring between two such summaries of the same data, in expectation.
    """
    sigma = SENSITIVITY * multiplier
    exact = statistics(features, labels, n_labels)
    told = exact + sigma * noise(exact.size).reshape(exact.shape)
    return from_noised(told, sigma)


def from_noised(told: Floats, sigma: float) -> Summary:
    """The summary that noised [n, Σ x, Σ x²], (n_labels, 1 + 2·dim), give; `sigma`: of the noise on each."""
    dim = (told.shape[1] - 1) // 2
    counts = np.maximum(0, np.rint(told[:, 0])).astype(np.int64)
    own = np.flatnonzero(counts >= max(FLOOR, 3 * sigma))
    n = counts[own, None].astype(np.float64)
    means = told[own, 1 : 1 + dim] / n
    own_noise = (sigma / n) ** 2  # of each coordinate of a mean
    raw = np.maximum(told[own, 1 + dim :] / n - means**2 + own_noise, LEAST_VARIANCE)
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
        class_labels=np.arange(len(told), dtype=np.int64),
        class_counts=counts,
    )
