import numpy as np
import ot
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trifed.similarity import (
    SimilarityError,
    Summary,
    component_distances,
    denoise,
    pairwise_distances,
    similarity_from_distances,
    summarise,
    summary_distance,
)
from trifed.similarity.transport import MISMATCH_COST, small_transport


def make(labels, counts, means, variances, classes=None):
    """A summary by hand; `classes` gives the classes behind a merged component."""
    labels, counts = np.array(labels, np.int64), np.array(counts, np.int64)
    means, variances = (np.atleast_2d(np.array(a, np.float32).T).T for a in (means, variances))
    class_labels = np.unique(labels) if classes is None else np.array(classes)
    return Summary(labels, counts, means, variances, 0.0, class_labels, np.ones_like(class_labels))


def random_summary(rng, dim=3, classes=4, k=3):
    sizes = rng.integers(1, k + 1, rng.integers(1, classes + 1))
    labels = np.repeat(rng.permutation(10)[: len(sizes)], sizes)
    m = len(labels)
    return make(labels, rng.integers(20, 60, m), rng.normal(size=(m, dim)) / 3, rng.random((m, dim)) / 9)


def test_distance_between_one_dimensional_gaussians():
    # W2²(N(m, s²), N(m', s'²)) = (m - m')² + (s - s')²: here (1 - 4)² + (2 - 6)² = 9 + 16.
    assert component_distances([[1.0]], [[4.0]], [[4.0]], [[36.0]]) == pytest.approx(25.0)
    assert component_distances([[1.0]], [[4.0]], [[1.0]], [[4.0]]) == pytest.approx(0.0)


def test_component_distances_against_pot_bures():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(4, 3)), rng.normal(size=(5, 3))
    va, vb = rng.random((4, 3)), rng.random((5, 3))
    expected = ot.gmm.dist_bures_squared(
        a, b, np.array([np.diag(v) for v in va]), np.array([np.diag(v) for v in vb])
    )
    np.testing.assert_allclose(component_distances(a, va, b, vb), expected, atol=1e-10)


def test_one_class_one_component_is_the_distance_of_gaussians():
    first, second = make([0], [30], [0.1], [0.04]), make([7], [50], [0.4], [0.36])
    # (0.1 - 0.4)² + (0.2 - 0.6)² = 0.09 + 0.16
    assert summary_distance(first, second) == pytest.approx(0.25, abs=1e-7)


def test_two_mixtures_by_hand():
    # Points (variance 0) 0 and 1 with weights 3/4, 1/4 against 0 and 1 with weights 1/4, 3/4 of one class:
    # the half that 0 has too much goes to 1, at squared distance 1: MW2² = 1/2.
    first, second = make([0, 0], [60, 20], [0, 1], [0, 0]), make([0, 0], [20, 60], [0, 1], [0, 0])
    assert summary_distance(first, second) == pytest.approx(0.5, abs=1e-7)
    # Against points 2 and 3, weights 1/2, 1/2, on a line: sorted transport. 1/2 from 0 to 2 (4), 1/4 from 0
    # to 3 (9), 1/4 from 1 to 3 (4): 2 + 9/4 + 1 = 5.25.
    third = make([0, 0], [30, 30], [3, 2], [0, 0])
    assert summary_distance(first, third) == pytest.approx(5.25, abs=1e-6)
    # And two classes for two components: the same costs one level higher.
    apart = make([0, 1], [60, 20], [0, 1], [0, 0])
    assert summary_distance(apart, third) == pytest.approx(
        # class 0 (point 0, 3/4): ½·4 + ½·9 = 6.5; class 1 (point 1, 1/4): ½·1 + ½·4 = 2.5
        0.75 * 6.5 + 0.25 * 2.5,
        abs=1e-6,
    )


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10**6), k=st.integers(1, 4), other=st.integers(1, 4))
def test_small_transport_is_exact(seed, k, other):
    rng = np.random.default_rng(seed)
    left = rng.integers(1, 5, (3, k)).astype(float)  # small integers: degenerate vertices and ties are common
    right = rng.integers(1, 5, (4, other)).astype(float)
    left, right = left / left.sum(1, keepdims=True), right / right.sum(1, keepdims=True)
    cost = rng.integers(0, 6, (3, 4, k, other)) * 0.5
    expected = [[ot.emd2(left[i], right[j], cost[i, j].copy()) for j in range(4)] for i in range(3)]
    np.testing.assert_allclose(small_transport(left, right, cost), expected, atol=1e-9)


def test_against_pot_level_by_level():
    rng = np.random.default_rng(4)
    first, second = random_summary(rng), random_summary(rng)

    def classes(summary):
        return [np.flatnonzero(summary.labels == label) for label in np.unique(summary.labels)]

    cost = np.array(
        [
            [
                ot.gmm.gmm_ot_loss(
                    first.means[p].astype(float),
                    second.means[q].astype(float),
                    np.array([np.diag(v) for v in first.variances[p].astype(float)]),
                    np.array([np.diag(v) for v in second.variances[q].astype(float)]),
                    first.counts[p] / first.counts[p].sum(),
                    second.counts[q] / second.counts[q].sum(),
                )
                for q in classes(second)
            ]
            for p in classes(first)
        ]
    )
    a = np.array([first.counts[p].sum() for p in classes(first)]) / first.counts.sum()
    b = np.array([second.counts[q].sum() for q in classes(second)]) / second.counts.sum()
    assert summary_distance(first, second) == pytest.approx(ot.emd2(a, b, cost), abs=1e-9)


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10**6), match=st.booleans())
def test_laws_of_the_distance(seed, match):
    rng = np.random.default_rng(seed)
    summaries = [random_summary(rng) for _ in range(4)]
    d = pairwise_distances(summaries, match)
    assert np.array_equal(d, d.T) and not np.diag(d).any() and (d >= 0).all()
    order = rng.permutation(4)
    again = pairwise_distances([summaries[i] for i in order], match)
    np.testing.assert_allclose(again, d[np.ix_(order, order)], atol=1e-9)
    # Two equal summaries are at distance 0, and different ones are not.
    assert summary_distance(summaries[0], summaries[0], match) == pytest.approx(0, abs=1e-9)
    assert d[0, 1] > 1e-6
    # With labels free the root is a metric: transport over a metric, three times. (Merged labels break it.)
    root = np.sqrt(d)
    assert match or (root[:, None, :] <= root[:, :, None] + root[None, :, :] + 1e-6).all()
    if match:
        assert (d >= pairwise_distances(summaries) - 1e-9).all()


def test_order_and_names_of_classes_do_not_matter_with_labels_free():
    first, second = make([0, 1], [20, 40], [0.1, 0.7], [0, 0]), make([5, 3], [40, 20], [0.7, 0.1], [0, 0])
    assert summary_distance(first, second) == pytest.approx(0, abs=1e-9)
    assert summary_distance(first, second, match_labels=True) == pytest.approx(MISMATCH_COST)


def test_matched_labels_by_hand():
    # Class 0: shares 1/2 and 1/4, points 0.0 and 0.5 (cost .25); class 1: 1/2 and 3/4, one point (cost 0).
    # 1/4 of the mass has to change its label: ¼·0.25 + ½·0 + ¼·4.
    first, second = make([0, 1], [30, 30], [0.0, 0.9], [0, 0]), make([0, 1], [20, 60], [0.5, 0.9], [0, 0])
    assert summary_distance(first, second, True) == pytest.approx(0.0625 + 1.0, abs=1e-6)
    # Labels free: 1/4 of mass from 0.0 goes to 0.9 instead.
    assert summary_distance(first, second) == pytest.approx(0.0625 + 0.81 / 4, abs=1e-6)


def test_the_merged_component_counts_as_the_classes_in_it():
    merged = make([-1], [30], [0.2], [0], classes=[1, 2])
    inside, outside = make([1], [30], [0.3], [0]), make([3], [30], [0.3], [0])
    assert summary_distance(merged, inside, True) == pytest.approx(0.01, abs=1e-6)
    assert summary_distance(merged, outside, True) == pytest.approx(MISMATCH_COST)
    assert summary_distance(outside, merged) == pytest.approx(0.01, abs=1e-6)


def test_denoise_and_similarity_by_hand():
    d = np.array([[0, 0.5, 2.0], [0.5, 0, 3.0], [2.0, 3.0, 0]])
    less = denoise(d, [0.4, 0.8, 0.0])
    # 0.5 - 0.6 < 0 gives 0; 2 - 0.2 = 1.8; 3 - 0.4 = 2.6. Positive: 1.8 and 2.6 (twice each), median 2.2.
    np.testing.assert_allclose(less, [[0, 0, 1.8], [0, 0, 2.6], [1.8, 2.6, 0]])
    s = similarity_from_distances(less)
    a, b = np.exp(-1.8 / 2.2), np.exp(-2.6 / 2.2)
    np.testing.assert_allclose(s, [[1, 1, a], [1, 1, b], [a, b, 1]])
    assert (similarity_from_distances(np.zeros((3, 3))) == 1).all()
    assert similarity_from_distances([[0.0]]).tolist() == [[1.0]]


def test_unknown_clients_are_average_to_everybody():
    few = summarise(np.ones((5, 1)), np.zeros(5, int), seed=0)
    known = [make([0], [30], [mean], [0]) for mean in (0.0, 0.3, 0.9)]
    d = pairwise_distances([known[0], few, *known[1:]])
    assert np.isnan(d[1, [0, 2, 3]]).all() and np.isnan(d[[0, 2, 3], 1]).all() and not np.diag(d).any()
    np.testing.assert_allclose(d[np.ix_([0, 2, 3], [0, 2, 3])], pairwise_distances(known))
    s = similarity_from_distances(denoise(d, np.zeros(4)))
    inner = similarity_from_distances(pairwise_distances(known))
    mean = inner[~np.eye(3, dtype=bool)].mean()
    np.testing.assert_allclose(s[1], [mean, 1, mean, mean])
    np.testing.assert_allclose(s[:, 1], s[1])
    for nobody in ([few, few], [known[0], few]):
        assert (similarity_from_distances(pairwise_distances(nobody)) == 1).all()
    assert np.isnan(summary_distance(few, known[0]))


def test_extreme_scales_give_numbers():
    d = np.zeros((4, 4))
    d[0, 1] = d[1, 0] = 1e-320
    d[0, 3] = d[3, 0] = 1e-320
    d[2, 3] = d[3, 2] = 1.0
    s = similarity_from_distances(d)
    assert s[2, 3] == 0 and np.isfinite(s).all()


def test_clients_of_one_distribution_come_out_alike():
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((3, 16)) / 8

    def client(shift):
        y = rng.integers(0, 3, 600)
        return summarise(centres[y] + shift + rng.standard_normal((600, 16)) / 16, y, seed=1)

    summaries = [client(0.0), client(0.0), client(0.15), client(0.15)]
    d = pairwise_distances(summaries)
    less = denoise(d, [summary.self_distance for summary in summaries])
    across = less[:2, 2:].mean()
    assert d[0, 1] > 0
    assert max(less[0, 1], less[2, 3]) < 0.1 * across
    s = similarity_from_distances(less)
    assert min(s[0, 1], s[2, 3]) > 0.9 and s[:2, 2:].max() < 0.5


@pytest.mark.parametrize(
    "call",
    [
        lambda: pairwise_distances([]),
        lambda: pairwise_distances([make([0], [30], [[0.1]], [[0]]), make([0], [30], [[0.1, 0.2]], [[0, 0]])]),
        lambda: component_distances([[0.0]], [[-1.0]], [[0.0]], [[1.0]]),
        lambda: component_distances([[0.0]], [[1.0]], [[0.0, 1.0]], [[1.0, 1.0]]),
        lambda: component_distances([[0.0]], [[1.0, 1.0]], [[0.0]], [[1.0]]),
        lambda: component_distances([[np.nan]], [[1.0]], [[0.0]], [[1.0]]),
        lambda: denoise(np.zeros((2, 3)), np.zeros(2)),
        lambda: denoise(np.zeros((2, 2)), np.zeros(3)),
        lambda: denoise(np.zeros((2, 2)), [-1.0, 0.0]),
        lambda: denoise(np.full((2, 2), -1.0), np.zeros(2)),
        lambda: similarity_from_distances(np.full((2, 2), np.inf)),
        lambda: similarity_from_distances(np.zeros((0, 0))),
    ],
)
def test_mistakes_are_errors(call):
    with pytest.raises(SimilarityError):
        call()
