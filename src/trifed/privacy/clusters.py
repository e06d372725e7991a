"""Clusters of at least m clients with the same average, computed from summaries alone.

A server that computes n averages C̄ = W C can recover C = W⁻¹ C̄ whenever W is invertible: with separate weights
for each client, hiding the uploads protects nothing. With weights that are constant within clusters a server needs
only the sum of each cluster, and `masking` hides all but these sums. The clusters must
therefore come from data that is not hidden, the summaries; a similarity of cores would need the cores.

The clusters are those of single linkage, the connected components of pairs nearer than some distance. Unlike other
linkages they do not depend on the order of the clients, even for equal distances.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.spatial.distance import squareform

from trifed.similarity.checks import Floats, Ints, SimilarityError, as_floats, require_at_least

Parts = list[list[int]]
"""A partition of clients: one list of client indices per part."""


def clusters(similarity: npt.ArrayLike, at_least: int, alike: float = 0.5) -> Ints:
    """Return each client's cluster, (n,), numbered in the order of their first clients.

    A cluster is split where its parts are least similar, as long as one part has m clients. Smaller parts join the
    part that they are most similar to; if these are several, they stay together.

    Args:
        similarity: (n, n), symmetric, 1 for equal clients and less for others, as a method's `similarity_data`; or
            1 for clients that share an average and 0 for others.
        at_least: m, the fewest clients of a cluster.
        alike: Clients with at least this similarity, or connected by such clients, are never separated.

    Raises:
        SimilarityError: Wrong shapes, NaN, a matrix that is not symmetric, or fewer than m clients in all.
    """
    near = as_floats("similarity", similarity, 2)
    require_at_least("at_least", at_least, 1)
    if near.shape[0] != near.shape[1] or not np.array_equal(near, near.T):
        raise SimilarityError(f"similarity: got shape {near.shape}, expected a symmetric (n_clients, n_clients)")
    if len(near) < at_least:
        raise SimilarityError(
            f"at_least: got {at_least}, expected at most the {len(near)} clients there are; "
            f"wait for more clients, or lower it"
        )
    labels = np.zeros(len(near), np.int64)
    for number, members in enumerate(sorted(_split(near, list(range(len(near))), at_least, alike))):
        labels[members] = number
    return labels


def _split(near: Floats, members: list[int], at_least: int, alike: float) -> Parts:
    """Split clients into sorted parts of `at_least` or more."""
    if len(members) < 2 * at_least:
        return [members]
    parts = _least_similar(near, members, alike)
    large = [part for part in parts if len(part) >= at_least]
    if len(parts) == 1 or not large:
        return [members]
    found = [inner for part in large for inner in _split(near, part, at_least, alike)]
    return _join_small(near, found, [part for part in parts if len(part) < at_least])


def _join_small(near: Floats, large: Parts, small: Parts) -> Parts:
    """Join each small part with the large part that it is most similar to, or with all of these if several are."""
    merged, nearest_of_small = list(range(len(large))), []
    for part in small:
        links = [float(near[np.ix_(part, other)].max()) for other in large]
        nearest = [place for place, link in enumerate(links) if link == max(links)]
        nearest_of_small.append(nearest[0])
        same = {merged[place] for place in nearest}
        merged = [min(same) if other in same else other for other in merged]
    joined: dict[int, list[int]] = {}
    for place, part in [*enumerate(large), *zip(nearest_of_small, small, strict=True)]:
        joined.setdefault(merged[place], []).extend(part)
    return [sorted(part) for part in joined.values()]


def _least_similar(near: Floats, members: list[int], alike: float) -> Parts:
    """Split clients at their least similarity, or return one part if that is at least `alike`."""
    from scipy.cluster.hierarchy import fcluster, linkage  # imported late to keep --help fast

    # Single linkage depends only on the order of similarities, and equal ones must have exactly equal ranks.
    values, ranks = np.unique(near[np.ix_(members, members)], return_inverse=True)
    distances = (len(values) - 1 - ranks).reshape(len(members), -1).astype(np.float64)
    tree = linkage(squareform(distances, checks=False), "single")
    top = tree[-1, 2]
    if values[len(values) - 1 - int(top)] >= alike:
        return [members]
    parts = fcluster(tree, top - 0.5, "distance")
    return [[members[leaf] for leaf in np.flatnonzero(parts == part)] for part in np.unique(parts)]
