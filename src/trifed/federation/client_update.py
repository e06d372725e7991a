"""What a client does in a round: take a download, train, make an upload. The same on every engine."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from trifed.config.settings import TrainingSettings
from trifed.federation.dp_sgd import DpSgd
from trifed.federation.shared_model import SharedModel
from trifed.federation.training import (
    Moments,
    ProximalTerm,
    Scores,
    embed,
    evaluate,
    seeded,
    steps_a_round,
    train_locally,
)
from trifed.methods.base import Proximal, SummarySeeds
from trifed.methods.packing import Tensors, Vector
from trifed.tasks import Encoded

HEAD = "head.weight"
BELIEF = tuple(step / 20 for step in range(20, -1, -1))
"""Factors that `temper` tries."""
WITHIN = 0.5
"""Standard errors within which a loss counts as no worse than the least."""

TRAINING, SUMMARY, SAMPLING, PROJECTION, NOISE = 1, 2, 3, 4, 5
"""Purposes of seeded generators: the same run seed never drives two of them alike."""


@dataclass(frozen=True)
class ClientDataset:
    """One site and its tokenised data. `index`: its place among the run's clients."""

    index: int
    name: str
    train: Encoded
    valid: Encoded
    test: Encoded


@dataclass(frozen=True)
class ClientState:
    """What a client keeps from round to round: its tensors, AdamW's moments, optimiser steps so far.

    Where few bits travel also `wire`: `received`, (n_values,), what it received last, against which changes are
    sent; `owed`, (n_values,), what rounding has kept back from its uploads.
    """

    tensors: dict[str, Tensor]
    moments: Moments
    steps: int
    wire: Tensors = field(default_factory=dict)


@dataclass(frozen=True)
class Round:
    """What a client's round leaves: its state, the mean training loss in nats, and the tensors to send from."""

    state: ClientState
    loss: float
    sends: dict[str, Tensor]


def train_round(
    shared_model: SharedModel,
    client: ClientDataset,
    state: ClientState,
    download: Vector | None,
    settings: TrainingSettings,
    *,
    seed: int,
    round_number: int,
    rounds: int,
    proximal: Proximal | None = None,
    privately: DpSgd | None = None,
) -> Round:
    """Take the download and train for one round."""
    tensors = state.tensors if download is None else shared_model.receive(state.tensors, download)
    shared_model.load(tensors)
    proximal_term = (
        ProximalTerm(proximal, {name: shared_model.parameters[name] for name, _ in shared_model.layout})
        if proximal
        else None
    )
    trained = train_locally(
        shared_model.model,
        shared_model.parameters,
        client.train,
        settings,
        rng=seeded(seed, TRAINING, round_number, client.index),
        steps_before=state.steps,
        steps_in_all=rounds * ((privately and settings.steps) or steps_a_round(len(client.train), settings)),
        moments=state.moments,
        proximal_term=proximal_term,
        privately=privately,
    )
    moments = trained.moments if settings.optimizer_state == "keep" else {}
    after = replace(state, tensors=shared_model.take(), moments=moments, steps=state.steps + trained.steps)
    anchors = (
        {name: tensor.cpu() for name, tensor in proximal_term.anchors.items()}
        if proximal_term and proximal_term.term.moves
        else {}
    )
    return Round(after, trained.loss, {**after.tensors, **anchors})


def score(
    shared_model: SharedModel, tensors: dict[str, Tensor], data: Encoded, settings: TrainingSettings
) -> Scores:
    """Loss and accuracy of a client's tensors on some data."""
    shared_model.load(tensors)
    return evaluate(shared_model.model, data, settings)


def calibrate(
    shared_model: SharedModel, tensors: dict[str, Tensor], data: Encoded, settings: TrainingSettings
) -> dict[str, Tensor]:
    """The client's tensors with the head's weight times the s ∈ [0, 1] that suits its own loss on `data`.

    With the log of a prior as bias, s is how far the rest of the model is to be believed: at 0 the prior alone
    decides. Otherwise this is temperature scaling (Guo et al., "On Calibration of Modern Neural Networks", ICML
    2017, arXiv 1706.04599). Few examples say little about the best s, so the largest is taken whose loss is within
    `WITHIN` standard errors of the least, those of the mean difference between both (after the rule of one
    standard error of Breiman et al., "Classification and Regression Trees", 1984). Under two examples nothing
    changes.
    """
    if len(data) < 2 or HEAD not in tensors:
        return tensors
    shared_model.load(tensors)
    weight, bias = tensors[HEAD], shared_model.model.get_parameter("head.bias").detach().cpu()
    evidence = torch.from_numpy(embed(shared_model.model, data, settings)) @ weight.T
    labels = torch.from_numpy(data.labels)
    losses = torch.stack([cross_entropy(s * evidence + bias, labels, reduction="none") for s in BELIEF])
    over = losses - losses[losses.mean(1).argmin()]
    tolerated = over.mean(1) <= WITHIN * over.std(1) / len(data) ** 0.5
    return {**tensors, HEAD: weight * BELIEF[int(tolerated.int().argmax())]}


def summary_seeds(seed: int, client: int) -> SummarySeeds:
    """Seeds of the one-time data summary."""
    public, own = seeded(seed, PROJECTION), seeded(seed, SUMMARY, client)
    return SummarySeeds(int(public.integers(2**31)), int(own.integers(2**31)))
