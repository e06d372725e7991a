"""Functions for methods that compare clients' data: the projection, and the state when clients join or leave."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from trifed.methods.base import Features, State, SummarySeeds
from trifed.similarity import project
from trifed.similarity.checks import Floats

SUMMARY_DIM = 64
"""Dimensions that a client's features are projected to before they are summarised."""


NOISED_DIM = 16
"""Dimensions of the projection if summaries are noised: fewer, because noise adds up over dimensions."""


def projected(features: Features, seeds: SummarySeeds, dim: int = SUMMARY_DIM) -> Floats:
    """Return features, (n, d), in the public projection of a run, (n, dim)."""
    return project(features, dim=dim, seed=seeds.projection)


def carry_over(state: State, fresh: State, names: Iterable[str], anew: Collection[int]) -> State:
    """Return a fresh state with the rows of the earlier state for the clients that stay.

    Args:
        state: The earlier state.
        fresh: The state as `start` makes it for the present clients.
        names: Arrays with one row for each client that rounds have changed.
        anew: Clients whose rows start over.
    """
    carried = dict(fresh)
    for name in names:
        rows = fresh[name].copy()
        kept = [client for client in range(len(state[name])) if client not in anew]
        rows[kept] = state[name][kept]
        carried[name] = rows
    return carried
