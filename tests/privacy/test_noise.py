"""Clipping, and the two places that noise comes from."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import kstest

from trifed.privacy import clipped, secure_noise, seeded_noise

VECTORS = arrays(np.float32, st.integers(1, 20), elements=st.floats(width=32, allow_nan=True, allow_infinity=True))


@given(VECTORS, st.floats(1e-3, 1e3))
def test_no_change_is_longer_than_the_clip(change, norm):
    found = clipped(change, norm)
    assert np.linalg.norm(found) <= norm * (1 + 1e-12)
    length = np.linalg.norm(change.astype(np.float64))
    if length <= norm:
        np.testing.assert_array_equal(found, change)
    elif np.isfinite(length):
        np.testing.assert_allclose(found, change.astype(np.float64) * (norm / length))
    else:  # a training that ran off to NaN says no more than one that did nothing
        assert not found.any()


def test_secure_noise_is_normal_and_independent():
    found = secure_noise(200_000)
    assert kstest(found, "norm").pvalue > 1e-6
    # Standard errors: 1/√n of a mean and of a correlation, √(2/n) of a variance; six of each.
    assert abs(found.mean()) < 6 / 200_000**0.5
    assert abs(found.var() - 1) < 6 * (2 / 200_000) ** 0.5
    assert abs((found[1:] * found[:-1]).mean()) < 6 / 200_000**0.5


def test_nobodys_seed_enters_secure_noise():
    np.random.seed(0)
    first = secure_noise(10)
    np.random.seed(0)
    assert not np.intersect1d(first, secure_noise(10)).size


def test_seeded_noise_is_the_seeds():
    one, other = (seeded_noise(np.random.default_rng(3))(5) for _ in range(2))
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("n", [0, 1])
def test_as_much_noise_as_asked_for(n):
    assert secure_noise(n).shape == seeded_noise(np.random.default_rng(0))(n).shape == (n,)
