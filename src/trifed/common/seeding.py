"""Random numbers that depend on a given seed alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def seeded(device: torch.device, seed: int) -> Iterator[None]:
    """Seed torch's own generators for a block, and restore them after it.

    Seeding the generators of all devices takes a millisecond; for work on the CPU only that of the CPU is seeded.

    Args:
        device: The device on which the block draws random numbers.
        seed: The seed.
    """
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        (torch.default_generator if device.type == "cpu" else torch).manual_seed(seed)
        yield
