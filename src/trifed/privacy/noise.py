"""Clipping, and where the noise comes from."""

from __future__ import annotations

import secrets
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

Noise = Callable[[int], NDArray[np.float64]]
"""n → n independent standard normal numbers, (n,)."""


def secure_noise(n: int) -> NDArray[np.float64]:
    """n standard normal numbers from the operating system's generator for secrets, (n,).

    By inversion: a sign, and Φ⁻¹ of 53 random bits over half the line, so that both tails reach to 8.3. No seed
    of anybody's enters, and what was drawn says nothing of what will be.
    """
    bits = np.frombuffer(secrets.token_bytes(8 * n), np.uint64)
    size = -ndtri(((bits >> np.uint64(11)) + 0.5) / 2.0**54)
    found: NDArray[np.float64] = np.where(bits & np.uint64(1), size, -size)
    return found


def seeded_noise(rng: np.random.Generator) -> Noise:
    """From a generator whose seed is known. For simulations: it protects from nobody."""
    return lambda n: rng.standard_normal(n)


def clipped(change: NDArray[np.floating], norm: float) -> NDArray[np.float64]:
    """`change`, (n,), shortened to an L2 norm of at most `norm`; zeros where it is not finite.

    A training that has run off to NaN must not be told apart by its message.
    """
    values = change.astype(np.float64)
    length = float(np.linalg.norm(values))
    if not np.isfinite(length):
        return np.zeros_like(values)
    return values * min(1.0, norm / length) if length else values
