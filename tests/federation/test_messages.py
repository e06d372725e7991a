"""What crosses the wire arrives bit for bit, or is refused."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trifed.common.errors import MessageError
from trifed.federation.messages import (
    ENVELOPE,
    MOST_HEADER,
    Header,
    decode_summary,
    decode_values,
    encode,
    encode_summary,
    encode_values,
    layout_sizes,
    manifest,
)
from trifed.similarity import summarise

LAYOUT = (("a.lora_C.weight", (2, 2)), ("b.lora_C.weight", (3,)))
HEADER = Header("upload", "0123456789ab", "fedcba9876543210", 3, 1, 40)
VALUES = np.array([0.1, -0.0, 1e-45, 9.9e17, np.pi, -1.5, np.float32(1) / 3], np.float32)
SUMMARY_HEADER = Header("summary", "0123456789ab", "fedcba9876543210", 0, 1)


def payload(header: Header = HEADER, values: np.ndarray = VALUES) -> bytes:
    return encode_values(header, values)


def with_metadata(**changes: object) -> bytes:
    """A payload whose metadata was changed after it was made; None removes a field."""
    whole = payload()
    size = int.from_bytes(whole[:8], "little")
    head = json.loads(whole[8 : 8 + size])
    for name, value in changes.items():
        head["__metadata__"][name] = value
        if value is None:
            del head["__metadata__"][name]
    text = json.dumps(head).encode()
    return len(text).to_bytes(8, "little") + text + whole[8 + size :]


def test_values_arrive_bit_for_bit():
    header, values = decode_values(payload(), replace(HEADER, examples=0), LAYOUT)
    assert header == HEADER and header.examples == 40
    assert values.dtype == np.float32 and values.tobytes() == VALUES.tobytes()


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(-(2.0**59), 2.0**59, width=32), min_size=7, max_size=7))
def test_any_finite_values_arrive_bit_for_bit(numbers):
    sent = np.array(numbers, np.float32)
    assert decode_values(payload(values=sent), HEADER, LAYOUT)[1].tobytes() == sent.tobytes()


def test_values_that_are_not_contiguous_arrive_too():
    sent = np.arange(14, dtype=np.float32)[::2]
    assert np.array_equal(decode_values(payload(values=sent), HEADER, LAYOUT)[1], sent)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 6])
def test_nan_and_infinity_are_refused(bad, place):
    values = VALUES.copy()
    values[place] = bad
    with pytest.raises(MessageError, match=r"^upload of round 3: .*NaN"):
        decode_values(payload(values=values), HEADER, LAYOUT)


@pytest.mark.parametrize("size", [0, 6, 8])
def test_a_wrong_number_of_values_is_refused(size):
    with pytest.raises(MessageError, match=r"of 7 values|28 of values"):
        decode_values(payload(values=np.zeros(size, np.float32)), HEADER, LAYOUT)


@pytest.mark.parametrize(
    "arrays",
    [
        {"values": VALUES.astype(np.float64)},
        {"values": np.arange(7)},
        {"values": VALUES[None]},
        {"values": VALUES, "more": np.zeros(1, np.float32)},
        {"other": VALUES},
        {},
    ],
    ids=["float64", "integers", "two axes", "an extra array", "another name", "no array"],
)
def test_anything_but_one_float32_array_is_refused(arrays):
    with pytest.raises(MessageError, match=r"^upload of round 3: .*values"):
        decode_values(encode(HEADER, arrays), HEADER, LAYOUT)


@pytest.mark.parametrize(
    "change",
    [{"kind": "download"}, {"run": "another"}, {"base": "0" * 16}, {"round": 2}, {"client": 0}],
    ids=lambda change: next(iter(change)),
)
def test_what_belongs_elsewhere_is_refused_and_says_why(change):
    name, value = next(iter(change.items()))
    with pytest.raises(MessageError, match=f"its {name} is .*{value}.*expected"):
        decode_values(payload(replace(HEADER, **change)), HEADER, LAYOUT)


@pytest.mark.parametrize("size", [*range(0, 24), 100, -5, -1])
def test_a_truncated_payload_is_refused(size):
    with pytest.raises(MessageError, match="not a readable message"):
        decode_values(payload()[:size], HEADER, LAYOUT)


@settings(deadline=None, max_examples=60)
@given(st.binary(max_size=200))
def test_garbage_is_refused(garbage):
    with pytest.raises(MessageError):
        decode_values(garbage, HEADER, LAYOUT)


@pytest.mark.parametrize("number", [b"1e400", b"-1e400", b"1e999999", b"NaN", b"Infinity", b"1" * 5000])
@pytest.mark.parametrize("field", [b"round", b"client", b"examples"])
def test_a_number_that_is_no_number_is_refused(field, number):
    message = payload()
    size = int.from_bytes(message[:8], "little")
    header = re.sub(b'"%s":"[0-9]+"' % field, b'"%s":%s' % (field, number), message[8 : 8 + size])
    assert number in header
    with pytest.raises(MessageError):
        decode_values(len(header).to_bytes(8, "little") + header + message[8 + size :], HEADER, LAYOUT)


@pytest.mark.parametrize("tail", [b"\0", b"more bytes"])
def test_bytes_behind_the_message_are_refused(tail):
    with pytest.raises(MessageError):
        decode_values(payload() + tail, HEADER, LAYOUT)


def test_a_flipped_bit_is_refused_or_still_gives_finite_values_of_the_right_form():
    whole = payload()
    for place in range(len(whole)):
        for bit in (0, 6):
            damaged = bytearray(whole)
            damaged[place] ^= 1 << bit
            try:
                header, values = decode_values(bytes(damaged), HEADER, LAYOUT)
            except MessageError:
                continue
            assert values.shape == (7,) and values.dtype == np.float32 and np.isfinite(values).all()
            assert replace(header, examples=40) == HEADER and header.examples >= 0


@pytest.mark.parametrize(
    "changes",
    [
        {"round": None},
        {"kind": None},
        {"client": "one"},
        {"examples": "4.5"},
        {"examples": "9" * 5000},
        {"examples": "-1"},
        {"examples": str(2**31)},
        {"examples": "040"},
        {"examples": "4_0"},
        {"examples": " 40"},
        {"examples": "+40"},
        {"examples": "٤٠"},
        {"examples": 40},
        {"run": ["0123456789ab"]},
        {"more": "1"},
    ],
)
def test_a_header_that_is_not_whole_is_refused(changes):
    with pytest.raises(MessageError, match="not a readable message"):
        decode_values(with_metadata(**changes), HEADER, LAYOUT)
    assert decode_values(with_metadata(), HEADER, LAYOUT)[0] == HEADER  # the helper alone breaks nothing


def with_header(text: bytes, values: bytes = VALUES.tobytes()) -> bytes:
    return len(text).to_bytes(8, "little") + text + values


@pytest.mark.parametrize(
    "whole",
    [
        with_header(b" " * (MOST_HEADER + 1)),
        with_header(b"[" * MOST_HEADER),
        with_header(b'{"a":' * (MOST_HEADER // 5)),
        with_header(b'{"__metadata__":{},"__metadata__":{}}'),
        with_header(b"3"),
        with_header(b"\xff\xfe"),
        with_header(payload()[8 : 8 + int.from_bytes(payload()[:8], "little")], VALUES.tobytes() + b"\0"),
        (2**63).to_bytes(8, "little") + b"{}",
    ],
    ids=["long", "deep", "deep tables", "twice", "a number", "no text", "too many values", "2^63 bytes"],
)
def test_limits_hold_before_anything_is_parsed(whole, monkeypatch):
    monkeypatch.setattr("trifed.federation.messages.load", None)
    with pytest.raises(MessageError, match="not a readable message"):
        decode_values(whole, HEADER, LAYOUT)


@pytest.mark.parametrize("value", [1.01e18, -3e38])
def test_values_of_an_absurd_size_are_refused(value):
    with pytest.raises(MessageError, match="over 1e"):
        decode_values(payload(values=np.full(7, value, np.float32)), HEADER, LAYOUT)


def test_the_manifest_adds_up_to_the_payload():
    whole = payload()
    parts = manifest(whole, layout_sizes(LAYOUT))
    assert parts == {"a.lora_C.weight": 16, "b.lora_C.weight": 12, ENVELOPE: len(whole) - 28}
    assert sum(parts.values()) == len(whole) and parts[ENVELOPE] > 0


def a_summary():
    rng = np.random.default_rng(0)
    return summarise(rng.standard_normal((70, 8)) / 5, rng.integers(0, 2, 70), seed=0)


def test_a_summary_arrives_bit_for_bit():
    sent = a_summary()
    whole = encode_summary(SUMMARY_HEADER, sent)
    arrived = decode_summary(whole, SUMMARY_HEADER)
    for name, array in sent.to_arrays().items():
        assert arrived.to_arrays()[name].tobytes() == array.tobytes()
    sizes = {name: array.nbytes for name, array in sent.to_arrays().items()}
    assert sum(manifest(whole, sizes).values()) == len(whole)
    assert sum(sizes.values()) == sent.nbytes


@pytest.mark.parametrize(
    "change",
    [
        lambda arrays: arrays.update(means=arrays["means"] * np.float32("nan")),
        lambda arrays: arrays.update(variances=-arrays["variances"]),
        lambda arrays: arrays.update(counts=arrays["counts"] + 1),
        lambda arrays: arrays.update(more=np.zeros(1)),
        lambda arrays: arrays.pop("labels"),
    ],
)
def test_arrays_that_make_no_summary_are_refused(change):
    arrays = a_summary().to_arrays()
    change(arrays)
    with pytest.raises(MessageError):
        decode_summary(encode(SUMMARY_HEADER, arrays), SUMMARY_HEADER)


def test_an_exchange_is_no_summary_and_the_other_way_round():
    with pytest.raises(MessageError, match="its kind is"):
        decode_summary(payload(), replace(SUMMARY_HEADER, round=3))
    with pytest.raises(MessageError):
        decode_values(encode_summary(replace(HEADER), a_summary()), HEADER, LAYOUT)
