"""Bounds on what one client can do to a round: applied to the accepted uploads before the method aggregates them.

::

    uploads → distance rule → norm bound → limit on examples → method

Each bound is relative to the uploads of the other clients, so that a hostile client cannot choose it as long as
most clients are honest. The bounds are settings of `[aggregation]`, and hold for any method.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import pdist, squareform

from trifed.methods.aggregation import AggregationSettings, at_most
from trifed.methods.base import State, Upload
from trifed.methods.packing import Vector

Bound = Literal["norm", "examples", "distance"]

ROUNDS = 5
"""Rounds whose median norms count, for a method with turns those of the same turn."""
FEWEST = 3
"""The fewest uploads of a round that are compared with each other."""
NORMS = "screening/norms"
"""Name of the median norms among the server's arrays; those of later turns have their number behind a slash."""


@dataclass(frozen=True)
class Bounded:
    """An upload that was changed or left out. `ratio`: how many times over the bound it was."""

    client: int
    bound: Bound
    ratio: float


@dataclass
class Screening:
    """The bounds of one run.

    Attributes:
        settings: The server's parts of the run.
        turns: Number of turns that the method's rounds take. Changes of other tensors have other lengths, so only
            those of one turn are compared.
        norms: Median norms of the accepted changes of the last rounds, oldest first, for each turn.
    """

    settings: AggregationSettings
    turns: int = 1
    norms: list[list[float]] = field(init=False)

    def __post_init__(self) -> None:
        self.norms = [[] for _ in range(self.turns)]

    def state_dict(self) -> State:
        """Return the arrays that a checkpoint needs; none before the first round."""
        return {_array(turn): np.array(norms) for turn, norms in enumerate(self.norms) if norms}

    def load_state_dict(self, arrays: State) -> None:
        """Take up and remove the arrays of `state_dict`."""
        self.norms = [[float(norm) for norm in arrays.pop(_array(turn), [])] for turn in range(self.turns)]

    def apply(
        self, uploads: Sequence[Upload], before: Callable[[int], Vector]
    ) -> tuple[list[Upload], list[Bounded]]:
        """Return the uploads that the method gets, and what was changed.

        Args:
            uploads: The accepted uploads of a round, at least one.
            before: The values that a client, by its index, began the round with, (n_values,).
        """
        result, bounded = list(uploads), []
        if self.settings.screen == "multi-krum":
            changes = np.stack([change_of(upload, before) for upload in uploads])
            scores = krum(changes, self.settings.suspects)
            result = [upload for upload, score in zip(uploads, scores, strict=True) if score <= 1]
            far = zip(uploads, scores, strict=True)
            bounded = [Bounded(upload.client, "distance", float(score)) for upload, score in far if score > 1]
        lengths = np.array([np.linalg.norm(change_of(upload, before)) for upload in result])
        limit = self._norm_limit(lengths, uploads[0].round)
        for place in np.flatnonzero(lengths > limit):
            upload, ratio = result[place], float(lengths[place] / limit)
            shorter = before(upload.client) + change_of(upload, before) / ratio
            result[place] = replace(upload, values=shorter.astype(np.float32))
            bounded.append(Bounded(upload.client, "norm", ratio))
        numbers = np.array([upload.examples for upload in result], np.float64)
        most = at_most(numbers, self.settings.most_examples)
        for place in np.flatnonzero(numbers > most):
            result[place] = replace(result[place], examples=int(most[place]))
            bounded.append(Bounded(result[place].client, "examples", float(numbers[place] / most[place])))
        return result, bounded

    def _norm_limit(self, lengths: NDArray[np.float64], number: int) -> float:
        """Return the largest length of a change in round `number`, and remember this round's median."""
        turn = (number - 1) % self.turns
        if len(lengths) >= FEWEST:
            self.norms[turn] = [*self.norms[turn], float(np.median(lengths))][-ROUNDS:]
        middle = float(np.median(self.norms[turn])) if self.norms[turn] else 0.0
        return self.settings.norm_bound * middle or np.inf


def _array(turn: int) -> str:
    return f"{NORMS}/{turn}" if turn else NORMS


def change_of(upload: Upload, before: Callable[[int], Vector]) -> NDArray[np.float64]:
    """Return the change that an upload brings, (n_values,)."""
    change: NDArray[np.float64] = upload.values.astype(np.float64) - before(upload.client)
    return change


def krum(changes: NDArray[np.float64], suspects: float) -> NDArray[np.float64]:
    """Return each upload's score in units of the largest that multi-Krum keeps, (n_uploads,); all 1 for too few.

    Blanchard et al., "Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent", NeurIPS 2017
    (arXiv 1703.02757): an upload's score is the sum of its squared distances to the n − f − 2 nearest others; the
    n − f uploads of the lowest scores are kept.

    Args:
        changes: (n_uploads, n_values).
        suspects: Share of uploads that may be hostile; f is that share of n, rounded up.
    """
    number = len(changes)
    hostile = math.ceil(suspects * number)
    nearest = number - hostile - 2
    if nearest < 1:
        return np.ones(number)
    squares = np.sort(squareform(pdist(changes, "sqeuclidean")), axis=1)
    scores: NDArray[np.float64] = squares[:, 1 : nearest + 1].sum(axis=1)
    scores /= max(float(np.sort(scores)[number - hostile - 1]), np.finfo(float).tiny)
    return scores
