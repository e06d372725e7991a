"""Summaries of a client's features: diagonal Gaussian mixtures, one per class.

CE-LoRA (arXiv 2503.23869) compares clients by Gaussian mixtures of their frozen features. Here the features
are first projected by a public matrix and then clipped to norm 1. The order matters: a Gaussian projection
stretches some vectors, so clipping before it would not bound the released values. With features in the unit
ball every mean lies in it, and every squared distance between components is at most 4.

The floor prevents the release of exact copies of examples. It is no privacy guarantee.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from trifed.similarity.checks import Floats, Ints, SimilarityError, as_floats, require_at_least
from trifed.similarity.summary import MERGED, MOST_WORK, Summary
from trifed.similarity.transport import summary_distance

REG_COVAR = 1e-4
"""Added to variances during fitting, not to released ones, which are about 1/64 in the unit ball of R^64."""

MAX_ITER = 300


def project(features: npt.ArrayLike, dim: int = 64, *, seed: int) -> Floats:
    """Project features to `dim` dimensions, then clip each row to norm 1.

    Args:
        features: (n, d), one row per example.
        dim: Dimensions after the projection, at least 1.
        seed: Public seed; clients with the same seed use the same matrix (from NumPy's frozen legacy stream,
            equal on every version).

    Returns:
        $z / max(1, ‖z‖)$, (n, dim), with $z = x G$ and $G_{ij} ∼ N(0, 1/dim)$, so that $E‖z‖² = ‖x‖²$.

    Raises:
        SimilarityError: A wrong shape, NaN or infinity, or dim < 1.
    """
    x = as_floats("features", features, 2)
    require_at_least("dim", dim, 1)
    stream = np.random.RandomState(np.random.MT19937(np.random.SeedSequence(seed)))
    projected = x @ (stream.standard_normal((x.shape[1], dim)) / np.sqrt(dim))
    return np.asarray(projected / np.maximum(1.0, np.linalg.norm(projected, axis=1, keepdims=True)), np.float64)


def summarise(
    projected: npt.ArrayLike,
    labels: npt.ArrayLike,
    floor: int = 20,
    max_components: int = 3,
    *,
    seed: int,
    match_labels: bool = False,
    smallest_class: int | None = None,
    with_noise_floor: bool = True,
) -> Summary:
    """Summarise a client's examples; groups of fewer than `floor` examples release only their counts.

    The summary contains:

    1. Always, the number of examples of every class.
    2. For n < floor, nothing else (m = 0, noise floor 0).
    3. For a class of at least `floor` examples, k ≤ min(max_components, n_class // floor) components. Each
       example belongs to its most probable component; if a component has fewer than `floor` examples, or
       the fit does not converge, k - 1 is tried. A component's count, mean and variance are exactly those of
       its own examples.
    4. For all smaller classes together, one component with label -1 if they have at least `floor` examples.
       Otherwise their examples enter no component.
    5. With any component, the noise floor: one number computed from all examples (see `noise_floor`).

    Args:
        projected: (n, dim), from `project`.
        labels: (n,) integers ≥ 0.
        floor: The fewest examples behind a component, at least 1.
        max_components: The most components of a class, at least 1.
        seed: Seed of the mixtures' initialisation and of the halves of the noise floor.
        match_labels: The server's choice in `pairwise_distances`; it changes the noise floor.
        smallest_class: The fewest examples of a class that has components. Smaller classes are then not merged.
            Unset: `floor`, and they are.
        with_noise_floor: Compute the noise floor; without it, it is 0.

    Raises:
        SimilarityError: Wrong shapes, NaN or infinity, negative labels, floor < 1 or max_components < 1.
    """
    x, y = _examples(projected, labels, floor, max_components)
    summary = _summarise(x, y, floor, max_components, seed, smallest_class)
    if not len(summary.labels) or not with_noise_floor:
        return summary
    distance = noise_floor(
        x, y, floor, max_components, seed=seed, match_labels=match_labels, smallest_class=smallest_class
    )
    return replace(summary, self_distance=0.0 if math.isnan(distance) else distance)


def noise_floor(
    projected: npt.ArrayLike,
    labels: npt.ArrayLike,
    floor: int = 20,
    max_components: int = 3,
    *,
    seed: int,
    match_labels: bool = False,
    smallest_class: int | None = None,
) -> float:
    """Return $D_{ii}$, the distance between the summaries of two random halves of one client's examples.

    Arguments and errors are those of `summarise`. The halves are fitted with half the floor, so that they have
    about as many components as all examples together. They never leave the client; only this number does.
    Halves are about twice as noisy as all examples, so subtracting it biases towards similar clients.

    Returns:
        The distance in squared feature units, as in `pairwise_distances`; 0 if n < max(2, floor).
    """
    x, y = _examples(projected, labels, floor, max_components)
    if len(x) < max(2, floor):
        return 0.0
    order = np.random.default_rng([seed, 1]).permutation(len(x))
    halves = (order[: len(x) // 2], order[len(x) // 2 :])
    first, second = (
        _summarise(x[half], y[half], max(1, floor // 2), max_components, seed, smallest_class) for half in halves
    )
    return summary_distance(first, second, match_labels)


def _examples(
    projected: npt.ArrayLike, labels: npt.ArrayLike, floor: int, max_components: int
) -> tuple[Floats, Ints]:
    """Check and convert examples (n, dim) and labels (n,)."""
    x, y = as_floats("projected", projected, 2), np.asarray(labels)
    if y.shape != x.shape[:1] or (len(y) and y.dtype.kind not in "iu"):
        raise SimilarityError(f"labels: got {y.dtype} {y.shape}, expected integers of shape {x.shape[:1]}")
    if x.shape[1] < 1:
        raise SimilarityError("projected: got dimension 0, expected at least 1")
    if (y < 0).any():
        raise SimilarityError(f"labels: got {y.min()}, expected at least 0 ({MERGED} stands for merged classes)")
    require_at_least("floor", floor, 1)
    require_at_least("max_components", max_components, 1)
    return x, y.astype(np.int64)


def _summarise(
    x: Floats, y: Ints, floor: int, max_components: int, seed: int, smallest_class: int | None = None
) -> Summary:
    """Summarise checked examples (n, dim) and labels (n,), with a noise floor of 0."""
    class_labels, class_counts = np.unique(y, return_counts=True)
    parts: list[tuple[int, Floats]] = []
    large = class_labels[class_counts >= (smallest_class or floor)].tolist()
    most = min(max_components, max(1, math.isqrt(MOST_WORK // (len(large) + 1))))  # what a server accepts
    for label in large:
        state = int(np.random.SeedSequence([seed, label]).generate_state(1)[0])
        parts += [(label, part) for part in _partition(x[y == label], floor, most, state)]
    rest = x[np.isin(y, class_labels[class_counts < floor])]
    if len(rest) >= floor and smallest_class is None:
        parts.append((MERGED, rest))
    shape = (len(parts), x.shape[1])
    return Summary(
        labels=np.array([label for label, _ in parts], dtype=np.int64),
        counts=np.array([len(part) for _, part in parts], dtype=np.int64),
        means=np.array([part.mean(axis=0) for _, part in parts], dtype=np.float32).reshape(shape),
        variances=np.array([part.var(axis=0) for _, part in parts], dtype=np.float32).reshape(shape),
        self_distance=0.0,
        class_labels=class_labels.astype(np.int64),
        class_counts=class_counts.astype(np.int64),
    )


def _partition(x: Floats, floor: int, max_components: int, seed: int) -> list[Floats]:
    """Split one class's examples (n, dim) into as many components of at least `floor` examples as possible."""
    for k in range(min(max_components, len(x) // floor), 1, -1):
        parts = _fit(x, k, seed)
        if parts and min(map(len, parts)) >= floor:
            return parts
    return [x]


def _fit(x: Floats, k: int, seed: int) -> list[Floats]:
    """Split examples by most probable component of a k-component diagonal mixture.

    Returns:
        The k parts, or an empty list if scikit-learn reports no convergence or fewer than k distinct examples
        (both by `ConvergenceWarning`).
    """
    from sklearn.exceptions import ConvergenceWarning  # imported late to keep --help fast
    from sklearn.mixture import GaussianMixture

    mixture = GaussianMixture(k, covariance_type="diag", reg_covar=REG_COVAR, max_iter=MAX_ITER, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        try:
            chosen = mixture.fit_predict(x)
        except ConvergenceWarning:
            return []
    return [x[chosen == component] for component in range(k)]
