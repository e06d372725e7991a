"""The numbers of sealed sums: rounding, packing, and the steps of the next round.

For n clients of a sum and L levels, on equal steps s, one a block of `compression.BLOCK` numbers:

    d_i = θ_i − G + residual_i                 change of client i to the reference G that all of them have
    q_i = clip(rint(d_i / s), −L, L)           residual_i' = d_i − q_i · s
    Σ q_i in b = ⌈log₂(2·n·L + 1)⌉ bits        modulo 2^b, so that masks that cancel can be added
    G' = G + s · Σ q_i / n

Beside it each client sends the mean of |d_i| / s over each block; their sum gives the next steps. Everything here
is NumPy, without masks and keys.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from trifed.federation.compression import block_starts
from trifed.methods.packing import Layout, Vector

Integers = NDArray[np.uint32]
Mask = Callable[[Integers, int], Integers]
"""Integers modulo 2^bits, (n,), and bits → masked integers modulo 2^bits, (n,)."""
Sign = Callable[[Integers], tuple[bytes, bytes]]
"""Masked integers, (n,) → the digest of what is signed beside them, 32 bytes, and the signature, 64 bytes."""
Steps = NDArray[np.float16]
MAGNITUDE_BITS = 16
FIRST_STEP = 5.0
"""First step, in learning rates."""
STEP_OF_MEAN = {1: 1.5, 2: 1.05, 3: 0.8}
"""Levels → best step, in mean magnitudes of the numbers; more levels: 2.4 / levels."""
MOST_CHANGE = 8.0
"""The most by which a step grows or shrinks from one round to the next."""
LARGEST_STEP = 64.0
"""The largest step, in first steps: one client could drive the steps of all beyond any use."""


# -- bits


def bits_of_sum(clients: int, levels: int) -> int:
    """Return the bits b in which a sum of `clients` numbers of −levels..levels is exact, ⌈log₂(2·n·L + 1)⌉."""
    return (2 * clients * levels).bit_length()


def bits_of_count(clients: int) -> int:
    """Return the bits of a sum of `clients` numbers 0 or 1, ⌈log₂(n + 1)⌉ + 1.

    Without the one bit more every sum of 3, 7 or 15 clients would be in range, and a wrong one never found.
    """
    return clients.bit_length() + 1


def pack_bits(integers: Integers, bits: int) -> NDArray[np.uint8]:
    """Return integers of 0 to 2^bits − 1, (n,), as ⌈n · bits / 8⌉ bytes."""
    columns = (integers[:, None] >> np.arange(bits - 1, -1, -1, dtype=np.uint32)) & np.uint32(1)
    return np.packbits(columns.astype(np.uint8))


def unpack_bits(packed: NDArray[np.uint8], count: int, bits: int) -> Integers:
    """Return the `count` integers that `pack_bits` has packed, (n,)."""
    columns = np.unpackbits(packed, count=count * bits).reshape(count, bits).astype(np.uint32)
    weights = np.uint32(1) << np.arange(bits - 1, -1, -1, dtype=np.uint32)
    return np.asarray(columns @ weights, np.uint32)


def modulo(integers: NDArray[np.int64], bits: int) -> Integers:
    """Return integers, (n,), modulo 2^bits."""
    return np.asarray(np.mod(integers, 1 << bits), np.uint32)


def centred(integers: Integers, bits: int) -> NDArray[np.int64]:
    """Return the integers modulo 2^bits as numbers from −2^(bits−1) to 2^(bits−1) − 1, (n,)."""
    wide = integers.astype(np.int64)
    return np.where(wide >= 1 << (bits - 1), wide - (1 << bits), wide)


# -- steps and levels


def lengths_of_blocks(layout: Layout) -> NDArray[np.int64]:
    """Return how many numbers each block has, (n_blocks,)."""
    size = sum(math.prod(shape) for _, shape in layout)
    lengths: NDArray[np.int64] = np.diff([*block_starts(layout), size])
    return lengths


def first_steps(layout: Layout, learning_rate: float) -> Steps:
    """Return the steps of a run's first sum, (n_blocks,), which depend on public settings alone."""
    return np.full(len(block_starts(layout)), FIRST_STEP * learning_rate).astype(np.float16)


def of_each(steps: Steps, layout: Layout) -> Vector:
    """Return the step of each number, (n_values,), of steps of blocks, (n_blocks,)."""
    return np.repeat(steps.astype(np.float32), lengths_of_blocks(layout))


def to_levels(change: Vector, step_of_each: Vector, levels: int) -> NDArray[np.int64]:
    """Return clip(rint(change / step), −levels, levels), (n_values,); 0 where the step is 0."""
    scaled = np.divide(change, step_of_each, out=np.zeros_like(change), where=step_of_each > 0)
    found: NDArray[np.int64] = np.clip(np.rint(scaled), -levels, levels).astype(np.int64)
    return found


def magnitude_unit(clients: int) -> int:
    """Return how many units of a magnitude one step has; a sum of magnitudes of up to 8 steps fits 16 bits."""
    return max(1, min(256, 65535 // (8 * clients)))


def largest_magnitude(clients: int) -> int:
    """Return the largest magnitude of one client, in units, so that the sum of all fits 16 bits."""
    return 65535 // clients


def magnitudes(change: Vector, steps: Steps, layout: Layout, clients: int) -> NDArray[np.int64]:
    """Return a client's mean of |change| over each block, in units of the step, (n_blocks,).

    `change` is 0 where the client sends nothing.
    """
    lengths = lengths_of_blocks(layout)
    if not len(lengths):
        return np.zeros(0, np.int64)
    means = np.add.reduceat(np.abs(change, dtype=np.float64), block_starts(layout)) / lengths
    step = steps.astype(np.float64)
    relative = np.divide(means, step, out=np.zeros_like(means), where=step > 0)
    units = np.minimum(np.rint(relative * magnitude_unit(clients)), largest_magnitude(clients))
    capped: NDArray[np.int64] = units.astype(np.int64)
    return capped


def next_steps(
    steps: Steps,
    total: NDArray[np.int64],
    senders: NDArray[np.float64],
    clients: int,
    levels: int,
    first: Steps,
) -> Steps:
    """Return the steps of a group's next sum, (n_blocks,).

    Args:
        steps: Those of this sum.
        total: Sum of the clients' `magnitudes`, (n_blocks,). Where it is 0 a step stays.
        senders: How many clients have sent each block's numbers, as a mean over the block, (n_blocks,).
        clients: Clients of this sum.
        levels: L.
        first: Those of the run's first sum.
    """
    mean = total / magnitude_unit(clients) / np.maximum(senders, 1e-9)
    factor = np.clip(STEP_OF_MEAN.get(levels, 2.4 / levels) * mean, 1 / MOST_CHANGE, MOST_CHANGE)
    wanted = steps.astype(np.float64) * np.where(total > 0, factor, 1.0)
    largest = np.minimum(LARGEST_STEP * first.astype(np.float64), float(np.finfo(np.float16).max))
    return np.clip(wanted, 1e-7, largest).astype(np.float16) if len(steps) else steps
