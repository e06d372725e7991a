"""Clipping, and sources of Gaussian noise."""

from __future__ import annotations

import secrets
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Noise = Callable[[int], NDArray[np.float64]]
"""n → n independent standard normal numbers, (n,)."""


def secure_noise(n: int) -> NDArray[np.float64]:
    """Return n standard normal numbers from the operating system's cryptographic generator, (n,).

    Inversion of a sign and 53 random bits over half the line, so that both tails reach 8.3. No seed exists, and
    past numbers do not predict future ones.
    """
    from scipy.special import ndtri  # takes long to import

    bits = np.frombuffer(secrets.token_bytes(8 * n), np.uint64)
    size = -ndtri(((bits >> np.uint64(11)) + 0.5) / 2.0**54)
    return np.asarray(np.where(bits & np.uint64(1), size, -size), np.float64)


def seeded_noise(rng: np.random.Generator) -> Noise:
    """Return a source of noise for simulations; it protects nothing, because its seed is known."""
    return lambda n: rng.standard_normal(n)


def clipped(change: NDArray[np.floating], norm: float) -> NDArray[np.float64]:
    """Scale `change`, (n,), to an L2 norm of at most `norm`.

    A `change` that is not finite becomes zeros, so that its message does not reveal diverged training.
    """
    values = change.astype(np.float64)
    length = float(np.linalg.norm(values))
    if not np.isfinite(length):
        return np.zeros_like(values)
    return values * min(1.0, norm / length) if length else values
