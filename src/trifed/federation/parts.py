"""Messages with only the tensors that are trained in this round, for methods with `turns`, such as RoLoRA.

A method with `turns` trains and sends other tensors in each round. All vectors stay those of the whole layout; a
message holds a part, and its receiver's other values stay those of a reference.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from trifed.federation.compression import Compression
from trifed.federation.messages import Header
from trifed.methods.packing import Layout, Vector


@dataclass(frozen=True)
class Part:
    """Some tensors of a layout.

    Attributes:
        layout: Names and shapes of these tensors.
        places: True where their values are in a vector of the whole layout, (n_values,).
    """

    layout: Layout
    places: NDArray[np.bool_]

    @classmethod
    def of(cls, layout: Layout, wanted: Callable[[str], bool]) -> Part:
        """Return the part of a layout with the tensors whose names are `wanted`."""
        chosen = [wanted(name) for name, _ in layout]
        sizes = [math.prod(shape) for _, shape in layout]
        tensors = tuple(item for item, takes in zip(layout, chosen, strict=True) if takes)
        return cls(tensors, np.repeat(np.array(chosen, np.bool_), sizes))

    def take(self, whole: Vector) -> Vector:
        """Return the part's values, (n_part,), of all values, (n_values,)."""
        return whole[self.places]

    def put(self, values: Vector, whole: Vector) -> Vector:
        """Return a copy of all values, (n_values,), with the part's, (n_part,), in their places."""
        result = whole.copy()
        result[self.places] = values
        return result


@dataclass(frozen=True)
class PartOf(Compression):
    """An encoding of a part; the receiver's other values are those of the reference.

    Attributes:
        layout: Names and shapes of all tensors that the method sends.
        inner: The encoding of the part alone.
        part: The part.
    """

    inner: Compression
    part: Part

    @property
    def identity(self) -> str:
        """The encoding's name with its parameters."""
        return self.inner.identity

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes of each tensor of the part in a message, by name."""
        return self.inner.sizes

    def arrives(self, values: Vector, reference: Vector) -> Vector:
        """Return what the receiver has after a message that encodes the part of `values`."""
        return self.part.put(self.inner.arrives(self.part.take(values), self.part.take(reference)), reference)

    def encode(self, header: Header, values: Vector, reference: Vector) -> bytes:
        """Return the message with the part of `values`."""
        return self.inner.encode(header, self.part.take(values), self.part.take(reference))

    def decode(self, payload: bytes, expected: Header, reference: Vector) -> tuple[Header, Vector]:
        """Return a message's header and what the receiver has then; raises as the part's encoding does."""
        header, values = self.inner.decode(payload, expected, self.part.take(reference))
        return header, self.part.put(values, reference)


def in_part(compression: Compression, part: Part) -> PartOf:
    """Return the same encoding, of a part of its layout."""
    return PartOf(compression.layout, replace(compression, layout=part.layout), part)
