"""A method in a sealed run: its server sees the sum of a group's changes, and no single client's.

Every client of a group has the same weight and the same reference, so the sum of a group is all that the server
needs. Which methods can be sealed is said here; the numbers are in `federation.sealed.numbers`, the server's side
is in `federation.sealed.server`.
"""

from __future__ import annotations

from dataclasses import replace

from trifed.methods.aggregation import AggregationSettings, can_aggregate
from trifed.methods.base import Method, State, start_empty
from trifed.methods.packing import Vector
from trifed.methods.personalization import sends_nothing

ALONE = -1
"""Group of a client that shares with nobody."""


def cannot_seal(method: Method) -> str:
    """Return why a composed method cannot be sealed, as the rest of a sentence; empty if it can."""
    base = method.preset_of or method
    if sends_nothing(method):
        return "sends nothing, so there is nothing to seal"
    if method.shared_projections:
        return "sends each client's gradient before round 1"
    if method.turns or method.receives:
        return "does not send and receive the same tensors in all rounds, as a sum needs"
    if base.with_aggregation is not None or not can_aggregate(base):
        return "has a server that needs each client's upload by itself"
    return ""


def sealed(method: Method, aggregation: AggregationSettings, noised_summaries: bool) -> Method:
    """Return the composed method with a server that sees only sums.

    Args:
        method: The method with its client and server parts.
        aggregation: The server's parts.
        noised_summaries: Whether data summaries have noise; no exact one leaves a client in a sealed run.
    """
    groups = noised_summaries and aggregation.groups == "agreement"
    return replace(
        method,
        summarise=method.summarise if groups else None,
        start=start_empty,
        download=download_of_group,
        on_membership_change=None,
    )


def download_of_group(state: State, client: int) -> Vector | None:
    """Return the reference of a client's group, (n_values,); None if the client has it already, or has no group.

    State: `group`, (n_clients,); `has`, (n_clients,), the number of sums in the reference that a client has;
    `sums`, (n_groups,), the number in the group's; `now`, (n_groups, n_values).
    """
    group = int(state["group"][client])
    if group == ALONE or state["has"][client] == state["sums"][group]:
        return None
    now: Vector = state["now"][group].astype("float32")
    return now
