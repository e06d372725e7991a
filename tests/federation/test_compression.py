"""Encodings of values: exact small cases of quantisation, what arrives, and refused messages."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trifed.common.errors import MessageError
from trifed.config.settings import WireSettings
from trifed.federation.compression import (
    BLOCK,
    block_starts,
    dequantise,
    make_compression,
    packed_sizes,
    quantise,
)
from trifed.federation.messages import Header, encode

BITS = (1, 2, 4, 8)

# -- messages

LAYOUT = (("a.lora_C.weight", (8, 8)), ("head.bias", (3,)))
HEADER = Header("upload", "0123456789ab", "fedcba9876543210", 3, 1, 40)
REFERENCE = np.linspace(-1, 1, 67).astype(np.float32)
VALUES = REFERENCE + np.random.default_rng(0).standard_normal(67).astype(np.float32)


@pytest.mark.parametrize(
    ("bits", "identity"), [(32, "full-precision"), *((n, f"quantise bits={n}") for n in BITS)]
)
def test_a_decoded_message_is_what_the_sender_expects(bits, identity):
    compression = make_compression(LAYOUT, WireSettings(bits=bits))
    payload = compression.encode(HEADER, VALUES, REFERENCE)
    header, decoded = compression.decode(payload, replace(HEADER, examples=0), REFERENCE)
    assert header.examples == 40 and decoded.dtype == np.float32 and compression.identity == identity
    assert decoded.tobytes() == compression.arrives(VALUES, REFERENCE).tobytes()
    assert sum(compression.manifest(payload).values()) == len(payload)
    assert (decoded.tobytes() == VALUES.tobytes()) == (bits == 32)


def test_more_bits_bring_nearer_and_cost_more():
    gaps, sizes = [], []
    for bits in (*BITS, 32):
        compression = make_compression(LAYOUT, WireSettings(bits=bits))
        gaps.append(np.abs(compression.arrives(VALUES, REFERENCE) - VALUES).mean())
        sizes.append(len(compression.encode(HEADER, VALUES, REFERENCE)))
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[-1] == 0
    assert sizes == sorted(sizes)


@pytest.mark.parametrize(
    "arrays",
    [
        {"values": VALUES},
        {"codes": np.zeros(9, np.uint8)},
        {"codes": np.zeros(8, np.uint8), "steps": np.zeros(2, np.float16)},
        {"codes": np.zeros(9, np.uint8), "steps": np.zeros(1, np.float16)},
        {"codes": np.zeros(9, np.int8), "steps": np.zeros(2, np.float16)},
        {"codes": np.zeros(9, np.uint8), "steps": np.full(2, np.inf, np.float16)},
    ],
)
def test_arrays_that_do_not_fit_the_layout_are_refused(arrays):
    with pytest.raises(MessageError, match="upload of round 3"):
        make_compression(LAYOUT, WireSettings(bits=1)).decode(encode(HEADER, arrays), HEADER, REFERENCE)


def test_a_negative_number_of_examples_is_refused():
    payload = make_compression(LAYOUT, WireSettings(bits=1)).encode(
        replace(HEADER, examples=-1), VALUES, REFERENCE
    )
    with pytest.raises(MessageError, match="not a readable message"):
        make_compression(LAYOUT, WireSettings(bits=1)).decode(payload, HEADER, REFERENCE)


# -- quantisation

TENSORS = (("a.lora_C.weight", (2, 2)), ("head.weight", (7, 100)), ("head.bias", (7,)))
SIZE = 4 + 700 + 7


def round_trip(change: np.ndarray, bits: int, layout=TENSORS) -> np.ndarray:
    return dequantise(*quantise(change.astype(np.float32), layout, bits), layout, bits)


def test_one_bit_is_the_sign_and_the_mean_magnitude():
    """|1|, |−2|, |3|, |−6| have the mean 3."""
    layout = (("c", (4,)),)
    assert round_trip(np.array([1, -2, 3, -6]), 1, layout).tolist() == [3, -3, 3, -3]


def test_two_bits_are_four_levels_evenly_around_zero():
    """The largest, 3, is one and a half steps out: levels −3, −1, 1, 3."""
    layout = (("c", (5,)),)
    assert round_trip(np.array([3, 1.2, -0.8, -3, 2.1]), 2, layout).tolist() == [3, 1, -1, -3, 3]


def test_blocks_stop_at_the_end_of_a_tensor():
    assert block_starts(TENSORS).tolist() == [0, 4, 4 + BLOCK, 4 + 2 * BLOCK, 704]
    assert block_starts((("empty", (0, 4)), ("c", (BLOCK,)), ("d", ()))).tolist() == [0, BLOCK]
    assert block_starts(()).tolist() == []


def test_a_large_tensor_does_not_drown_a_small_one():
    change = np.concatenate([np.full(4, 1e-4), np.full(707, 10.0)])
    assert round_trip(change, 1)[:4] == pytest.approx(1e-4, rel=1e-3)


@pytest.mark.parametrize("bits", BITS)
def test_sizes_are_those_of_codes_and_step_sizes(bits):
    codes, steps = quantise(np.ones(SIZE, np.float32), TENSORS, bits)
    assert codes.nbytes == -(-SIZE * bits // 8)
    assert sum(packed_sizes(TENSORS, bits).values()) == codes.nbytes + steps.nbytes


@pytest.mark.parametrize(("bits", "share"), [(1, 0.637), (2, 0.881), (4, 0.987), (8, 0.9999)])
def test_share_of_a_gaussian_change_that_arrives(bits, share):
    """One bit keeps 2/π of the squares (E|x|)²/E x²; two evenly spaced bits .881 at best (Max 1960)."""
    layout = (("c", (100_000,)),)
    change = np.random.default_rng(0).standard_normal(100_000).astype(np.float32)
    lost = ((round_trip(change, bits, layout) - change) ** 2).sum() / (change**2).sum()
    assert 1 - lost == pytest.approx(share, abs=0.008)


@pytest.mark.parametrize("bits", BITS)
def test_no_change_and_no_tensors(bits):
    assert (round_trip(np.zeros(SIZE), bits) == 0).all()
    assert round_trip(np.zeros(0), bits, ()).shape == (0,)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(BITS), st.integers(0, 2**32 - 1), st.floats(-12, 30))
def test_signs_are_never_turned_and_nothing_grows_beyond_the_largest(bits, seed, magnitude):
    """At any scale; a step size below the smallest storable one, 6e-8, may be rounded up to it."""
    values = (10.0**magnitude * np.random.default_rng(seed).standard_cauchy(SIZE)).astype(np.float32)
    decoded = round_trip(values, bits)
    assert np.isfinite(decoded).all()
    assert (decoded * np.sign(values) >= 0).all()
    assert np.abs(decoded).max() <= np.abs(values).max() * 1.001 + 2**bits * 6e-8
