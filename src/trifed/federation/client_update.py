"""Local training of one round, and the state that a client keeps between rounds, on any engine."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from torch import Tensor

from trifed.config.settings import TrainingSettings
from trifed.federation.dp_sgd import DpSgd
from trifed.federation.shared_model import SharedModel
from trifed.federation.training import (
    Moments,
    ProximalTerm,
    Scores,
    evaluate,
    seeded,
    steps_per_round,
    train_locally,
)
from trifed.federation.upload import Memory
from trifed.methods.base import Proximal, SummarySeeds
from trifed.methods.packing import Vector
from trifed.tasks import Encoded

TRAINING, SUMMARY, SAMPLING, PROJECTION, NOISE = 1, 2, 3, 4, 5
"""Purposes of seeded generators: the same run seed never drives two of them alike."""


@dataclass(frozen=True)
class ClientDataset:
    """A client's tokenised data. `index`: its place among the run's clients."""

    index: int
    name: str
    train: Encoded
    valid: Encoded
    test: Encoded


@dataclass(frozen=True)
class ClientState:
    """Everything that a client keeps from round to round.

    Attributes:
        tensors: trained tensors by name.
        moments: moments of AdamW.
        steps: optimiser steps since the first round.
        memory: what the steps of an upload keep, see `upload.py`.
    """

    tensors: dict[str, Tensor]
    moments: Moments
    steps: int
    memory: Memory = field(default_factory=dict)


@dataclass(frozen=True)
class TrainedRound:
    """Result of a round's training.

    Attributes:
        state: the client's state after it.
        loss: mean training loss, nats.
        sent: tensors from which the upload is made.
    """

    state: ClientState
    loss: float
    sent: dict[str, Tensor]


def train_round(
    shared_model: SharedModel,
    dataset: ClientDataset,
    state: ClientState,
    received: Vector | None,
    settings: TrainingSettings,
    *,
    seed: int,
    round_number: int,
    rounds: int,
    proximal: Proximal | None = None,
    dp_sgd: DpSgd | None = None,
) -> TrainedRound:
    """Train for one round, from the received values where there are any, (n_values,)."""
    shared_model.load(state.tensors if received is None else shared_model.receive(state.tensors, received))
    proximal_term = (
        ProximalTerm(proximal, {name: shared_model.parameters[name] for name, _ in shared_model.layout})
        if proximal
        else None
    )
    steps_per_run = rounds * ((dp_sgd and settings.steps) or steps_per_round(len(dataset.train), settings))
    trained = train_locally(
        shared_model.model,
        shared_model.parameters,
        dataset.train,
        settings,
        rng=seeded(seed, TRAINING, round_number, dataset.index),
        steps_before=state.steps,
        steps_in_all=steps_per_run,
        moments=state.moments,
        proximal_term=proximal_term,
        dp_step=dp_sgd,
    )
    moments = trained.moments if settings.optimizer_state == "keep" else {}
    after = replace(state, tensors=shared_model.take(), moments=moments, steps=state.steps + trained.steps)
    anchors = proximal_term.anchors if proximal_term and proximal_term.term.moves else {}
    sent = {**after.tensors, **{name: tensor.cpu() for name, tensor in anchors.items()}}
    return TrainedRound(after, trained.loss, sent)


def score(
    shared_model: SharedModel, tensors: dict[str, Tensor], data: Encoded, settings: TrainingSettings
) -> Scores:
    """Return loss and accuracy of a client's tensors on some data."""
    shared_model.load(tensors)
    return evaluate(shared_model.model, data, settings)


def summary_seeds(seed: int, client: int) -> SummarySeeds:
    """Return the seeds of the one-time data summary: the public projection's, and one of the client's own."""
    return SummarySeeds(
        *(int(rng.integers(2**31)) for rng in (seeded(seed, PROJECTION), seeded(seed, SUMMARY, client)))
    )
