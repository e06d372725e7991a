"""The batches and steps of local training, and the generators that decide them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trifed.config.settings import TrainingSettings

BUCKET = 16
"""Batches whose examples are sorted by length together, which saves padding and keeps the order nearly random."""

SEEDS = 2**62
"""Upper bound of the seeds drawn for a client's dropout."""

TRAINING, SUMMARY, SAMPLING, PROJECTION, NOISE, ORDER = 1, 2, 3, 4, 5, 6
"""Purposes of seeded generators: the same run seed never drives two of them alike."""

Rows = NDArray[np.int64]


def seeded(*parts: int) -> np.random.Generator:
    """Return an independent generator for each sequence of (run seed, purpose, round, client, …)."""
    return np.random.default_rng(np.random.SeedSequence(parts))


@dataclass(frozen=True)
class RoundRandom:
    """The random numbers of one client's round.

    Attributes:
        own: The client's generator: which examples are in a batch together.
        common: A generator that is equal for all clients of a round: whether short or long batches come first.
            Clients that train together then have batches of similar length, which saves padding.
        dropout: Seed of the client's dropout and of the random changes of its images.
    """

    own: np.random.Generator
    common: np.random.Generator
    dropout: int

    @classmethod
    def of(cls, seed: int, number: int, client: int) -> RoundRandom:
        """Return the generators of a client's round `number` in a run with this seed."""
        own = seeded(seed, TRAINING, number, client)
        return cls(own, seeded(seed, ORDER, number), int(own.integers(SEEDS)))


def epoch_batches(lengths: Rows, batch_size: int, rng: np.random.Generator) -> list[Rows]:
    """Return one epoch's batches, shortest first: every row once, and rows of similar length together."""
    order = rng.permutation(len(lengths))
    batches: list[Rows] = []
    for bucket in in_chunks(order, batch_size * BUCKET):
        batches += in_chunks(bucket[np.argsort(lengths[bucket], kind="stable")], batch_size)
    return sorted(batches, key=lambda batch: int(lengths[batch].max()))


def round_batches(lengths: Rows, settings: TrainingSettings, random: RoundRandom) -> Iterator[Rows]:
    """Yield the rows of every step of a round.

    Each step draws a number in [0, 1] that all clients have in common, and takes this epoch's batch that comes
    nearest to it in the order of length.
    """
    left: list[tuple[float, Rows]] = []
    for _ in range(steps_per_round(len(lengths), settings)):
        if not left:
            batches = epoch_batches(lengths, settings.batch_size, random.own)
            left = [((place + 0.5) / len(batches), rows) for place, rows in enumerate(batches)]
        wanted = random.common.random()
        nearest = min(range(len(left)), key=lambda place: abs(left[place][0] - wanted))
        yield left.pop(nearest)[1]


def in_chunks(rows: Rows, size: int) -> list[Rows]:
    """Split rows into consecutive parts of `size`; the last one may be smaller."""
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def steps_per_round(examples: int, settings: TrainingSettings) -> int:
    """Return the number of optimiser steps in one round for a client with that many training examples."""
    if settings.steps is not None:
        return settings.steps if examples else 0
    return settings.epochs * math.ceil(examples / settings.batch_size)


def learning_rate(step: int, total: int, settings: TrainingSettings) -> float:
    """Return the learning rate at step `step` (from 0) of the `total` steps that the schedule covers.

    Those are the steps of all rounds of the run, or, with "linear-each-round", of one round.
    """
    warm = math.ceil(settings.warmup * total)
    if step < warm:
        return settings.learning_rate * (step + 1) / warm
    if settings.schedule == "constant":
        return settings.learning_rate
    return settings.learning_rate * (total - step) / max(1, total - warm)
