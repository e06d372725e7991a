"""The groups of a sealed run: a partition of the clients, given in settings or from noised summaries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from trifed.federation.context import RunContext
from trifed.methods.aggregation import AggregationSettings, agreement
from trifed.methods.sealed import ALONE
from trifed.privacy.clusters import clusters
from trifed.similarity import Summary


def groups_of(
    context: RunContext, summaries: Mapping[int, Summary], clients: int, names: Sequence[str], at_least: int
) -> NDArray[np.int64]:
    """Return each client's group, (n_clients,); `ALONE` for one that shares with nobody.

    Args:
        context: The run's.
        summaries: Noised summaries by client; empty if groups do not follow from them.
        clients: Number of clients.
        names: Their names, by index.
        at_least: Fewest clients of a group that follows from summaries.
    """
    settings = context.aggregation
    if settings.groups == "given":
        return np.array([_given(settings, name) for name in names], np.int64)
    if not summaries or clients < at_least:
        return np.zeros(clients, np.int64)
    agree = agreement([summaries[client] for client in range(clients)]) * settings.agreement > 1.0
    return clusters(agree.astype(np.float64), at_least)


def group_of_newcomer(
    context: RunContext,
    summaries: Mapping[int, Summary],
    group: NDArray[np.int64],
    client: int,
    names: Sequence[str],
) -> int:
    """Return the group of a client that joins late: with summaries, the one that is most like it.

    Args:
        context: The run's.
        summaries: As of `groups_of`.
        group: The groups of the clients before it, (client,).
        client: Its index.
        names: All clients' names, by index.
    """
    settings = context.aggregation
    if settings.groups == "given":
        return _given(settings, names[client])
    if not summaries or client not in summaries:
        return 0
    nobody = Summary.empty(context.summary_dim)
    alike = agreement([summaries.get(each, nobody) for each in range(client + 1)])[client, :client]
    means = [alike[group == each].mean() if (group == each).any() else 0.0 for each in range(group.max() + 1)]
    return int(np.argmax(means))


def _given(settings: AggregationSettings, name: str) -> int:
    """Return the place of a client's list in `aggregation.members`; `ALONE` if it is in none."""
    places = [place for place, members in enumerate(settings.members) if name in members]
    return places[0] if places else ALONE
