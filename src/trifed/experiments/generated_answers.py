"""Metrics of the answers that the clients' models generate when a run is over."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from trifed.federation import events
from trifed.federation.events import Listener
from trifed.federation.training.metrics import spread_of

if TYPE_CHECKING:
    from trifed.federation.simulation import Simulation


def score_generated(
    simulation: Simulation, names: Sequence[str], clients: Sequence[dict[str, Any]], listener: Listener
) -> dict[str, dict[str, float | None]]:
    """Score each client's answers to its test prompts, write the values into its results, and return their spread.

    Args:
        simulation: The run, which is over.
        names: Names of the metrics.
        clients: The clients' results, in the order of the simulation's clients.
        listener: Receives an event for each client.
    """
    from trifed.federation.training.answers import score_answers

    most = simulation.config.generated_answers
    for dataset, rows, result in zip(simulation.datasets, simulation.data.clients, clients, strict=True):
        listener(events.Generating(dataset.name, min(most, len(rows.test))).to_dict())
        tensors = simulation.final_model(dataset.index).tensors
        training = simulation.config.training
        found = score_answers(simulation.shared_model, tensors, rows.test, names, training, most)
        if result["now"]:
            result["now"] = {**result["now"], **found}
    return {name: spread_of(name, [client["now"] or {} for client in clients]) for name in names}
