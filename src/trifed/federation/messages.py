"""Messages between clients and server as bytes, and the checks of a received message.

A message is one safetensors file: for an exchange of parameters a single packed float32 array `values` in the
order of the run's layout, for the one-time summary the summary's arrays. Its header says which run, base model,
round and client it belongs to. Names and shapes are not sent: both sides derive them from the configuration.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from trifed.common.errors import MessageError, one_line
from trifed.similarity import Summary
from trifed.similarity.summary import FIELDS, MOST_CLASSES, most_bytes

if TYPE_CHECKING:  # Flower's process for one message needs no methods, and their import takes long
    from trifed.methods.packing import Layout, Vector

ENVELOPE = "(envelope)"
BAD_REPLY = "bad_reply"
"""Code of a reply that is not what was asked for."""
MOST_HEADER = 16 * 1024
"""Bytes of a message's header; those of this package have under 1,000."""
MOST_NUMBER = 2**31 - 1
"""The largest whole number in a header."""
LARGEST = 1e18
"""The largest magnitude of a value: its square is a float32 too."""


@dataclass(frozen=True)
class Rejected:
    """A reply that does not count. `code` is for programs, `reason`, one line, for people."""

    code: str
    reason: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "reason", one_line(self.reason))


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
        return f"{self.kind} of round {self.round}"  # whose it is, the caller says by name


def encode(header: Header, arrays: Mapping[str, NDArray[np.generic]]) -> bytes:
    """Encode header and arrays as one safetensors payload."""
    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    return bytes(save(contiguous, metadata=_metadata(header)))


def decode(
    payload: bytes, expected: Header, names: Collection[str], most_bytes: int
) -> tuple[Header, dict[str, NDArray[np.generic]]]:
    """Decode a payload and check its header, the names of its arrays, and that all values are finite.

    Sizes are checked before anything is parsed. `examples` is the one field of the header that is not compared.

    Args:
        payload: The message.
        expected: The header that it must have.
        names: The names of its arrays.
        most_bytes: The most bytes that these arrays may take together.

    Raises:
        MessageError: Too large, not a safetensors payload, another run, base, round, client or kind, other arrays,
            NaN or infinity, or a value over `LARGEST`.
    """
    found, present = read_header(payload, expected, most_bytes)
    for name in ("kind", "run", "base", "round", "client"):
        got, want = getattr(found, name), getattr(expected, name)
        if got != want:
            raise MessageError(f"{expected}: its {name} is {got!r}, expected {want!r}; it is refused")
    if present != set(names):
        raise MessageError(f"{expected}: got the arrays {sorted(present)}, expected {sorted(names)}")
    try:
        arrays = load(payload)
    except (SafetensorError, ValueError, KeyError, TypeError, OverflowError) as error:
        raise _unreadable(expected, error) from error
    for name, array in arrays.items():
        if array.dtype.kind == "f" and not float(np.abs(array).max(initial=0)) <= LARGEST:
            raise MessageError(
                f"{expected}: '{name}' holds NaN, infinite values or values over {LARGEST:g}; it is refused"
            )
    return found, arrays


def read_header(payload: bytes, expected: Header, most_bytes: int) -> tuple[Header, set[str]]:
    """Return the header of a message and the names of its arrays, read from its first bytes alone.

    Raises:
        MessageError: Too large, or no header of such a message.
    """
    # safetensors reads metadata from files only; the layout of its first bytes is fixed by its format.
    size = int.from_bytes(payload[:8], "little")
    rest = len(payload) - 8 - size
    if size > MOST_HEADER or not 0 <= rest <= most_bytes:
        limits = f"at most {MOST_HEADER} bytes of header and {most_bytes} of values"
        raise _unreadable(expected, f"{len(payload)} bytes with a header of {size}, expected {limits}")
    try:
        entries = json.loads(payload[8 : 8 + size], object_pairs_hook=_distinct)
        texts = entries.pop("__metadata__")
        numbers = {name: int(texts[name]) for name in ("round", "client", "examples")}
        found = Header(**{**texts, **numbers})
        if texts != _metadata(found) or not all(0 <= number <= MOST_NUMBER for number in numbers.values()):
            raise ValueError(f"numbers are written as 0 to {MOST_NUMBER}")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise _unreadable(expected, error) from error
    return found, set(entries)


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the pairs of a JSON object as a dictionary; ValueError for a repeated name."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name occurs twice")
    return found


def _metadata(header: Header) -> dict[str, str]:
    return {name: str(value) for name, value in asdict(header).items()}


def _unreadable(expected: Header, problem: object) -> MessageError:
    return MessageError(f"{expected}: the payload is not a readable message ({problem}); it is refused")


def bytes_of_values(payload: bytes) -> int:
    """Return the bytes of a message's arrays, by its first bytes; meaningless if it is no message."""
    return len(payload) - 8 - int.from_bytes(payload[:8], "little")


def encode_values(header: Header, values: Vector) -> bytes:
    """Encode packed parameters, (n_values,) float32."""
    return encode(header, {"values": values.astype(np.float32, copy=False)})


def decode_values(payload: bytes, expected: Header, layout: Layout) -> tuple[Header, Vector]:
    """Decode packed parameters, and check header, dtype and length.

    Raises:
        MessageError: See `decode`; or the wrong number or type of values.
    """
    size = sum(math.prod(shape) for _, shape in layout)
    header, arrays = decode(payload, expected, ["values"], 4 * size)
    values = arrays["values"]
    if values.dtype != np.float32 or values.shape != (size,):
        raise MessageError(
            f"{expected}: 'values' is {values.dtype} {values.shape}, expected float32 of {size} values"
        )
    return header, values.astype(np.float32, copy=False)


def encode_summary(header: Header, summary: Summary) -> bytes:
    """Encode a client's data summary."""
    return encode(header, summary.to_arrays())


def decode_summary(
    payload: bytes, expected: Header, dim: int | None = None, n_labels: int = MOST_CLASSES
) -> Summary:
    """Decode and check a client's data summary.

    Args:
        payload: The message.
        expected: The header that it must have.
        dim: The dimension of its projection, if known.
        n_labels: The most classes.

    Raises:
        MessageError: See `decode`; or arrays that are no summary.
    """
    _, arrays = decode(payload, expected, FIELDS, most_bytes(dim, n_labels))
    return Summary.from_arrays(arrays, dim)


def summary_manifest(payload: bytes, summary: Summary) -> dict[str, int]:
    """Return the bytes of a summary's message by array name, the rest under '(envelope)'."""
    return manifest(payload, {name: array.nbytes for name, array in summary.to_arrays().items()})


def manifest(payload: bytes, sizes: Mapping[str, int]) -> dict[str, int]:
    """Return the bytes of a payload by tensor name, the rest under '(envelope)'; they add up to len(payload)."""
    return {**sizes, ENVELOPE: len(payload) - sum(sizes.values())}


def layout_sizes(layout: Layout) -> dict[str, int]:
    """Return the bytes of each tensor in a message of float32 values."""
    return {name: 4 * math.prod(shape) for name, shape in layout}
