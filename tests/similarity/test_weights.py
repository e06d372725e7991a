import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trifed.similarity import (
    SimilarityError,
    combine,
    denoise,
    different_rows,
    linear_cka,
    mix,
    mixing_weights,
    pairwise_distances,
    similarity_from_distances,
    summarise,
)


def symmetric(n, seed):
    s = np.random.default_rng(seed).uniform(-1, 1, (n, n))
    return (s + s.T) / 2


@settings(deadline=None, max_examples=60)
@given(
    n=st.integers(1, 7),
    seed=st.integers(0, 10**6),
    self_weight=st.floats(0, 1),
    temperature=st.floats(1e-310, 1e6),
    data=st.data(),
)
def test_rows_sum_to_one(n, seed, self_weight, temperature, data):
    decay = data.draw(st.none() | st.lists(st.floats(0, 1), min_size=n, max_size=n))
    w = mixing_weights(symmetric(n, seed), self_weight=self_weight, temperature=temperature, decay=decay)
    np.testing.assert_allclose(w.sum(1), 1.0, atol=1e-12)
    assert (w >= 0).all()
    for i in range(n):
        counted = [j for j in range(n) if j != i and (decay is None or decay[j] > 0)]
        assert w[i, i] == (self_weight if counted else 1.0)
        assert not w[i, [j for j in range(n) if j != i and j not in counted]].any()


def test_weights_by_hand():
    # exp(ln 3 / 1) = 3 against exp(0) = 1: 3/4 and 1/4 of what the self-weight leaves.
    s = np.array([[9.0, np.log(3), 0], [0, 9, 0], [0, 0, 9]])
    w = mixing_weights(s, self_weight=0.2, temperature=1.0)
    np.testing.assert_allclose(w, [[0.2, 0.6, 0.2], [0.4, 0.2, 0.4], [0.4, 0.4, 0.2]])
    # Client 1's core is old and counts a third: 3·⅓ = 1 against 1.
    w = mixing_weights(s, self_weight=0.2, temperature=1.0, decay=[1, 1 / 3, 1])
    np.testing.assert_allclose(w, [[0.2, 0.4, 0.4], [0.4, 0.2, 0.4], [0.6, 0.2, 0.2]])
    assert mixing_weights([[0.3]], self_weight=0.0, temperature=1.0).tolist() == [[1.0]]


def test_temperature_runs_from_the_nearest_to_the_plain_mean():
    s = np.array([[1, 0.9, 0.1], [0.9, 1, 0.2], [0.1, 0.2, 1]])
    cold = mixing_weights(s, self_weight=0.5, temperature=1e-3)
    np.testing.assert_allclose(cold, [[0.5, 0.5, 0], [0.5, 0.5, 0], [0, 0.5, 0.5]], atol=1e-9)
    hot = mixing_weights(s, self_weight=1 / 3, temperature=1e9)
    np.testing.assert_allclose(hot, np.full((3, 3), 1 / 3), atol=1e-8)


def test_a_decayed_favourite_does_not_drown_the_others():
    # Against the favourite's, exp((0 - 1)/1e-4) underflows; with the favourite gone the other counts alone.
    s = np.array([[1.0, 1.0, 0.0], [1, 1, 0], [0, 0, 1]])
    w = mixing_weights(s, self_weight=0.1, temperature=1e-4, decay=[1, 0, 1])
    np.testing.assert_allclose(w[0], [0.1, 0.0, 0.9])


def test_nobody_else_counts():
    w = mixing_weights(np.ones((3, 3)), self_weight=0.25, temperature=1.0, decay=[1, 0, 0])
    np.testing.assert_allclose(w, [[1, 0, 0], [0.75, 0.25, 0], [0.75, 0, 0.25]])


def test_combine_and_mix_by_hand():
    data, model = np.array([[1, 0.8], [0.8, 1]]), np.array([[1, -0.4], [-0.4, 1]])
    np.testing.assert_allclose(combine(data, model), [[1, 0.2], [0.2, 1]])
    assert np.array_equal(combine(data, model, 1.0), data) and np.array_equal(combine(data, model, 0.0), model)
    values = np.array([[0, 4], [8, 0]], np.float32)
    mixed = mix([[0.75, 0.25], [0.5, 0.5]], values)
    assert mixed.dtype == np.float32 and mixed.tolist() == [[2, 3], [4, 2]]
    assert mix(np.eye(2), [[1, 2], [3, 4]]).dtype == np.float64


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10**6))
def test_a_mix_stays_between_the_values(seed):
    rng = np.random.default_rng(seed)
    values = rng.standard_normal((5, 3))
    mixed = mix(mixing_weights(symmetric(5, seed), self_weight=0.3, temperature=0.2), values)
    assert (mixed <= values.max(0) + 1e-12).all() and (mixed >= values.min(0) - 1e-12).all()
    equal = np.tile(values[:1], (5, 1))
    np.testing.assert_allclose(
        mix(mixing_weights(symmetric(5, seed), self_weight=0.3, temperature=0.2), equal), equal
    )


def pipeline(summaries, cores, decay):
    d = denoise(pairwise_distances(summaries), [summary.self_distance for summary in summaries])
    s = combine(similarity_from_distances(d), linear_cka(cores))
    w = mixing_weights(s, self_weight=0.3, temperature=0.3, decay=decay)
    return w, mix(w, cores.reshape(len(cores), -1))


@settings(deadline=None, max_examples=5)
@given(seed=st.integers(0, 10**6))
def test_the_entire_pipeline_does_not_know_clients_by_their_place(seed):
    rng = np.random.default_rng(seed)
    summaries = []
    for n in (5, 60, 90, 45, 70):  # the first has too few examples for moments
        y = rng.integers(0, 3, n)
        summaries.append(summarise(rng.standard_normal((n, 4)) / 8 + y[:, None] / 8, y, seed=0))
    cores, decay = rng.standard_normal((5, 2, 4, 4)), rng.random(5)
    w, mixed = pipeline(summaries, cores, decay)
    order = rng.permutation(5)
    w2, mixed2 = pipeline([summaries[i] for i in order], cores[order], decay[order])
    np.testing.assert_allclose(w2, w[np.ix_(order, order)], atol=1e-8)
    np.testing.assert_allclose(mixed2, mixed[order], atol=1e-7)


S = np.ones((2, 2))


@pytest.mark.parametrize(
    "call",
    [
        lambda: mixing_weights(np.ones((2, 3)), self_weight=0.5, temperature=1.0),
        lambda: mixing_weights(np.full((2, 2), np.nan), self_weight=0.5, temperature=1.0),
        lambda: mixing_weights(S, self_weight=1.5, temperature=1.0),
        lambda: mixing_weights(S, self_weight=np.nan, temperature=1.0),
        lambda: mixing_weights(S, self_weight=0.5, temperature=0.0),
        lambda: mixing_weights(S, self_weight=0.5, temperature=np.inf),
        lambda: mixing_weights(S, self_weight=0.5, temperature=1.0, decay=[1.0]),
        lambda: mixing_weights(S, self_weight=0.5, temperature=1.0, decay=[1.0, 1.1]),
        lambda: mixing_weights(S, self_weight=0.5, temperature=1.0, decay=[-0.1, 1.0]),
        lambda: combine(S, np.ones((3, 3))),
        lambda: combine(S, S, 1.1),
        lambda: mix(S, np.ones((3, 1))),
        lambda: mix(S, np.full((2, 1), np.inf)),
    ],
)
def test_mistakes_are_errors(call):
    with pytest.raises(SimilarityError):
        call()


@pytest.mark.parametrize("shape", [(1, 1), (7, 3), (40, 9), (5, 20)])
def test_rows_that_differ_make_the_whole_again_and_differ(shape):
    shares = np.random.default_rng(shape).random(shape) < 0.3
    rows, which = different_rows(shares)
    np.testing.assert_array_equal(rows[which], shares)
    assert len(np.unique(rows, axis=0)) == len(rows)
    order = np.random.default_rng(0).permutation(len(shares))
    turned, where = different_rows(shares[order])
    np.testing.assert_array_equal(turned[where], rows[which[order]])
