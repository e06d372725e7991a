"""The noised summary: its sensitivity, that it is made of noised numbers alone, and that it is still of use."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from trifed.privacy import SENSITIVITY, noised_summary, seeded_noise, unit
from trifed.privacy.summary import from_noised, statistics
from trifed.similarity import Summary, shared_label_ratio

DIM, LABELS = 4, 3
NUMBERS = st.floats(width=64, allow_nan=True, allow_infinity=True)


def rows(n):
    return st.tuples(
        arrays(np.float64, (n, DIM), elements=NUMBERS), arrays(np.int64, n, elements=st.integers(0, 4))
    )


@given(st.integers(0, 6).flatmap(rows), rows(1))
def test_one_example_moves_the_statistics_by_no_more_than_the_root_of_three(data, one):
    # Each example adds [1, x, x²] to its label: 1 + ‖x‖² + Σ x⁴ ≤ 3 for ‖x‖ ≤ 1, whatever the others are.
    (x, y), (extra, label) = data, one
    before = statistics(x, y, LABELS)
    after = statistics(np.concatenate([x, extra]), np.concatenate([y, label]), LABELS)
    assert np.linalg.norm(after - before) <= SENSITIVITY * (1 + 1e-12)
    assert (np.linalg.norm(after - before, axis=1) > 0).sum() == int(label[0] < LABELS)


def test_the_bound_is_reached_on_an_axis():
    axis = np.eye(DIM)[:1] * 7
    assert np.linalg.norm(statistics(axis, np.array([1]), LABELS)) == pytest.approx(math.sqrt(3))


@given(arrays(np.float64, (5, DIM), elements=NUMBERS))
def test_features_have_norm_one_or_zero(x):
    length = np.linalg.norm(unit(x), axis=1)
    assert (np.isclose(length, 1) | (length == 0)).all()


def clients(rng, n, centre, z, spread=0.3):
    """A summary of n examples of each of two labels around their centres (2, dim)."""
    y = np.repeat([0, 1], n)
    x = centre[y] + spread * rng.standard_normal((2 * n, centre.shape[1]))
    return noised_summary(x, y, LABELS, z, seeded_noise(rng))


def test_every_public_label_is_told_whether_it_is_there_or_not():
    rng = np.random.default_rng(0)
    found = clients(rng, 200, np.eye(2, 16), 1.0)
    assert found.class_labels.tolist() == [0, 1, 2]
    assert found.labels.tolist() == [0, 1]  # too little noise to take the third for one of twenty examples
    empty = noised_summary(np.zeros((0, 16)), np.zeros(0, np.int64), LABELS, 1.0, seeded_noise(rng))
    assert empty.class_labels.tolist() == [0, 1, 2] and not len(empty.labels)


def test_counts_are_noised():
    seen = {tuple(clients(np.random.default_rng(seed), 50, np.eye(2, 16), 2.0).class_counts) for seed in range(10)}
    assert len(seen) == 10


def test_nothing_of_the_data_but_noised_numbers_enters():
    # The same noised numbers, whatever they came from, give the same summary to the last bit.
    rng = np.random.default_rng(1)
    told = statistics(rng.standard_normal((300, 16)), rng.integers(0, LABELS, 300), LABELS) + rng.standard_normal(
        (3, 33)
    )
    one, other = from_noised(told, 1.0).to_arrays(), from_noised(told.copy(), 1.0).to_arrays()
    assert all(np.array_equal(one[name], other[name]) for name in one)
    # And the way there uses the examples once: noise that cancels them leaves what an empty client tells.
    x, y = rng.standard_normal((300, 16)), rng.integers(0, LABELS, 300)
    cancels = noised_summary(x, y, LABELS, 1.0, lambda n: -statistics(x, y, LABELS).ravel() / SENSITIVITY)
    silent = noised_summary(x[:0], y[:0], LABELS, 1.0, np.zeros)
    for name, array in cancels.to_arrays().items():
        np.testing.assert_array_equal(array, silent.to_arrays()[name])


@given(arrays(np.float64, (LABELS, 9), elements=st.floats(-1e4, 1e4)), st.floats(0.01, 50))
def test_whatever_the_noise_is_the_server_can_compute_with_it(told, sigma):
    Summary.from_arrays(from_noised(told, sigma).to_arrays())


def test_without_noise_it_is_the_moments():
    rng = np.random.default_rng(2)
    x, y = rng.standard_normal((500, 8)) + 1, rng.integers(0, 2, 500)
    found = noised_summary(x, y, 2, 0.0, np.zeros)
    for label in (0, 1):
        own = unit(x)[y == label]
        np.testing.assert_allclose(found.means[label], own.mean(0), atol=1e-6)
        np.testing.assert_allclose(found.variances[label], own.var(0), atol=1e-6)
    assert found.class_counts.tolist() == np.bincount(y).tolist()


def test_clients_of_one_distribution_are_as_far_apart_as_their_summaries_say():
    # The ratio divides the distance of the means by Σ (s_i/n_i + s_j/n_j), which has to hold the noise as well:
    # then it is 1 in the mean, ± a few per cent with 64 dimensions, 2 labels and 190 pairs.
    rng = np.random.default_rng(3)
    centre = rng.standard_normal((2, 64))
    told = [clients(rng, 60, centre, 1.3) for _ in range(20)]
    ratio = shared_label_ratio(told)[np.triu_indices(20, 1)]
    assert ratio.mean() == pytest.approx(1.0, abs=0.12)
    other = [clients(rng, 60, centre[::-1], 1.3) for _ in range(5)]
    assert np.nanmin(shared_label_ratio([told[0], *other])[0, 1:]) > 2
