"""For attacks on a sealed run: the clients of each sum, and the unmasked change that one client adds to it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from trifed.common.errors import RunError
from trifed.federation.client import Client
from trifed.federation.messages import Rejected
from trifed.federation.round import FederatedRun
from trifed.federation.sealed.numbers import centred
from trifed.federation.sealed.server import SealedServer
from trifed.federation.simulation import Simulation
from trifed.methods.packing import Vector


def clients_of_sum(simulation: Simulation, selected: Sequence[int], client: int) -> list[int]:
    """Return the clients of a round whose updates are averaged with a client's.

    In a sealed run they are those of its sum, none if it is in no sum; in an open one all that are selected.
    """
    server = simulation.server
    if not isinstance(server, SealedServer):
        return list(selected)
    return next((clients for clients in server.lists(selected).sums if client in clients), [])


def change_in_sum(simulation: Simulation, site: Client, number: int) -> Vector:
    """Let a client that has trained round `number` send its part, and return the change in it, (n_values,).

    The part is not masked: nobody sees it in a run, and an audit's attacks on it are a control.

    Raises:
        RunError: The client is in no sum of the round.
    """
    server, client = simulation.server, site.dataset.index
    if not isinstance(server, SealedServer):
        raise TypeError("the run is not sealed")
    selected = FederatedRun(simulation.config, simulation, simulation.folder, lambda event: None).select(number)
    clients = clients_of_sum(simulation, sorted({*selected, client}), client)
    if not clients:
        raise RunError(
            f"{site.dataset.name} is in no sum of round {number}, which needs {server.rules.at_least} clients, so "
            "it sends nothing; choose another --client"
        )
    terms = server.terms(number, clients)
    payload = site.send(number, terms.encode(server.context.header("terms", number, client)))
    part = server.read_part(number, client, payload, terms)
    if isinstance(part, Rejected):
        raise RunError(f"{site.dataset.name}: its part of a sum cannot be read: {part.reason}")
    rules, layout = server.rules, server.context.compression.layout
    levels = centred(part.integers, rules.bits(len(clients), layout))
    return (levels * rules.step_of_each(terms, layout)).astype(np.float32)
