"""An estimate of a run's time, bytes and memory, from one optimiser step of its first clients."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trifed.config.run import RunConfig
from trifed.experiments.runner import prepare_run
from trifed.federation.events import Listener
from trifed.federation.preparation import quiet, values_a_round
from trifed.reports.format import clock, listing, plural, size

if TYPE_CHECKING:
    from trifed.federation.client_update import ClientDataset
    from trifed.federation.training.shared_model import SharedModel


@dataclass(frozen=True)
class DryRun:
    """An estimate of a run.

    Attributes:
        clients: Number of clients with training examples.
        trained: Number of values that a client trains.
        sent: Number of values that a client sends in a round.
        bytes_up: Bytes of an upload, in a round and of a client; the download has as many.
        steps: Optimiser steps of all clients in all rounds.
        step_seconds: Time of one step of one client, beside the others that train at the same time.
        peak_bytes: Memory of this process after a step, at its highest; 0 if the system does not tell.
        rounds: Number of rounds.
        baselines: Names of the runs beside it, with the number of learning rates that are tried.
        exact: False with DP-SGD, whose steps are not the ones that were timed.
    """

    clients: int
    trained: int
    sent: int
    bytes_up: int
    steps: int
    step_seconds: float
    peak_bytes: int
    rounds: int
    exact: bool = True
    baselines: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Return the estimate in sentences."""
        up = f"{size(self.bytes_up)} up a client and round" if self.sent else "nothing is sent"
        what = "" if self.exact else " without noise; DP-SGD takes longer"
        return (
            f"{plural(self.clients, 'client')}, {plural(self.rounds, 'round')}: each trains {self.trained:,} "
            f"values and sends {self.sent:,} of them ({up}).\n"
            f"Training takes about {clock(self.steps * self.step_seconds)} ({self.steps:,} steps of "
            f"{1000 * self.step_seconds:.0f} ms{what}), evaluation comes on top"
            + (f"; memory so far {size(self.peak_bytes)}." if self.peak_bytes else ".")
            + (f"\nEach of these takes about as long again: {listing(self.baselines)}." if self.baselines else "")
        )


def dry_run(config: RunConfig, listener: Listener = quiet) -> DryRun:
    """Load and check all that a run needs, take a step, and estimate the rest; raises as `run` does."""
    from trifed.federation.context import run_context
    from trifed.federation.sealed.cost import bytes_of_part
    from trifed.federation.training.batches import steps_per_round

    prepared = prepare_run(config, listener)
    shared_model = prepared.shared_model
    clients = [client for client in prepared.clients if len(client.train)]
    context = run_context(config, shared_model.exchanged, shared_model.fingerprint)
    values = shared_model.start_values
    header = context.header("upload", 1, 0, 1)
    if not values.size:
        bytes_up = 0
    elif config.sealing.on:
        bytes_up = bytes_of_part(context, max(1, round(config.participation * len(clients))))
    else:
        bytes_up = len(context.for_upload(1).encode(header, values, values))
    steps = sum(steps_per_round(len(client.train), config.training_of(client.name)) for client in clients)
    return DryRun(
        clients=len(clients),
        trained=shared_model.trained_values,
        sent=values_a_round(context.method, shared_model.layout),
        bytes_up=bytes_up,
        steps=round(steps * config.rounds * config.participation),
        step_seconds=_step_seconds(config, shared_model, clients),
        peak_bytes=_peak_bytes(shared_model),
        rounds=config.rounds,
        exact=config.privacy.training is None,
        baselines=tuple(_with_rates(config, name) for name in config.with_baselines().baselines or ()),
    )


def _with_rates(config: RunConfig, name: str) -> str:
    rates = len(config.rates_to_try(name))
    return name if rates == 1 else f"{name} ({rates} times, at other learning rates)"


def _step_seconds(config: RunConfig, shared_model: SharedModel, clients: list[ClientDataset]) -> float:
    """Return the time of a client's step: the second time, because the first pass of a shape is slower."""
    from trifed.federation.at_once import clients_at_once
    from trifed.federation.client_update import ClientState, RoundTraining, train_rounds

    at_once = clients_at_once(shared_model, clients, config.training)
    one_step = config.training.model_copy(update={"steps": 1})
    state, phases = ClientState(dict(shared_model.start), {}, 0), config.composed_method().phases
    seconds = 0.0
    for number in (1, 2):
        rounds = [
            RoundTraining(client, state, None, config.seed, number, config.rounds, phases=phases)
            for client in clients[: at_once.threads * at_once.clients]
        ]
        began = time.perf_counter()
        train_rounds(shared_model, rounds, one_step, at_once)
        seconds = (time.perf_counter() - began) / max(1, len(rounds))
    return seconds


def _peak_bytes(shared_model: SharedModel) -> int:
    if shared_model.device.type == "cuda":
        import torch

        return int(torch.cuda.max_memory_allocated(shared_model.device))
    try:
        import resource
    except ModuleNotFoundError:  # Windows
        return 0
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts in bytes, Linux in KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
