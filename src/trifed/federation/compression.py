"""How the parameters of one exchange travel: as they are, or as a change in a few bits a number.

With 32 bits a message holds the values themselves. With fewer it holds the change against what the client received
last (before that, against the common start), which both sides know.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from trifed.common.errors import MessageError
from trifed.federation.messages import (
    Header,
    decode,
    decode_values,
    encode,
    encode_values,
    layout_sizes,
    manifest,
)
from trifed.federation.quantisation import Bits, block_starts, dequantise, packed_sizes, quantise
from trifed.methods.packing import Layout, Vector


@dataclass(frozen=True)
class Compression:
    """`layout`: what travels. `bits`: for each number of a change; None where the values themselves travel."""

    layout: Layout
    bits: Bits | None = None

    def arrives(self, values: Vector, known: Vector) -> Vector:
        """What a receiver who has `known` would have after a message that brings it to `values`: (n,) float32."""
        if self.bits is None:
            return values
        return known + dequantise(
            *quantise((values - known).astype(np.float32), self.layout, self.bits), self.layout, self.bits
        )

    def encode(self, header: Header, values: Vector, known: Vector) -> bytes:
        """The message that brings a receiver with `known` to `values`, as near as the bits allow; both (n,)."""
        if self.bits is None:
            return encode_values(header, values)
        codes, steps = quantise((values - known).astype(np.float32), self.layout, self.bits)
        return encode(header, {"codes": codes, "steps": steps})

    def decode(self, payload: bytes, expected: Header, known: Vector) -> tuple[Header, Vector]:
        """Header, and what the receiver has then, (n,) float32.

        Raises:
            MessageError: see `messages.decode`; or the wrong number or type of codes.
        """
        if self.bits is None:
            return decode_values(payload, expected, self.layout)
        header, arrays = decode(payload, expected)
        numbers = sum(int(np.prod(shape)) for _, shape in self.layout)
        wanted = {
            "codes": (np.dtype(np.uint8), (-(-numbers * self.bits // 8),)),
            "steps": (np.dtype(np.float16), (len(block_starts(self.layout)),)),
        }
        found = {name: (array.dtype, array.shape) for name, array in arrays.items()}
        if found != wanted:
            raise MessageError(f"{expected}: got {found}, expected {wanted}, as {self.bits} bits a number need")
        if header.examples < 0:
            raise MessageError(f"{expected}: {header.examples} examples; expected a number of at least 0")
        codes, steps = arrays["codes"].astype(np.uint8), arrays["steps"].astype(np.float16)
        return header, known + dequantise(codes, steps, self.layout, self.bits)

    def manifest(self, payload: bytes) -> dict[str, int]:
        """Bytes of a message by tensor name, the rest under '(envelope)'."""
        sizes = layout_sizes(self.layout) if self.bits is None else packed_sizes(self.layout, self.bits)
        return manifest(payload, sizes)
