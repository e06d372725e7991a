"""A change of parameters in a few bits a number, and back: one step size a block, evenly spaced levels around 0.

After Seide et al., "1-bit stochastic gradient descent", Interspeech 2014, and Karimireddy et al., "Error feedback
fixes SignSGD", ICML 2019 (arXiv 1901.09847): what rounding loses is kept by the sender and added to what it sends
next, so that nothing is lost for good. That memory is the sender's; the functions here have none.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from trifed.methods.packing import Layout, Vector

Bits = Literal[1, 2, 4, 8]
BLOCK = 256
"""Numbers that share a step size; a block never reaches from one tensor into the next."""

REACHES = (1.0, 0.8, 0.6, 0.45, 0.3, 0.2, 0.1)
"""Shares of a block's largest number that the levels may span: the one with the least squared error is taken."""

LARGEST = float(np.finfo(np.float16).max)


def block_starts(layout: Layout) -> NDArray[np.int64]:
    """Where each block begins in the packed vector, (n_blocks,)."""
    starts: list[int] = []
    offset = 0
    for _, shape in layout:
        size = int(np.prod(shape))
        starts += range(offset, offset + size, BLOCK)
        offset += size
    return np.array(starts, np.int64)


def quantise(change: Vector, layout: Layout, bits: Bits) -> tuple[NDArray[np.uint8], NDArray[np.float16]]:
    """Codes, ⌈n · bits / 8⌉ bytes, and step sizes, (n_blocks,).

    `change`: (n,) float32. Level q of 2^bits stands for (q − (2^bits − 1)/2) · step. One bit sends signs, and the
    block's mean magnitude, which is the best there is.
    """
    starts = block_starts(layout)
    if not len(change):
        return np.zeros(0, np.uint8), np.zeros(0, np.float16)
    lengths = np.diff([*starts, len(change)])
    if bits == 1:
        steps = _storable(2 * np.add.reduceat(np.abs(change, dtype=np.float64), starts) / lengths)
        return _packed(_levels(change, np.repeat(steps, lengths), bits), bits), steps
    largest = np.maximum.reduceat(np.abs(change), starts)
    steps = np.zeros(len(starts), np.float16)
    least = np.full(len(starts), np.inf)
    for reach in REACHES:
        tried = _storable(2 * reach * largest / (2**bits - 1))
        each = np.repeat(tried, lengths)
        error = change - _values(_levels(change, each, bits), each, bits)
        squares = np.add.reduceat(error.astype(np.float64) ** 2, starts)
        steps, least = np.where(squares < least, tried, steps), np.minimum(squares, least)
    return _packed(_levels(change, np.repeat(steps, lengths), bits), bits), steps


def dequantise(codes: NDArray[np.uint8], steps: NDArray[np.float16], layout: Layout, bits: Bits) -> Vector:
    """The change that codes and step sizes stand for, (n,) float32."""
    starts = block_starts(layout)
    size = sum(int(np.prod(shape)) for _, shape in layout)
    each = np.repeat(steps, np.diff([*starts, size]))
    spread = np.unpackbits(codes)[: size * bits].reshape(size, bits)
    levels = spread @ (1 << np.arange(bits - 1, -1, -1))
    return _values(levels, each, bits)


def packed_sizes(layout: Layout, bits: Bits) -> dict[str, int]:
    """Bytes of each tensor's codes and step sizes; a byte that two tensors share is the first one's."""
    sizes, found, numbers = [int(np.prod(shape)) for _, shape in layout], {}, 0
    for (name, _), size in zip(layout, sizes, strict=True):
        before, numbers = -(-numbers * bits // 8), numbers + size
        found[name] = -(-numbers * bits // 8) - before + 2 * -(-size // BLOCK)
    return found


def _storable(steps: NDArray[np.floating]) -> NDArray[np.float16]:
    storable: NDArray[np.float16] = np.minimum(steps, LARGEST).astype(np.float16)
    return storable


def _levels(change: Vector, each: NDArray[np.float16], bits: int) -> NDArray[np.int64]:
    """The nearest level of each number, 0 to 2^bits − 1; where the step is 0, whichever."""
    step = each.astype(np.float32)
    scaled = np.divide(change, step, out=np.zeros_like(change), where=step > 0)
    levels: NDArray[np.int64] = np.clip(np.floor(scaled) + 2 ** (bits - 1), 0, 2**bits - 1).astype(np.int64)
    return levels


def _values(levels: NDArray[np.int64], each: NDArray[np.float16], bits: int) -> Vector:
    values: Vector = ((levels - (2**bits - 1) / 2) * each.astype(np.float32)).astype(np.float32)
    return values


def _packed(levels: NDArray[np.int64], bits: int) -> NDArray[np.uint8]:
    spread = (levels[:, None] >> np.arange(bits - 1, -1, -1)) & 1
    return np.packbits(spread.astype(np.uint8))
