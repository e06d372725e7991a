"""Hostile messages: broken on purpose, one kind of fault each, and random mutations of valid ones."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
from safetensors.numpy import load, save

Json = dict[str, Any]
ODD: list[Any] = [
    -1, 2**31, 2**63, 10**400, 1.5, 1e19, float("nan"), float("inf"), True, "", "x" * 10**6, "\x1b[31m\n", "3",
    "[" * 10**5, None, [1], {"a": 1}, b"1",
]  # fmt: skip
"""Values that are wrong as a number, and most also as a text."""
NUMBERS = ["-1", "1.5", "007", "+1", " 1", "1_0", "٣", "1e3", "", "nan", str(2**31), "9" * 5000, 1, None, [1]]
"""Numbers that no header of this package has."""

TEXTS = {
    "deep lists": b"[" * 16_000, "deep tables": b'{"a":' * 3_000, "spaces": b" " * 10**6, "no JSON": b"{" * 100,
    "a number": b"3", "null": b"null", "no UTF-8": b"\xff" * 100, "infinity": b'{"__metadata__": 1e400}',
}  # fmt: skip
"""Headers that are none."""


def parts_of(payload: bytes) -> tuple[Json, bytes]:
    """Return the header of a message, and the bytes of its arrays."""
    size = int.from_bytes(payload[:8], "little")
    return json.loads(payload[8 : 8 + size]), payload[8 + size :]


def joined(header: object, data: bytes) -> bytes:
    """Return the message of a header and the bytes of its arrays."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def hostile_payloads(payload: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield names and bytes of messages that must be refused, made from a valid one."""
    header, data = parts_of(payload)
    size = len(payload) - len(data)
    for name, cut in {
        "empty": 0,
        "7 bytes": 7,
        "8 bytes": 8,
        "half a header": size // 2,
        "no values": size,
    }.items():
        yield name, payload[:cut]
    yield "one byte less", payload[:-1]
    yield "one byte more", payload + b"\0"
    yield "twice", payload + payload
    yield "a long tail", payload + bytes(10**7)
    for length in (2**20, 2**40, 2**63, 2**64 - 1):
        yield f"a header of {length}", length.to_bytes(8, "little") + payload[8:]
    for name, text in TEXTS.items():
        yield name, joined(text, data)
    yield "10^5 keys", joined({f"k{n}": header["__metadata__"] for n in range(10**5)}, data)
    yield "twice the metadata", joined(b'{"__metadata__":{},' + json.dumps(header).encode()[1:], data)
    for field in header["__metadata__"]:
        yield f"no {field}", joined(changed(header, field, delete=True), data)
    for field, value in {
        "kind": "other",
        "run": "other",
        "base": "0" * 16,
        "round": "7",
        "client": "9",
    }.items():
        yield f"another {field}", joined(changed(header, field, value), data)
    yield "one more field", joined(changed(header, "more", "1"), data)
    for value in NUMBERS:
        yield f"examples {str(value)[:9]!r}", joined(changed(header, "examples", value), data)
    arrays = load(payload)
    for name, array in arrays.items():
        rest = {n: a for n, a in arrays.items() if n != name}
        yield f"no {name}", saved(header, rest)
        yield f"{name} shorter", saved(header, {**arrays, name: array[:-1]})
        yield f"{name} as int8", saved(header, {**arrays, name: np.ones(array.shape, np.int8)})
        yield f"{name} with one more axis", saved(header, {**arrays, name: array[None]})
        if array.dtype.kind == "f" and array.size:
            for value in (np.nan, np.inf, -np.inf, *((3e38,) if array.dtype == np.float32 else ())):
                bad = array.copy()
                bad.flat[-1] = value
                yield f"{name} with {value}", saved(header, {**arrays, name: bad})
    yield "one more array", saved(header, {**arrays, "more": np.zeros(3, np.float32)})
    yield "no arrays", saved(header, {})


def hostile_summaries(payload: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield names and bytes of summaries that are readable and impossible."""
    header, arrays = parts_of(payload)[0], load(payload)
    for name, array in arrays.items():
        yield f"{name} as int16", saved(header, {**arrays, name: array.astype(np.int16)})
        if array.dtype == np.int64:
            yield f"{name} over the limit", saved(header, {**arrays, name: array + 2**31})
            yield f"{name} under 0", saved(header, {**arrays, name: np.full_like(array, -2)})
    for name in ("variances", "self_distance"):
        yield f"{name} under 0", saved(header, {**arrays, name: -1 - arrays[name]})
    for number in (5_000, 200_000):
        many = {"labels": np.zeros(number, np.int64), "counts": np.ones(number, np.int64)}
        moments = np.zeros((number, 2), np.float32)
        yield f"{number} components", saved(header, {**arrays, **many, "means": moments, "variances": moments})


def hostile_facts(facts: Json, keys: list[str], odd: list[Any]) -> Iterator[tuple[str, Json]]:
    """Yield names and facts of which one is missing or odd."""
    for key in keys:
        yield f"no {key}", {name: value for name, value in facts.items() if name != key}
        for value in odd:
            yield f"{key} = {repr(value)[:12]}", {**facts, key: value}


def changed(header: Json, field: str, value: object = None, delete: bool = False) -> Json:
    """Return a header with another field among its metadata."""
    metadata = {**header["__metadata__"], field: value}
    if delete:
        del metadata[field]
    return {**header, "__metadata__": metadata}


def saved(header: Json, arrays: dict[str, np.ndarray]) -> bytes:
    """Return a message with the metadata of a header."""
    return bytes(save({n: np.ascontiguousarray(a) for n, a in arrays.items()}, metadata=header["__metadata__"]))


# -- random mutations


def mutated_bytes(payload: bytes, other: bytes, rng: random.Random) -> bytes:
    """Return a message with one to four random changes; `other` is a valid message to splice with."""
    data = payload
    for _ in range(rng.randint(1, 4)):
        place, near = rng.randrange(len(data) or 1), rng.randrange(min(len(data), 600) or 1)  # mostly the header
        kind = rng.randrange(6)
        if kind == 0:
            data = data[:near] + bytes([rng.randrange(256)]) + data[near + 1 :]
        elif kind == 1:
            data = data[:place] + data[place + rng.randint(1, 40) :]
        elif kind == 2:
            data = data[:near] + rng.choice([*INSERTED, rng.randbytes(rng.randint(1, 40))]) + data[near:]
        elif kind == 3:
            data = rng.choice(LENGTHS).to_bytes(8, "little") + data[8:]
        elif kind == 4:
            data = data[:place] + other[rng.randrange(len(other)) :]
        else:
            data = with_odd_header(data, rng)
    return data


LENGTHS = (0, 1, 200, 2**15, 2**32, 2**63, 2**64 - 1)
INSERTED = (b"[" * 5000, b'{"a":' * 2000, b"9" * 5000, b"1e400", b'"\\u0000"', b"-1")


def with_odd_header(data: bytes, rng: random.Random) -> bytes:
    """Return a message with one value of its header replaced."""
    size = int.from_bytes(data[:8], "little")
    if size > len(data) - 8:
        return data
    return joined(odd_text(data[8 : 8 + size].decode("utf-8", "replace"), rng).encode(), data[8 + size :])


def odd_text(text: str, rng: random.Random) -> str:
    """Return a JSON text with one of its numbers or words replaced."""
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        return text[: rng.randrange(len(text) + 1)]
    try:
        return json.dumps(odd_value(values, rng))
    except (ValueError, TypeError, RecursionError):
        return text * 2


def odd_value(value: Any, rng: random.Random) -> Any:
    """Return nested values with one of them replaced, removed or repeated."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = rng.choice(sorted(value, key=str))
        if rng.random() < 0.1:
            return {name: inner for name, inner in value.items() if name != key}
        return {**value, key: odd_value(value[key], rng)}
    if isinstance(value, list) and value and rng.random() < 0.8:
        place = rng.randrange(len(value))
        return [*value[:place], odd_value(value[place], rng), *value[place + 1 :]]
    return rng.choice([odd for odd in ODD if not isinstance(odd, bytes)])
