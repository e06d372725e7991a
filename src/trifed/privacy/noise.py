"""Clipping, and sources of Gaussian noise, continuous and on integers."""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable
from functools import lru_cache

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


def discrete_gaussian(deviation: float, n: int, noise: Noise) -> NDArray[np.int64]:
    """Return n independent integers k with probability proportional to exp(−k² / (2 · deviation²)), (n,).

    Canonne, Kamath and Steinke, NeurIPS 2020 (arXiv 2004.00010). Each one is found by inversion from a normal
    number: its absolute value gives a probability, and its sign is the integer's. Each probability is exact to
    about 1e-16; the tails reach nine deviations, or as far as those of `noise`.
    """
    from scipy.special import ndtr  # takes long to import

    normal = noise(n)
    tails = _tails(deviation)  # rising: from the largest integer to 1
    size = len(tails) - np.searchsorted(tails, 2 * ndtr(-np.abs(normal)), side="left")
    return np.asarray(np.where(normal < 0, -size, size), np.int64)


@lru_cache(8)
def _tails(deviation: float) -> NDArray[np.float64]:
    """Return P(|k| ≥ j) of a discrete Gaussian for j = most, …, 1."""
    most = math.ceil(9 * deviation) + 1
    weights = np.exp(-0.5 * (np.arange(most, -1, -1) / deviation) ** 2)
    sums = np.cumsum(2 * weights[:-1])  # the smallest first, which loses no digits
    found: NDArray[np.float64] = sums / (sums[-1] + 1)
    return found
