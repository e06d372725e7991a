"""Few bits a number: exact small cases, how near they come, and that nothing is lost for good."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trifed.federation.quantisation import BLOCK, block_starts, dequantise, packed_sizes, quantise

LAYOUT = (("a.lora_C.weight", (2, 2)), ("head.weight", (7, 100)), ("head.bias", (7,)))
SIZE = 4 + 700 + 7
BITS = (1, 2, 4, 8)


def there_and_back(change: np.ndarray, bits: int, layout=LAYOUT) -> np.ndarray:
    return dequantise(*quantise(change.astype(np.float32), layout, bits), layout, bits)


def test_one_bit_is_the_sign_and_the_mean_magnitude():
    """|1|, |−2|, |3|, |−6| have the mean 3."""
    layout = (("c", (4,)),)
    assert there_and_back(np.array([1, -2, 3, -6]), 1, layout).tolist() == [3, -3, 3, -3]


def test_two_bits_are_four_levels_evenly_around_zero():
    """The largest, 3, is one and a half steps out: levels −3, −1, 1, 3."""
    layout = (("c", (5,)),)
    assert there_and_back(np.array([3, 1.2, -0.8, -3, 2.1]), 2, layout).tolist() == [3, 1, -1, -3, 3]


def test_blocks_stop_at_the_end_of_a_tensor():
    assert block_starts(LAYOUT).tolist() == [0, 4, 4 + BLOCK, 4 + 2 * BLOCK, 704]


def test_a_large_tensor_does_not_drown_a_small_one():
    change = np.concatenate([np.full(4, 1e-4), np.full(707, 10.0)])
    assert there_and_back(change, 1)[:4] == pytest.approx(1e-4, rel=1e-3)


@pytest.mark.parametrize("bits", BITS)
def test_sizes_are_what_travels(bits):
    codes, steps = quantise(np.ones(SIZE, np.float32), LAYOUT, bits)
    assert codes.nbytes == -(-SIZE * bits // 8)
    assert sum(packed_sizes(LAYOUT, bits).values()) == codes.nbytes + steps.nbytes


@pytest.mark.parametrize(("bits", "kept"), [(1, 0.637), (2, 0.881), (4, 0.987), (8, 0.9999)])
def test_share_of_a_gaussian_change_that_arrives(bits, kept):
    """One bit keeps 2/π of the squares (E|x|)²/E x²; two evenly spaced bits .881 at best (Max 1960)."""
    layout = (("c", (100_000,)),)
    change = np.random.default_rng(0).standard_normal(100_000).astype(np.float32)
    lost = ((there_and_back(change, bits, layout) - change) ** 2).sum() / (change**2).sum()
    assert 1 - lost == pytest.approx(kept, abs=0.008)


@pytest.mark.parametrize("bits", BITS)
def test_no_change_and_no_tensors(bits):
    assert (there_and_back(np.zeros(SIZE), bits) == 0).all()
    assert there_and_back(np.zeros(0), bits, ()).shape == (0,)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(BITS), st.integers(0, 2**32 - 1), st.floats(-12, 30))
def test_signs_are_never_turned_and_nothing_grows_beyond_the_largest(bits, seed, magnitude):
    """Whatever the scale; a step size below the smallest storable one, 6e-8, may be rounded up to it."""
    values = (10.0**magnitude * np.random.default_rng(seed).standard_cauchy(SIZE)).astype(np.float32)
    found = there_and_back(values, bits)
    assert np.isfinite(found).all()
    assert (found * np.sign(values) >= 0).all()
    assert np.abs(found).max() <= np.abs(values).max() * 1.001 + 2**bits * 6e-8


@pytest.mark.parametrize("bits", BITS)
def test_what_is_kept_back_is_sent_in_the_end(bits):
    """With error feedback, all that was sent and what is still owed add up to all that was wanted."""
    rng = np.random.default_rng(1)
    owed, wanted, sent = np.zeros(SIZE), np.zeros(SIZE), np.zeros(SIZE)
    for _ in range(50):
        change = rng.standard_normal(SIZE) + 0.1
        arrived = there_and_back(change + owed, bits)
        owed, wanted, sent = change + owed - arrived, wanted + change, sent + arrived
    assert sent + owed == pytest.approx(wanted, abs=1e-4)
    assert np.abs(owed).max() < 0.3 * np.abs(wanted).max()
