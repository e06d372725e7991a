"""Compression of parameters for sending, both ways: full precision, or a quantised change of few bits a number.

A quantised message holds the change to a reference that sender and receiver both have: what the receiver got last,
before that the common start. Each block of numbers has one step size and evenly spaced levels around 0, after
Seide et al., "1-bit stochastic gradient descent", Interspeech 2014. The rounding error is fed back into the next
upload by `upload.ErrorFeedback`; the functions here have no memory.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from trifed.common.errors import MessageError
from trifed.config.settings import WireSettings
from trifed.federation.messages import (
    Header,
    decode,
    decode_values,
    encode,
    encode_values,
    layout_sizes,
    manifest,
)
from trifed.methods.packing import Layout, Vector

Bits = Literal[1, 2, 4, 8]
BLOCK = 256
"""Numbers that share a step size; a block never reaches from one tensor into the next."""

SPANS = (1.0, 0.8, 0.6, 0.45, 0.3, 0.2, 0.1)
"""Shares of a block's largest number that the levels may span: the one with the least squared error is used."""

LARGEST = float(np.finfo(np.float16).max)


@dataclass(frozen=True)
class Compression:
    """An encoding of the values in `layout`; this base sends them as float32. All vectors are (n_values,) float32.

    Attributes:
        layout: names and shapes of the tensors that are sent.
        lossless: True if the receiver gets the values themselves, and no reference is used.
    """

    layout: Layout
    lossless: ClassVar[bool] = True

    @property
    def identity(self) -> str:
        """The encoding's name with its parameters."""
        return "full-precision"

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes of each tensor in a message, by name."""
        return layout_sizes(self.layout)

    def arrives(self, values: Vector, reference: Vector) -> Vector:
        """Return what the receiver has after a message that encodes `values`."""
        return values

    def encode(self, header: Header, values: Vector, reference: Vector) -> bytes:
        """Return the message that brings a receiver with `reference` to `values`, as near as the bits allow."""
        return encode_values(header, values)

    def decode(self, payload: bytes, expected: Header, reference: Vector) -> tuple[Header, Vector]:
        """Return a message's header and what the receiver has then.

        Raises:
            MessageError: see `messages.decode`; or the wrong number or type of values.
        """
        return decode_values(payload, expected, self.layout)

    def manifest(self, payload: bytes) -> dict[str, int]:
        """Return the bytes of a message by tensor name, the rest under '(envelope)'."""
        return manifest(payload, self.sizes)


@dataclass(frozen=True)
class Quantise(Compression):
    """Sends the change to the reference in `bits` bits a number."""

    bits: Bits
    lossless: ClassVar[bool] = False

    @property
    def identity(self) -> str:
        """The encoding's name with its parameters."""
        return f"quantise bits={self.bits}"

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes of each tensor's codes and step sizes, by name."""
        return packed_sizes(self.layout, self.bits)

    def arrives(self, values: Vector, reference: Vector) -> Vector:
        """Return what the receiver has after a message that encodes `values`."""
        change = (values - reference).astype(np.float32)
        return reference + dequantise(*quantise(change, self.layout, self.bits), self.layout, self.bits)

    def encode(self, header: Header, values: Vector, reference: Vector) -> bytes:
        """Return the message with the codes and step sizes of the change."""
        codes, steps = quantise((values - reference).astype(np.float32), self.layout, self.bits)
        return encode(header, {"codes": codes, "steps": steps})

    def decode(self, payload: bytes, expected: Header, reference: Vector) -> tuple[Header, Vector]:
        """Return a message's header, and the reference plus the change."""
        n_bytes, n_blocks = -(-_size(self.layout) * self.bits // 8), len(block_starts(self.layout))
        wanted = {"codes": (np.dtype(np.uint8), (n_bytes,)), "steps": (np.dtype(np.float16), (n_blocks,))}
        header, arrays = decode(payload, expected, wanted, n_bytes + 2 * n_blocks)
        got = {name: (array.dtype, array.shape) for name, array in arrays.items()}
        if got != wanted:
            raise MessageError(f"{expected}: got {got}, expected {wanted}, as {self.bits} bits a number need")
        codes, steps = arrays["codes"].astype(np.uint8), arrays["steps"].astype(np.float16)
        return header, reference + dequantise(codes, steps, self.layout, self.bits)


def make_compression(layout: Layout, wire: WireSettings) -> Compression:
    """Return the encoding that `[wire]` asks for."""
    return Compression(layout) if wire.bits == 32 else Quantise(layout, wire.bits)


# -- quantisation


def block_starts(layout: Layout) -> NDArray[np.int64]:
    """Return where each block begins in the packed vector, (n_blocks,)."""
    ends = np.cumsum([math.prod(shape) for _, shape in layout], dtype=np.int64)
    tensors = zip((0, *ends), ends, strict=False)
    return np.concatenate([np.zeros(0, np.int64), *(np.arange(start, end, BLOCK) for start, end in tensors)])


def quantise(change: Vector, layout: Layout, bits: Bits) -> tuple[NDArray[np.uint8], NDArray[np.float16]]:
    """Return codes, ⌈n · bits / 8⌉ bytes, and step sizes, (n_blocks,), of a change, (n,) float32.

    Level q of 2^bits stands for (q − (2^bits − 1)/2) · step. One bit sends signs and the block's mean magnitude,
    which has the least squared error.
    """
    if not len(change):
        return np.zeros(0, np.uint8), np.zeros(0, np.float16)
    starts = block_starts(layout)
    lengths = np.diff([*starts, len(change)])
    if bits == 1:
        steps = _storable(2 * np.add.reduceat(np.abs(change, dtype=np.float64), starts) / lengths)
    else:
        steps = _best_steps(change, starts, lengths, bits)
    codes = (_levels(change, np.repeat(steps, lengths), bits)[:, None] >> np.arange(bits - 1, -1, -1)) & 1
    return np.packbits(codes.astype(np.uint8)), steps


def dequantise(codes: NDArray[np.uint8], steps: NDArray[np.float16], layout: Layout, bits: Bits) -> Vector:
    """Return the change that codes and step sizes stand for, (n,) float32."""
    size = _size(layout)
    step_of_each = np.repeat(steps, np.diff([*block_starts(layout), size]))
    levels = np.unpackbits(codes)[: size * bits].reshape(size, bits) @ (1 << np.arange(bits - 1, -1, -1))
    return _values(levels, step_of_each, bits)


def packed_sizes(layout: Layout, bits: Bits) -> dict[str, int]:
    """Return the bytes of each tensor's codes and step sizes; a byte that two tensors share is the first one's."""
    sizes, numbers = {}, 0
    for name, shape in layout:
        size = math.prod(shape)
        before, numbers = -(-numbers * bits // 8), numbers + size
        sizes[name] = -(-numbers * bits // 8) - before + 2 * -(-size // BLOCK)
    return sizes


def _size(layout: Layout) -> int:
    return sum(math.prod(shape) for _, shape in layout)


def _best_steps(
    change: Vector, starts: NDArray[np.int64], lengths: NDArray[np.int64], bits: Bits
) -> NDArray[np.float16]:
    """Return the step size of each block with the least squared error among those of `SPANS`, (n_blocks,)."""
    largest = np.maximum.reduceat(np.abs(change), starts)
    best, least = np.zeros(len(starts), np.float16), np.full(len(starts), np.inf)
    for span in SPANS:
        steps = _storable(2 * span * largest / (2**bits - 1))
        step_of_each = np.repeat(steps, lengths)
        error = change - _values(_levels(change, step_of_each, bits), step_of_each, bits)
        squares = np.add.reduceat(error.astype(np.float64) ** 2, starts)
        best, least = np.where(squares < least, steps, best), np.minimum(squares, least)
    return best


def _storable(steps: NDArray[np.floating]) -> NDArray[np.float16]:
    storable: NDArray[np.float16] = np.minimum(steps, LARGEST).astype(np.float16)
    return storable


def _levels(change: Vector, step_of_each: NDArray[np.float16], bits: int) -> NDArray[np.int64]:
    """Return the nearest level of each number, 0 to 2^bits − 1; any level where the step is 0."""
    step = step_of_each.astype(np.float32)
    scaled = np.divide(change, step, out=np.zeros_like(change), where=step > 0)
    levels: NDArray[np.int64] = np.clip(np.floor(scaled) + 2 ** (bits - 1), 0, 2**bits - 1).astype(np.int64)
    return levels


def _values(levels: NDArray[np.int64], step_of_each: NDArray[np.float16], bits: int) -> Vector:
    values: Vector = ((levels - (2**bits - 1) / 2) * step_of_each.astype(np.float32)).astype(np.float32)
    return values
