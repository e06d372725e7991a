"""Exact optimal transport for many very small problems at once.

The cheapest plan is a vertex of the transport polytope, and every vertex is the one flow that a spanning
tree of the complete bipartite graph K(k, l) allows. For k, l ≤ 3 there are at most 81 trees: evaluating all
of them for an array of problems is exact, and much faster than one solver call per problem. POT's network
simplex solves larger problems.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import combinations
from math import comb

import numpy as np

from trifed.similarity.checks import Floats, Ints

_MOST_CANDIDATES = 126  # edge sets of K(3, 3) with as many edges as a spanning tree
_TOLERANCE = 1e-12  # a flow this far below 0 is rounding at a degenerate vertex


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
        return _solve_each(left, right, cost)
    best = np.full(cost.shape[:2], np.inf)
    for used, flows in _trees(k, right.shape[1]):
        plan = (left @ flows[:, :k].T)[:, None, :] + (right @ flows[:, k:].T)[None, :, :]
        price = (plan * edges[:, :, used]).sum(axis=2)
        best = np.where((plan >= -_TOLERANCE).all(axis=2), np.minimum(best, price), best)
    result: Floats = np.maximum(best, 0.0)
    return result


def _solve_each(left: Floats, right: Floats, cost: Floats) -> Floats:
    """Return the transport costs (g, h) of `small_transport`'s problems by one solver call per problem."""
    import ot  # imported late: it loads torch, which would slow down --help

    result = np.empty(cost.shape[:2])
    for i, j in np.ndindex(*result.shape):
        result[i, j] = ot.emd2(left[i], right[j], np.ascontiguousarray(cost[i, j]))
    return result


@lru_cache(maxsize=32)
def _trees(k: int, other: int) -> tuple[tuple[Ints, Floats], ...]:
    """Return the spanning trees of K(k, l), l = `other`.

    Returns:
        For each tree its edges (k+l-1,), indices into a flattened (k, l) plan, and the matrix (k+l-1, k+l) that
        maps the marginals of both sides to the flows on those edges.
    """
    incidence = np.zeros((k + other, k * other))
    for edge in range(k * other):
        incidence[[edge // other, k + edge % other], edge] = 1.0
    trees = []
    for used in combinations(range(k * other), k + other - 1):
        chosen = incidence[:, used]
        if np.linalg.matrix_rank(chosen) == k + other - 1:
            trees.append((np.array(used, dtype=np.int64), np.linalg.pinv(chosen).astype(np.float64)))
    return tuple(trees)
