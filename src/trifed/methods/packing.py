"""Tensors that are sent or received, packed into one vector, and back."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float32]
Tensors = dict[str, NDArray[np.float32]]
Layout = tuple[tuple[str, tuple[int, ...]], ...]
"""Names and shapes of tensors, in the order in which they are packed."""


def select(values: Vector, layout: Layout, wanted: Layout) -> Vector:
    """Return the values of the tensors in `wanted` from values packed by a `layout` that has them all."""
    return values if wanted == layout else pack(unpack(values, layout), wanted)


def pack(tensors: Mapping[str, NDArray[np.float32]], layout: Layout) -> Vector:
    """Return all tensors of `layout`, flattened one after the other, (n_values,) float32."""
    if not layout:
        return np.zeros(0, np.float32)
    return np.concatenate([np.asarray(tensors[name], np.float32).ravel() for name, _ in layout])


def unpack(values: Vector, layout: Layout) -> Tensors:
    """Return the tensors of a packed vector, (n_values,); the inverse of `pack`."""
    tensors: Tensors = {}
    offset = 0
    for name, shape in layout:
        size = math.prod(shape)
        tensors[name] = values[offset : offset + size].reshape(shape)
        offset += size
    return tensors
