"""Messages of few bits: what arrives is what the sender expects, damaged ones are refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from trifed.common.errors import MessageError
from trifed.federation.compression import Compression
from trifed.federation.messages import Header, encode

LAYOUT = (("a.lora_C.weight", (8, 8)), ("head.bias", (3,)))
HEADER = Header("upload", "0123456789ab", "fedcba9876543210", 3, 1, 40)
KNOWN = np.linspace(-1, 1, 67).astype(np.float32)
VALUES = KNOWN + np.random.default_rng(0).standard_normal(67).astype(np.float32)


@pytest.mark.parametrize("bits", [None, 1, 2, 4, 8])
def test_what_arrives_is_what_the_sender_expects(bits):
    wire = Compression(LAYOUT, bits)
    payload = wire.encode(HEADER, VALUES, KNOWN)
    header, arrived = wire.decode(payload, replace(HEADER, examples=0), KNOWN)
    assert header.examples == 40
    assert arrived.dtype == np.float32
    assert arrived.tobytes() == wire.arrives(VALUES, KNOWN).tobytes()
    assert sum(wire.manifest(payload).values()) == len(payload)
    if bits is None:
        assert arrived.tobytes() == VALUES.tobytes()


def test_more_bits_bring_nearer_and_cost_more():
    gaps, sizes = [], []
    for bits in (1, 2, 4, 8, None):
        wire = Compression(LAYOUT, bits)
        gaps.append(np.abs(wire.arrives(VALUES, KNOWN) - VALUES).mean())
        sizes.append(len(wire.encode(HEADER, VALUES, KNOWN)))
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
def test_what_is_no_change_of_this_layout_is_refused(arrays):
    with pytest.raises(MessageError, match="upload of client 1, round 3"):
        Compression(LAYOUT, 1).decode(encode(HEADER, arrays), HEADER, KNOWN)


def test_a_negative_number_of_examples_is_refused():
    payload = Compression(LAYOUT, 1).encode(replace(HEADER, examples=-1), VALUES, KNOWN)
    with pytest.raises(MessageError, match="-1 examples"):
        Compression(LAYOUT, 1).decode(payload, HEADER, KNOWN)
