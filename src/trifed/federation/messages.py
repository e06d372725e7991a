"""Messages between clients and server as bytes, and the checks of a received message.

A message is one safetensors file: for an exchange of parameters a single packed float32 array `values` in the
order of the run's layout, for the one-time summary the summary's arrays. Its header says which run, base model,
round and client it belongs to. Names and shapes are not sent: both sides derive them from the configuration.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from trifed.common.errors import MessageError
from trifed.methods.packing import Layout, Vector
from trifed.similarity import Summary

ENVELOPE = "(envelope)"


BAD_REPLY = "bad_reply"
"""Code of a reply that is not what was asked for."""


@dataclass(frozen=True)
class Rejected:
    """A reply that does not count. `code` is for programs, `reason` for people."""

    code: str
    reason: str


@dataclass(frozen=True)
class Header:
    """Header of a message; `base` holds the first 16 hex digits of the base model's fingerprint."""

    kind: str
    run: str
    base: str
    round: int
    client: int
    examples: int = 0

    def __str__(self) -> str:
        return f"{self.kind} of client {self.client}, round {self.round}"


def encode(header: Header, arrays: Mapping[str, NDArray[np.generic]]) -> bytes:
    """Encode header and arrays as one safetensors payload."""
    return bytes(
        save(
            {name: np.ascontiguousarray(array) for name, array in arrays.items()},
            metadata={name: str(value) for name, value in asdict(header).items()},
        )
    )


def decode(payload: bytes, expected: Header) -> tuple[Header, dict[str, NDArray[np.generic]]]:
    """Decode a payload and check that its header is the expected one and all values are finite.

    `examples` is the one field of the header that is not compared.

    Raises:
        MessageError: Not a safetensors payload, another run, base, round, client or kind, NaN or infinity.
    """
    try:
        arrays = load(payload)
        # safetensors reads metadata from files only; the layout of its first bytes is fixed by its format.
        fields = json.loads(payload[8 : 8 + int.from_bytes(payload[:8], "little")])["__metadata__"]
        numbers = {name: int(fields[name]) for name in ("round", "client", "examples")}
        found = Header(fields["kind"], fields["run"], fields["base"], **numbers)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise MessageError(
            f"{expected}: the payload is not a readable message ({error}); it is refused"
        ) from error
    for name in ("kind", "run", "base", "round", "client"):
        got, want = getattr(found, name), getattr(expected, name)
        if got != want:
            raise MessageError(f"{expected}: its {name} is {got!r}, expected {want!r}; it is refused")
    for name, array in arrays.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise MessageError(f"{expected}: '{name}' holds NaN or infinite values; it is refused")
    return found, arrays


def encode_values(header: Header, values: Vector) -> bytes:
    """Encode packed parameters, (n_values,) float32."""
    return encode(header, {"values": values.astype(np.float32, copy=False)})


def decode_values(payload: bytes, expected: Header, layout: Layout) -> tuple[Header, Vector]:
    """Decode packed parameters, and check header, dtype and length.

    Raises:
        MessageError: See `decode`; or the wrong number or type of values.
    """
    header, arrays = decode(payload, expected)
    size = sum(int(np.prod(shape)) for _, shape in layout)
    values = arrays.get("values")
    if set(arrays) != {"values"} or values is None or values.dtype != np.float32 or values.shape != (size,):
        found = {name: (str(array.dtype), array.shape) for name, array in arrays.items()}
        raise MessageError(f"{expected}: got {found}, expected one float32 array 'values' of {size} values")
    if header.examples < 0:
        raise MessageError(f"{expected}: {header.examples} examples; expected a number of at least 0")
    return header, values.astype(np.float32, copy=False)


def encode_summary(header: Header, summary: Summary) -> bytes:
    """Encode a client's data summary."""
    return encode(header, summary.to_arrays())


def decode_summary(payload: bytes, expected: Header, dim: int | None = None) -> Summary:
    """Decode and check a client's data summary; `dim` is the dimension of its projection, if known.

    Raises:
        MessageError: See `decode`; or arrays that are no summary.
    """
    _, arrays = decode(payload, expected)
    return Summary.from_arrays(arrays, dim)


def summary_manifest(payload: bytes) -> dict[str, int]:
    """Return the bytes of a summary by array name, the rest under '(envelope)'.

    Raises:
        MessageError: The payload cannot be read.
    """
    try:
        return manifest(payload, {name: array.nbytes for name, array in load(payload).items()})
    except SafetensorError as error:
        raise MessageError(f"summary: the payload is not a readable message ({error})") from error


def manifest(payload: bytes, sizes: Mapping[str, int]) -> dict[str, int]:
    """Return the bytes of a payload by tensor name, the rest under '(envelope)'; they add up to len(payload)."""
    return {**sizes, ENVELOPE: len(payload) - sum(sizes.values())}


def layout_sizes(layout: Layout) -> dict[str, int]:
    """Return the bytes of each tensor in a message of float32 values."""
    return {name: 4 * int(np.prod(shape)) for name, shape in layout}
