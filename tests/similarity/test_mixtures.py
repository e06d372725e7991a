import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.mixture import GaussianMixture

from trifed.similarity import SimilarityError, Summary, noise_floor, project, summarise
from trifed.similarity.summary import MERGED


def blobs(sizes, dim=8, spread=0.05, seed=0):
    """One class of well separated blobs in the unit ball; returns examples and the blob of each."""
    rng = np.random.default_rng(seed)
    centres = 0.5 * np.eye(len(sizes), dim)
    which = np.repeat(np.arange(len(sizes)), sizes)
    return centres[which] + spread * rng.standard_normal((len(which), dim)), which


def test_projecting_then_clipping_bounds_norms_and_the_other_order_does_not():
    features = 5.0 * np.random.default_rng(0).standard_normal((500, 96))
    assert np.linalg.norm(project(features, 16, seed=3), axis=1).max() <= 1 + 1e-12
    clipped_first = features / np.linalg.norm(features, axis=1, keepdims=True)
    unclipped = project(clipped_first * 1e-3, 16, seed=3) * 1e3  # 1e-3 keeps the inner clip from acting
    assert np.linalg.norm(unclipped, axis=1).max() > 1.2


def test_projection_is_the_public_matrix_of_its_seed_and_keeps_lengths_on_average():
    features = 1e-3 * np.random.default_rng(0).standard_normal((2000, 40))
    first, again, other = (project(features, 64, seed=seed) for seed in (7, 7, 8))
    assert np.array_equal(first, again) and not np.allclose(first, other)
    assert np.array_equal(project(features[:5], 64, seed=7).shape, (5, 64))
    assert np.allclose(project(features[::-1], 64, seed=7), first[::-1])
    assert (first**2).sum() / (features**2).sum() == pytest.approx(1, abs=0.1)
    # The first number of the stream is frozen: clients on different NumPy versions must agree on the matrix.
    assert project(np.array([[1e-3]]), 1, seed=0)[0, 0] / 1e-3 == pytest.approx(-1.8313077384358236, rel=1e-12)


def test_one_component_is_mean_and_variance():
    x = np.random.default_rng(1).normal(size=(30, 5)) / 5
    summary = summarise(x, np.full(30, 4), seed=0)
    assert summary.labels.tolist() == [4] and summary.counts.tolist() == [30]
    np.testing.assert_allclose(summary.means[0], x.mean(0), atol=1e-6)
    np.testing.assert_allclose(summary.variances[0], x.var(0), atol=1e-6)


def test_separated_blobs_are_found_as_scikit_learn_finds_them():
    x, which = blobs([40, 60, 30])
    summary = summarise(x, np.zeros(130, int), seed=0)
    order = np.argsort(summary.counts)
    assert summary.counts[order].tolist() == [30, 40, 60]
    exact = np.array([x[which == blob].mean(0) for blob in (2, 0, 1)])
    np.testing.assert_allclose(summary.means[order], exact, atol=1e-6)
    reference = GaussianMixture(3, covariance_type="diag", random_state=5).fit(x)
    by_weight = np.argsort(reference.weights_)
    np.testing.assert_allclose(summary.means[order], reference.means_[by_weight], atol=1e-3)
    np.testing.assert_allclose(summary.variances[order], reference.covariances_[by_weight], atol=1e-3)


@settings(deadline=None, max_examples=15)
@given(
    sizes=st.lists(st.integers(1, 70), min_size=1, max_size=5),
    floor=st.integers(1, 25),
    seed=st.integers(0, 2**32),
)
def test_no_released_component_stands_on_fewer_than_the_floor(sizes, floor, seed):
    labels = np.repeat(np.arange(len(sizes)), sizes)
    x = np.random.default_rng(seed).standard_normal((len(labels), 4)) / 4
    summary = summarise(x, labels, floor=floor, seed=seed)
    assert (summary.counts >= floor).all()
    assert summary.class_counts.tolist() == sizes
    small = sum(size for size in sizes if size < floor)
    assert (len(summary.labels) == 0) == (len(labels) < floor)
    assert (MERGED in summary.labels) == (small >= max(floor, 1))
    assert summary.counts.sum() == len(labels) - (small if small < floor else 0)
    assert summary.self_distance >= 0
    # The moments add up: what is released about a class is its mean, cut in pieces.
    for label in set(summary.labels.tolist()) - {MERGED}:
        own = summary.labels == label
        mean = (summary.counts[own] @ summary.means[own]) / summary.counts[own].sum()
        np.testing.assert_allclose(mean, x[labels == label].mean(0), atol=1e-6)
    Summary.from_arrays(summary.to_arrays(), dim=4)


def test_floor_rules_one_by_one():
    x = np.random.default_rng(0).standard_normal((100, 3)) / 3

    def labels_of(*sizes):
        y = np.repeat(np.arange(len(sizes)), sizes)
        summary = summarise(x[: len(y)], y, seed=0, max_components=1)
        return dict(zip(summary.labels.tolist(), summary.counts.tolist(), strict=True))

    assert labels_of(30, 19, 19) == {0: 30, MERGED: 38}
    assert labels_of(30, 10, 9) == {0: 30}  # 19 together: no moments about them
    assert labels_of(10, 10) == {MERGED: 20}
    assert labels_of(10, 9) == {}
    assert labels_of(20) == {0: 20}


def test_too_few_examples_give_counts_only():
    x = np.ones((19, 3)) / 3
    summary = summarise(x, np.array([0] * 12 + [5] * 7), seed=0)
    assert summary.means.shape == summary.variances.shape == (0, 3)
    assert (summary.class_labels.tolist(), summary.class_counts.tolist()) == ([0, 5], [12, 7])
    assert summary.self_distance == 0.0
    empty = summarise(np.empty((0, 3)), np.empty(0, int), seed=0)
    assert empty.means.shape == (0, 3) and empty.class_labels.shape == (0,)


def test_a_lonely_outlier_group_does_not_become_a_component():
    x, _ = blobs([80, 5], spread=0.01)
    summary = summarise(x, np.zeros(85, int), max_components=2, seed=0)
    assert (summary.counts >= 20).all() and summary.counts.sum() == 85


def test_duplicate_examples_fall_back_to_fewer_components_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        same = summarise(np.full((60, 4), 0.25), np.zeros(60, int), seed=0)
        two = summarise(np.repeat([[0.0, 0.1], [0.5, 0.1]], 40, axis=0), np.zeros(80, int), seed=0)
    assert same.counts.tolist() == [60] and not same.variances.any() and same.self_distance == 0
    assert sorted(two.counts.tolist()) == [40, 40]


def test_the_same_seed_gives_the_same_summary():
    x = np.random.default_rng(0).standard_normal((120, 6)) / 6
    y = np.arange(120) % 2
    first, again = (summarise(x, y, seed=11).to_arrays() for _ in range(2))
    assert all(np.array_equal(first[name], again[name]) for name in first)


def test_noise_floor_is_that_of_two_halves_by_hand():
    # Halves of 4 examples a, b, c, d are two pairs. On a line a pair {p, q} has mean (p+q)/2 and standard
    # deviation |p-q|/2, so the distance is one of three numbers, by the split drawn.
    points = np.array([0.0, 0.1, 0.4, 0.9])

    def pair(p, q):
        return np.array([(p + q) / 2, abs(p - q) / 2])

    a, b, c, d = points
    possible = [
        ((pair(*first) - pair(*second)) ** 2).sum()
        for first, second in (((a, b), (c, d)), ((a, c), (b, d)), ((a, d), (b, c)))
    ]
    got = noise_floor(points[:, None], np.zeros(4, int), floor=4, max_components=1, seed=0)
    assert min(abs(got - value) for value in possible) < 1e-6


@pytest.mark.parametrize(
    ("x", "y", "keywords", "word"),
    [
        (np.ones((3, 2)), [0, 1], {}, "labels"),
        (np.ones((2, 2)), [0.0, 1.0], {}, "labels"),
        (np.ones((2, 2)), [0, -1], {}, "labels"),
        (np.ones(2), [0, 1], {}, "projected"),
        (np.ones((2, 0)), [0, 1], {}, "projected"),
        (np.array([[np.nan], [1]]), [0, 1], {}, "projected"),
        (np.ones((2, 2)), [0, 1], {"floor": 0}, "floor"),
        (np.ones((2, 2)), [0, 1], {"max_components": 0}, "max_components"),
    ],
)
def test_mistakes_are_named(x, y, keywords, word):
    with pytest.raises(SimilarityError, match=word):
        summarise(x, np.array(y), seed=0, **keywords)


def test_project_names_its_mistakes():
    for features, dim in (
        (np.ones(3), 2),
        (np.full((2, 2), np.inf), 2),
        (np.ones((2, 2)), 0),
        (np.array([["a"]]), 1),
    ):
        with pytest.raises(SimilarityError):
            project(features, dim, seed=0)
