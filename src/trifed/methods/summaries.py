"""What methods that compare clients' data have in common: the projection, and a state when clients change."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from trifed.methods.base import Features, State, SummarySeeds
from trifed.similarity import project
from trifed.similarity.checks import Floats

SUMMARY_DIM = 64
"""Dimensions that a client's features are projected to before they are summarised."""


NOISED_DIM = 16
"""The same where summaries are noised: noise adds up over dimensions, and what parts clients hardly does."""


def projected(features: Features, seeds: SummarySeeds, dim: int = SUMMARY_DIM) -> Floats:
    """Features (n, d) in the public projection of a run, (n, dim)."""
    return project(features, dim=dim, seed=seeds.projection)


def carry_over(state: State, fresh: State, names: Iterable[str], anew: Collection[int]) -> State:
    """`fresh`, as `start` makes it for the clients there are now, with the rows that were there before.

    `names`: of the arrays, one row a client, that hold what came of rounds; `anew`: clients whose rows begin anew.
    """
    carried = dict(fresh)
    for name in names:
        rows = fresh[name].copy()
        kept = [client for client in range(len(state[name])) if client not in anew]
        rows[kept] = state[name][kept]
        carried[name] = rows
    return carried
