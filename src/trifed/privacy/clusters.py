"""Clusters of at least m clients, from summaries alone, within which everybody gets the same average.

A server that makes n averages C̄ = W C and sees them all has C = W⁻¹ C̄ as soon as W can be inverted: with weights
of each client's own, hiding the uploads hides nothing. Where weights are constant within clusters a server needs
the sum of each cluster and no more, and to sums of at least m `masking` can keep it. So the clusters have to be
made of what is not hidden, the summaries; similarity of cores would need the cores.

The clusters are those of single linkage: who is connected by pairs that are nearer than some distance. They do not
depend on the order of the clients, also where distances are equal, as no other linkage can promise.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from trifed.similarity.checks import Floats, Ints, SimilarityError, as_floats, require_at_least

Parts = list[list[int]]
"""What a set of clients falls into: each part the places of its clients."""


def clusters(similarity: npt.ArrayLike, at_least: int, alike: float = 0.5) -> Ints:
    """Which cluster each client is in, (n,), numbered in the order of their first clients.

    - `similarity`: (n, n), symmetric, 1 where clients are alike and less where they are not, as a method's
      `similarity_data`; or who shares with whom, as 0 and 1.
    - `at_least`: m, the fewest clients that a cluster may have.
    - `alike`: clients that are at least so similar, or are connected by such, are never parted.

    A cluster is parted where its parts are least similar, as long as one of them keeps m clients. Parts of fewer
    go to the part that they are most similar to; where that is several, these stay together.

    Raises `SimilarityError` for wrong shapes, NaN, a matrix that is not symmetric, or fewer than m clients in all.
    """
    near = as_floats("similarity", similarity, 2)
    require_at_least("at_least", at_least, 1)
    if near.shape[0] != near.shape[1] or not np.array_equal(near, near.T):
        raise SimilarityError(f"similarity: got shape {near.shape}, expected a symmetric (n_clients, n_clients)")
    if len(near) < at_least:
        raise SimilarityError(
            f"at_least: got {at_least}, but there are {len(near)} clients, and none can be hidden among so many; "
            f"wait for more clients, or ask for fewer"
        )
    found = sorted(_parted(near, list(range(len(near))), at_least, alike))
    labels = np.zeros(len(near), np.int64)
    for number, members in enumerate(found):
        labels[members] = number
    return labels


def _parted(near: Floats, members: list[int], at_least: int, alike: float) -> Parts:
    """The members, sorted, in parts of `at_least` or more."""
    if len(members) < 2 * at_least:
        return [members]
    parts = _least_similar(near, members, alike)
    large = [part for part in parts if len(part) >= at_least]
    if len(parts) == 1 or not large:
        return [members]
    found = [inner for part in large for inner in _parted(near, part, at_least, alike)]
    return _taken_in(near, found, [part for part in parts if len(part) < at_least])


def _taken_in(near: Floats, found: Parts, small: Parts) -> Parts:
    """`found`, with each small part in that which it is most similar to, or in all of these together."""
    home, goes = list(range(len(found))), []
    for part in small:
        ties = [float(near[np.ix_(part, other)].max()) for other in found]
        nearest = [place for place, tie in enumerate(ties) if tie == max(ties)]
        goes.append(nearest[0])
        same = {home[place] for place in nearest}
        home = [min(same) if other in same else other for other in home]
    joined: dict[int, list[int]] = {}
    for place, part in [*enumerate(found), *zip(goes, small, strict=True)]:
        joined.setdefault(home[place], []).extend(part)
    return [sorted(part) for part in joined.values()]


def _least_similar(near: Floats, members: list[int], alike: float) -> Parts:
    """The parts that hang together by the least similarity alone; one where that is at least `alike`."""
    from sklearn.cluster import AgglomerativeClustering  # late, as elsewhere: for a quick --help

    # Ranks in the place of similarities: single linkage asks for no more, and what is equal stays equal.
    values, ranks = np.unique(near[np.ix_(members, members)], return_inverse=True)
    distances = (len(values) - 1 - ranks).reshape(len(members), -1).astype(np.float64)
    tree = AgglomerativeClustering(
        n_clusters=None, distance_threshold=0.0, metric="precomputed", linkage="single"
    ).fit(distances)
    top = tree.distances_.max()
    if values[len(values) - 1 - int(top)] >= alike:
        return [members]
    groups: dict[int, list[int]] = {leaf: [leaf] for leaf in range(len(members))}
    joins = tree.children_[tree.distances_ < top]  # in the order of their heights: these come first
    for number, (one, other) in enumerate(joins.tolist(), start=len(members)):
        groups[number] = [*groups.pop(one), *groups.pop(other)]
    return [sorted(members[leaf] for leaf in group) for group in groups.values()]
