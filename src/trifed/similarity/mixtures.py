"""From a client's features to what it releases about them: diagonal Gaussian mixtures, one a class.

CE-LoRA (arXiv 2503.23869) compares clients by Gaussian mixtures of their frozen features. Here the features
are first projected by a public matrix and then clipped to norm 1 — in this order, for a Gaussian projection
stretches some vectors, and clipping before it bounds nothing that is released. With features in the unit
ball every mean lies in it, and every squared distance between components is at most 4.

The floor stops exact copies of examples from being released. It is no privacy guarantee.
"""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from trifed.similarity.checks import Floats, Ints, SimilarityError, as_floats, require_at_least
from trifed.similarity.summary import MERGED, Summary
from trifed.similarity.transport import summary_distance

__all__ = ["Summary", "noise_floor", "project", "summarise"]

REG_COVAR = 1e-4
"""Added to variances while fitting, not to released ones; in the unit ball of R^64 they are about 1/64."""

MAX_ITER = 300


def project(features: npt.ArrayLike, dim: int = 64, *, seed: int) -> Floats:
    """Project features to `dim` dimensions, then clip each row to norm 1.

    - `features`: (n, d), one row an example.
    - `seed`: public; clients with one seed use one matrix (NumPy's frozen legacy stream, equal on every
      version).

    Returns (n, dim): $z = x G$, $G_{ij} ∼ N(0, 1/dim)$, so that $E‖z‖² = ‖x‖²$; then $z / max(1, ‖z‖)$.

    Raises `SimilarityError` for a wrong shape, NaN or infinity, or dim < 1.
    """
    x = as_floats("features", features, 2)
    require_at_least("dim", dim, 1)
    stream = np.random.RandomState(np.random.MT19937(np.random.SeedSequence(seed)))
    projected = x @ (stream.standard_normal((x.shape[1], dim)) / np.sqrt(dim))
    clipped: Floats = projected / np.maximum(1.0, np.linalg.norm(projected, axis=1, keepdims=True))
    return clipped


def summarise(
    projected: npt.ArrayLike,
    labels: npt.ArrayLike,
    floor: int = 20,
    max_components: int = 3,
    *,
    seed: int,
    match_labels: bool = False,
) -> Summary:
    """Summarise a client's examples; nothing but counts is released about fewer than `floor` of them.

    - `projected`: (n, dim), from `project`.
    - `labels`: (n,) integers ≥ 0.
    - `seed`: starts the mixtures and splits the halves.
    - `match_labels`: as the server will use it in `pairwise_distances`; it changes the noise floor.

    What is released:

    1. The number of examples of every class, always.
    2. n < floor: nothing else (m = 0, noise floor 0).
    3. A class of at least `floor` examples: k ≤ min(max_components, n_class // floor) components. Each
       example belongs to its most probable component; if a component is left with fewer than `floor`, or
       the fit does not converge, k - 1 is tried. A component's count, mean and variance are those of its
       own examples, exactly.
    4. Classes under `floor`: pooled. At least `floor` examples together: one component with label -1.
       Fewer: no moments at all, they neither form a component nor enter another one.
    5. With moments, the noise floor: one number computed from all examples (see `noise_floor`).

    Raises `SimilarityError` for wrong shapes, NaN or infinity, negative labels, floor < 1 or max_components
    < 1.
    """
    x, y = _examples(projected, labels, floor, max_components)
    summary = _summarise(x, y, floor, max_components, seed)
    if not len(summary.labels):
        return summary
    distance = noise_floor(x, y, floor, max_components, seed=seed, match_labels=match_labels)
    return replace(summary, self_distance=distance)


def noise_floor(
    projected: npt.ArrayLike,
    labels: npt.ArrayLike,
    floor: int = 20,
    max_components: int = 3,
    *,
    seed: int,
    match_labels: bool = False,
) -> float:
    """$D_{ii}$: the distance between the summaries of two random halves of one client's examples.

    Arguments, shapes and errors as in `summarise`. The halves are fitted with half the floor, so that they
    get about as many components as the whole; they never leave the client, only this number does. It is in
    the units of `pairwise_distances` (squared feature units). Halves are noisier than the whole (about
    twice), so subtracting it errs towards calling clients alike. 0 where n < max(2, floor): nothing to
    compare.
    """
    x, y = _examples(projected, labels, floor, max_components)
    if len(x) < max(2, floor):
        return 0.0
    order = np.random.default_rng([seed, 1]).permutation(len(x))
    first, second = (
        _summarise(x[half], y[half], max(1, floor // 2), max_components, seed)
        for half in (order[: len(x) // 2], order[len(x) // 2 :])
    )
    return summary_distance(first, second, match_labels=match_labels)


def _examples(
    projected: npt.ArrayLike, labels: npt.ArrayLike, floor: int, max_components: int
) -> tuple[Floats, Ints]:
    """Examples (n, dim) and labels (n,), checked."""
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


def _summarise(x: Floats, y: Ints, floor: int, max_components: int, seed: int) -> Summary:
    """`summarise` without the noise floor."""
    class_labels, class_counts = np.unique(y, return_counts=True)
    parts: list[tuple[int, Floats]] = []
    for label in class_labels[class_counts >= floor].tolist():
        state = int(np.random.SeedSequence([seed, label]).generate_state(1)[0])
        parts += [(label, part) for part in _partition(x[y == label], floor, max_components, state)]
    rest = x[np.isin(y, class_labels[class_counts < floor])]
    if len(rest) >= floor:
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
    """The examples (n, dim) of one class by component: as many as the floor allows, none under it."""
    for k in range(min(max_components, len(x) // floor), 1, -1):
        parts = _fit(x, k, seed)
        if parts and min(map(len, parts)) >= floor:
            return parts
    return [x]


def _fit(x: Floats, k: int, seed: int) -> list[Floats]:
    """The examples by most probable component of a k-component diagonal mixture; none if the fit fails.

    No convergence, or fewer than k distinct examples: scikit-learn says both by `ConvergenceWarning`, and
    here it is an answer (try fewer).
    """
    from sklearn.exceptions import ConvergenceWarning  # late, as POT is elsewhere: for a quick --help
    from sklearn.mixture import GaussianMixture

    mixture = GaussianMixture(k, covariance_type="diag", reg_covar=REG_COVAR, max_iter=MAX_ITER, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        try:
            chosen = mixture.fit_predict(x)
        except ConvergenceWarning:
            return []
    return [x[chosen == component] for component in range(k)]
