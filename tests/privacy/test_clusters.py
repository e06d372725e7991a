"""Clusters of at least m clients: a partition that the order of the clients does not change."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trifed.privacy.clusters import clusters
from trifed.similarity import mixing_weights
from trifed.similarity.checks import SimilarityError


def together(labels):
    return np.equal.outer(labels, labels)


def blocks(*sizes, inside=0.9, between=0.1):
    """Similarity `inside` within groups of these sizes and `between` elsewhere."""
    groups = np.repeat(np.arange(len(sizes)), sizes)
    near = np.where(together(groups), inside, between)
    np.fill_diagonal(near, 1.0)
    return near, groups


@st.composite
def matrices(draw, values):
    """Symmetric matrices of up to 9 clients whose similarities are among a few values: many ties."""
    size = draw(st.integers(1, 9))
    upper = draw(st.lists(st.sampled_from(values), min_size=size * size, max_size=size * size))
    near = np.triu(np.array(upper).reshape(size, size), 1)
    return near + near.T + np.eye(size)


TIED = matrices([0.0, 0.25, 0.5, 1.0])
FEW = settings(max_examples=60, deadline=None)


@FEW
@given(near=TIED, at_least=st.integers(1, 4), alike=st.sampled_from([0.0, 0.3, 0.6, 2.0]))
def test_everybody_is_in_one_cluster_of_at_least_m(near, at_least, alike):
    if len(near) < at_least:
        with pytest.raises(SimilarityError, match=f"the {len(near)} clients"):
            clusters(near, at_least, alike)
        return
    labels = clusters(near, at_least, alike)
    assert np.bincount(labels).min() >= at_least
    first = [int(np.flatnonzero(labels == label)[0]) for label in range(labels.max() + 1)]
    assert first == sorted(first)  # numbered in the order of their first clients


@FEW
@given(near=TIED, at_least=st.integers(1, 3), alike=st.sampled_from([0.3, 0.6, 2.0]), seed=st.integers(0, 99))
def test_the_order_of_the_clients_does_not_matter(near, at_least, alike, seed):
    if len(near) < at_least:
        return
    order = np.random.default_rng(seed).permutation(len(near))
    one, other = (clusters(matrix, at_least, alike) for matrix in (near, near[np.ix_(order, order)]))
    np.testing.assert_array_equal(together(one)[np.ix_(order, order)], together(other))


@FEW
@given(near=TIED, at_least=st.integers(1, 3))
def test_who_is_alike_is_never_parted(near, at_least):
    if len(near) < at_least:
        return
    labels = clusters(near, at_least, alike=0.5)
    assert together(labels)[near >= 0.5].all()


@pytest.mark.parametrize(("at_least", "parted"), [(1, True), (3, True), (4, False), (6, False), (12, False)])
def test_planted_groups_are_found_as_far_as_they_are_large_enough(at_least, parted):
    """A group of 3 under m = 4 is as near to both others: all stay together, where chance would decide else."""
    near, groups = blocks(4, 3, 5)
    labels = clusters(near, at_least)
    np.testing.assert_array_equal(labels, groups if parted else np.zeros(12, int))


def test_weights_of_each_clients_own_give_every_core_away_and_constant_ones_do_not():
    """C̄ = W C. With `ce-lora`'s weights W can be inverted; constant within clusters its rank is their number."""
    near, groups = blocks(4, 3, 5)
    noise = np.random.default_rng(0).uniform(0, 0.05, near.shape)
    cores = np.random.default_rng(1).standard_normal((12, 64))
    own = mixing_weights(near + noise + noise.T, self_weight=0.5, temperature=0.1)
    np.testing.assert_allclose(np.linalg.solve(own, own @ cores), cores, atol=1e-8)
    constant = together(groups) / together(groups).sum(1, keepdims=True)
    assert np.linalg.matrix_rank(constant) == 3


def test_a_small_group_goes_to_that_which_it_is_nearest_to():
    near, _ = blocks(4, 3, 5)
    near[4, 9] = near[9, 4] = 0.2  # one client of the group of three is a little nearer to one of the last group
    np.testing.assert_array_equal(clusters(near, 4), np.repeat([0, 1], [4, 8]))


def test_small_groups_do_not_keep_large_ones_together():
    near, _ = blocks(4, 1, 5, between=0.1)
    near[4, :] = near[:, 4] = 0.0
    near[4, 4] = 1.0
    near[4, 0] = near[0, 4] = 0.05
    np.testing.assert_array_equal(clusters(near, 3), np.repeat([0, 1], [5, 5]))


def test_who_shares_with_whom_as_a_graph():
    """0 and 1, as `own-prior` decides it: clusters are what hangs together, in chains too."""
    near = np.eye(7)
    for one, other in [(0, 1), (1, 2), (3, 4), (4, 5), (5, 6), (3, 6)]:
        near[one, other] = near[other, one] = 1
    np.testing.assert_array_equal(clusters(near, 3), [0, 0, 0, 1, 1, 1, 1])


@pytest.mark.parametrize(
    ("near", "at_least", "match"),
    [
        (np.ones((2, 3)), 1, "expected a symmetric"),
        (np.array([[1, 0.2], [0.3, 1]]), 1, "expected a symmetric"),
        (np.full((2, 2), np.nan), 1, "similarity"),
        (np.ones((3, 3)), 0, "at_least"),
        (np.ones((3, 3)), 4, "at_least"),
        (np.ones((0, 0)), 1, "similarity|the 0 clients"),
    ],
)
def test_what_cannot_be_clustered_is_said(near, at_least, match):
    with pytest.raises(SimilarityError, match=match):
        clusters(near, at_least)
