"""Distances between clients' data by optimal transport over Gaussian mixtures, and similarities from them.

The distances have three levels, each the cost of the next:

- component to component: $W_2²$ between diagonal Gaussians, $‖μ-μ'‖² + ‖σ-σ'‖²$;
- class to class: $MW_2²$, exact transport between the components of two mixtures (Delon & Desolneux 2020, 'A
  Wasserstein-type distance in the space of Gaussian Mixture Models', SIAM J. Imaging Sciences 13(2));
- client to client: transport between classes, with class frequencies as marginals (the idea of OTDD:
  Alvarez-Melis & Fusi 2020, 'Geometric Dataset Distances via Optimal Transport').

The cheapest plan of a transport is a vertex of its polytope, and every vertex is the one flow that a spanning tree
of the complete bipartite graph K(k, l) allows. For k, l ≤ 3 there are at most 81 trees: evaluating all of them for
an array of problems is exact, and much faster than one solver call per problem. POT's network simplex solves
larger problems.

CE-LoRA (arXiv 2503.23869) weighs clients by such a distance. All distances are squared, in squared feature
units; their square roots are metrics on summaries (with labels free).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from math import comb

import numpy as np
import numpy.typing as npt

from trifed.similarity.checks import Floats, Ints, SimilarityError, as_floats, require_square
from trifed.similarity.summary import MERGED, Summary

MISMATCH_COST = 4.0
"""Cost of moving mass between different labels if labels must match: the squared diameter of the unit ball, the
largest distance between clipped features."""
_MOST_CANDIDATES = 126  # edge sets of K(3, 3) with as many edges as a spanning tree
_TOLERANCE = 1e-12  # a flow this far below 0 is rounding at a degenerate vertex


def component_distances(
    means: npt.ArrayLike, variances: npt.ArrayLike, other_means: npt.ArrayLike, other_variances: npt.ArrayLike
) -> Floats:
    """Return squared 2-Wasserstein distances between all pairs of diagonal Gaussians.

    Args:
        means: $μ$, (m, dim).
        variances: $σ²$, (m, dim).
        other_means: $μ'$, (p, dim).
        other_variances: $σ'²$, (p, dim).

    Returns:
        $‖φ-φ'‖²$, (m, p), with $φ = [μ, σ]$, σ the standard deviations; never below 0.

    Raises:
        SimilarityError: Shapes that do not fit, NaN or infinity, or negative variances.
    """
    left, right = _phi(means, variances), _phi(other_means, other_variances)
    if left.shape[1] != right.shape[1]:
        raise SimilarityError(
            f"components: got dimensions {left.shape[1] // 2} and {right.shape[1] // 2}, expected equal ones"
        )
    return _squared_distances(left, right)


def summary_distance(first: Summary, second: Summary, match_labels: bool = False) -> float:
    """Return the distance between two summaries (see `pairwise_distances`); NaN if one has no components."""
    return float(pairwise_distances([first, second], match_labels)[0, 1])


def pairwise_distances(summaries: Sequence[Summary], match_labels: bool = False) -> Floats:
    """Return the distances $D$ between N clients' data.

    A class is weighted by its share of the examples that have components. Transport matches the labels: class 3
    of one client may correspond to class 5 of another. The merged component (label -1) counts as any of its
    classes. Memory is (components of one client) × (components of all).

    Args:
        summaries: One summary per client.
        match_labels: Let mass moved between different classes cost `MISMATCH_COST` instead of their distance,
            so that it is moved only as far as the class frequencies differ.

    Returns:
        Distances (N, N) in squared feature units, symmetric with a zero diagonal. NaN in the row and column of
        a client without components, off the diagonal.

    Raises:
        SimilarityError: No summaries, or mixed dimensions.
    """
    if not summaries:
        raise SimilarityError("summaries: got none, expected at least one")
    known = [index for index, summary in enumerate(summaries) if len(summary.labels)]
    distances = np.full((len(summaries), len(summaries)), np.nan)
    np.fill_diagonal(distances, 0.0)
    mixtures = _mixtures([summaries[index] for index in known])
    for position, (i, mixture) in enumerate(zip(known[:-1], mixtures, strict=False)):
        later = mixtures[position + 1 :]
        ends = np.cumsum([len(other.weights) for other in later])[:-1]
        blocks = np.split(_class_distances(mixture, later), ends, axis=1)
        for j, other, cost in zip(known[position + 1 :], later, blocks, strict=True):
            if match_labels:
                cost = np.where(mixture.members @ other.members.T > 0, cost, MISMATCH_COST)
            distances[i, j] = distances[j, i] = _transport(mixture.weights, other.weights, cost)
    return distances


def denoise(distances: npt.ArrayLike, self_distances: npt.ArrayLike) -> Floats:
    """Subtract the noise floor from distances: $D'_{ij} = max(0, D_{ij} - ½(D_{ii} + D_{jj}))$.

    Args:
        distances: $D$, (N, N); NaN stays NaN.
        self_distances: $D_{ii}$, (N,), from each summary.

    Returns:
        $D'$, (N, N), with a zero diagonal.

    Raises:
        SimilarityError: Shapes that do not fit, or a negative number.
    """
    d, noise = _distance_matrix(distances), as_floats("self_distances", self_distances, 1)
    if noise.shape != d.shape[:1] or (noise < 0).any():
        raise SimilarityError(f"self_distances: got shape {noise.shape}, expected {d.shape[:1]}, all at least 0")
    less: Floats = np.maximum(0.0, d - 0.5 * (noise[:, None] + noise[None, :]))
    np.fill_diagonal(less, 0.0)
    return less


def similarity_from_distances(distances: npt.ArrayLike) -> Floats:
    """Return $S_{data} = exp(-D'/τ)$ with τ the median of the positive off-diagonal $D'$; 1 if there is none.

    Args:
        distances: $D'$, (N, N), from `denoise`; NaN for unknown distances.

    Returns:
        Similarities (N, N) in [0, 1], symmetric, diagonal 1, never NaN. An unknown similarity is the mean of all
        known ones off the diagonal (1 if none is known).

    Raises:
        SimilarityError: A wrong shape, infinity or a negative distance.
    """
    d = _distance_matrix(distances)
    off = ~np.eye(len(d), dtype=bool)
    known = off & ~np.isnan(d)
    positive = d[known & (d > 0)]
    similarity = np.ones_like(d)
    if positive.size:
        with np.errstate(over="ignore"):  # a large distance over a tiny τ correctly gives exp(-inf) = 0
            similarity[known] = np.exp(-d[known] / np.median(positive))
    if known.any():
        similarity[off & ~known] = similarity[known].mean()
    return similarity


@dataclass(frozen=True)
class _Mixture:
    """A summary of g classes and m components in the form that transport needs.

    Attributes:
        phi: $[μ, σ]$ of each component, (m, 2·dim).
        weights: Class frequencies, (g,).
        parts: For each class the rows of its components in `phi`.
        shares: For each class its components' weights within the class.
        members: (g, v), 1 if a label of the vocabulary belongs to the class.
    """

    phi: Floats
    weights: Floats
    parts: list[Ints]
    shares: list[Floats]
    members: Floats


def _mixtures(summaries: Sequence[Summary]) -> list[_Mixture]:
    """Convert summaries that have components, over their common vocabulary of v labels."""
    widths = {summary.means.shape[1] for summary in summaries}
    if len(widths) > 1:
        raise SimilarityError(
            f"summaries: got dimensions {sorted(widths)}, expected one projection for all clients"
        )
    seen = [np.concatenate([s.class_labels, s.labels[s.labels != MERGED]]) for s in summaries]
    vocabulary = np.unique(np.concatenate(seen)) if seen else np.empty(0, dtype=np.int64)
    return [_mixture(summary, vocabulary) for summary in summaries]


def _mixture(summary: Summary, vocabulary: Ints) -> _Mixture:
    """Group one summary's components by class."""
    classes = np.unique(summary.labels)
    parts = [np.flatnonzero(summary.labels == label) for label in classes]
    sizes = np.array([summary.counts[part].sum() for part in parts], dtype=np.float64)
    merged = np.setdiff1d(summary.class_labels, classes)
    members = [np.isin(vocabulary, merged if label == MERGED else label) for label in classes]
    return _Mixture(
        phi=_phi(summary.means, summary.variances),
        weights=sizes / sizes.sum(),
        parts=parts,
        shares=[summary.counts[part] / size for part, size in zip(parts, sizes, strict=True)],
        members=np.array(members, dtype=np.float64),
    )


def _class_distances(mixture: _Mixture, later: Sequence[_Mixture]) -> Floats:
    """Return $MW_2²$ between the g classes of one client and the h classes of several clients, (g, h)."""
    components = _squared_distances(mixture.phi, np.concatenate([other.phi for other in later]))
    starts = np.cumsum([0, *(len(other.phi) for other in later)])
    parts = [part + start for other, start in zip(later, starts[:-1], strict=True) for part in other.parts]
    shares = [share for other in later for share in other.shares]
    result = np.empty((len(mixture.parts), len(parts)))
    for rows, row_parts, row_shares in _by_size(mixture.parts, mixture.shares):
        for columns, column_parts, column_shares in _by_size(parts, shares):
            cost = components[row_parts[:, None, :, None], column_parts[None, :, None, :]]
            result[np.ix_(rows, columns)] = small_transport(row_shares, column_shares, cost)
    return result


def _by_size(parts: Sequence[Ints], shares: Sequence[Floats]) -> Iterator[tuple[Ints, Ints, Floats]]:
    """Group classes by their number k of components: indices (g,), components (g, k), shares (g, k)."""
    for k in sorted({len(part) for part in parts}):
        chosen = np.array([index for index, part in enumerate(parts) if len(part) == k])
        yield chosen, np.array([parts[index] for index in chosen]), np.array([shares[index] for index in chosen])


def small_transport(left: Floats, right: Floats, cost: Floats) -> Floats:
    """Return the transport costs of g × h problems with k × l costs each.

    Args:
        left: Marginals (g, k), rows summing to 1.
        right: Marginals (h, l), rows summing to 1.
        cost: (g, h, k, l).

    Returns:
        The cost of each problem's cheapest plan, (g, h).
    """
    k, edges = left.shape[1], cost.reshape(*cost.shape[:2], -1)
    if comb(edges.shape[2], k + right.shape[1] - 1) > _MOST_CANDIDATES:
        solved = [_transport(left[i], right[j], cost[i, j]) for i, j in np.ndindex(*cost.shape[:2])]
        return np.reshape(solved, cost.shape[:2])
    best = np.full(cost.shape[:2], np.inf)
    for used, flows in _trees(k, right.shape[1]):
        plan = (left @ flows[:, :k].T)[:, None, :] + (right @ flows[:, k:].T)[None, :, :]
        price = (plan * edges[:, :, used]).sum(axis=2)
        best = np.where((plan >= -_TOLERANCE).all(axis=2), np.minimum(best, price), best)
    return np.asarray(np.maximum(best, 0.0), np.float64)


@lru_cache(maxsize=32)
def _trees(k: int, other: int) -> tuple[tuple[Ints, Floats], ...]:
    """Return the spanning trees of K(k, l), l = `other`.

    Returns:
        For each tree its edges (k+l-1,), indices into a flattened (k, l) plan, and the matrix (k+l-1, k+l) that
        maps the marginals of both sides to the flows on those edges.
    """
    incidence = np.concatenate([np.kron(np.eye(k), np.ones(other)), np.kron(np.ones(k), np.eye(other))])
    edge_sets = (list(used) for used in combinations(range(k * other), k + other - 1))
    return tuple(
        (np.array(used, dtype=np.int64), np.linalg.pinv(incidence[:, used]).astype(np.float64))
        for used in edge_sets
        if np.linalg.matrix_rank(incidence[:, used]) == k + other - 1
    )


def _transport(weights: Floats, other: Floats, cost: Floats) -> float:
    """Return the exact transport cost between marginals (g,) and (h,) under `cost` (g, h)."""
    import ot  # imported late: it loads torch, which would slow down --help

    if min(cost.shape) == 1:
        return float(weights @ cost @ other)
    # The marginals are valid by construction, and POT's checks take as long as the problem itself.
    unchecked = {"center_dual": False, "check_marginals": False}
    return float(ot.emd2(weights, other, np.ascontiguousarray(cost), numItermax=10_000_000, **unchecked))


def _phi(means: npt.ArrayLike, variances: npt.ArrayLike) -> Floats:
    """Return $φ = [μ, σ]$, (m, 2·dim)."""
    mu, var = as_floats("means", means, 2), as_floats("variances", variances, 2)
    if mu.shape != var.shape or (var < 0).any():
        raise SimilarityError(f"variances: got shape {var.shape}, expected {mu.shape}, all at least 0")
    return np.concatenate([mu, np.sqrt(var)], axis=1)


def _squared_distances(left: Floats, right: Floats) -> Floats:
    """Return squared Euclidean distances (m, p) between rows, centred first to avoid cancellation."""
    centre = left.mean(axis=0)
    a, b = left - centre, right - centre
    squares = (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1)[None, :] - 2.0 * (a @ b.T)
    return np.asarray(np.maximum(squares, 0.0), np.float64)


def _distance_matrix(distances: npt.ArrayLike) -> Floats:
    """Check distances (N, N), each at least 0 or NaN."""
    d = np.asarray(distances, dtype=np.float64)
    require_square("distances", d)
    if np.isinf(d).any() or (d < 0).any():
        raise SimilarityError(
            "distances: got infinity or a negative number, expected at least 0, or NaN if unknown"
        )
    return d
