"""Local training of one round, and the state that a client keeps between rounds, on any engine."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor, nn

from trifed.config.settings import TrainingSettings
from trifed.federation.training.batches import PROJECTION, SUMMARY, RoundRandom, seeded, steps_per_round
from trifed.federation.training.class_weights import Weights
from trifed.federation.training.dp_sgd import DpSgd
from trifed.federation.training.evaluation import Scores, evaluate, evaluate_features
from trifed.federation.training.local_training import (
    LocalTraining,
    Moments,
    ProximalTerm,
    TrainingResult,
    train_locally,
)
from trifed.federation.training.parallel import AtOnce, in_threads
from trifed.federation.training.shared_model import SharedModel, copies
from trifed.federation.training.stack import CannotStackError
from trifed.federation.upload import Memory
from trifed.methods.base import Phase, Proximal, SummarySeeds
from trifed.methods.packing import Vector
from trifed.tasks import Encoded


@dataclass(frozen=True)
class ClientDataset:
    """A client's tokenised data.

    Attributes:
        index: its place among the run's clients.
        class_weights: weight of each label in its training loss, (n_labels,); None if there are none.
    """

    index: int
    name: str
    train: Encoded
    valid: Encoded
    test: Encoded
    class_weights: Weights | None = field(default=None, kw_only=True)


@dataclass(frozen=True)
class ClientState:
    """Everything that a client keeps from round to round.

    Attributes:
        tensors: tensors that are trained or received, by name.
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


@dataclass(frozen=True)
class RoundTraining:
    """One client's training of one round, before it runs.

    Attributes:
        dataset: the client's data.
        state: its state before the round.
        received: values of the download, (n_values,); None to train on from the state.
        seed: seed of the run.
        number: number of the round.
        rounds: rounds of the whole run, for the schedule of the learning rate.
        rejected_download: True if there was a download that the client did not accept.
        settings: the client's own training settings; None: those of all clients.
        frozen: names of the tensors whose turn it is not, which keep their values in this round.
        local_share: share of a local LoRA beside the global one; None if there is none.
        phases: trainings that follow each other in the round; empty for one training.
    """

    dataset: ClientDataset
    state: ClientState
    received: Vector | None
    seed: int
    number: int
    rounds: int
    proximal: Proximal | None = None
    dp_sgd: DpSgd | None = None
    rejected_download: bool = False
    settings: TrainingSettings | None = None
    frozen: frozenset[str] = frozenset()
    local_share: float | None = None
    phases: tuple[Phase, ...] = ()

    def start(self, shared_model: SharedModel) -> dict[str, Tensor]:
        """Return the tensors that the training starts from."""
        own = self.state.tensors
        return own if self.received is None else shared_model.receive(own, self.received)

    def job(
        self, shared_model: SharedModel, settings: TrainingSettings, parameters: dict[str, nn.Parameter]
    ) -> LocalTraining:
        """Return the training of `parameters`, which hold the values of `start`."""
        sent = {name: parameters[name] for name, _ in shared_model.layout if name not in self.frozen}
        steps = (self.dp_sgd and settings.steps) or steps_per_round(len(self.dataset.train), settings)
        return LocalTraining(
            parameters,
            self.dataset.train,
            RoundRandom.of(self.seed, self.number, self.dataset.index),
            (self.number - 1) * steps,
            self.rounds * steps,
            self.state.moments,
            ProximalTerm(self.proximal, sent) if self.proximal else None,
            self.dp_sgd,
            self.dataset.class_weights,
            self.frozen,
            self.local_share,
        )

    def in_phase(self, phase: Phase, shared_model: SharedModel) -> RoundTraining:
        """Return the training of one phase alone."""
        frozen = shared_model.untrained(phase.trains)
        return replace(self, frozen=frozen, local_share=phase.local_share, phases=())

    def after(self, trained: TrainedRound) -> RoundTraining:
        """Return what is left after a phase: it goes on from that phase's tensors, at the same steps."""
        return replace(self, state=replace(trained.state, steps=self.state.steps), received=None)

    def result(
        self, job: LocalTraining, trained: TrainingResult, tensors: dict[str, Tensor], keep_moments: bool
    ) -> TrainedRound:
        """Return the round's result from the job's, with the client's tensors after it."""
        moments = trained.moments if keep_moments else {}
        if keep_moments and self.frozen:
            moments = {**self.state.moments, **moments}
        steps = self.state.steps + trained.steps
        after = replace(self.state, tensors=tensors, moments=moments, steps=steps)
        term = job.proximal_term
        anchors = {name: tensor.cpu() for name, tensor in term.anchors.items()} if term and term.term.moves else {}
        return TrainedRound(after, trained.loss, {**tensors, **anchors})


def train_rounds(
    shared_model: SharedModel,
    rounds: Sequence[RoundTraining],
    settings: TrainingSettings,
    at_once: AtOnce | None = None,
) -> list[TrainedRound]:
    """Train clients for one round: at the same time, or one after the other.

    If the round has several phases, each takes all of its steps, at the same place of the schedule; the result's
    loss is that of the last one. Only clients with equal settings share a pass. DP-SGD draws each step's examples
    and noise for one client, so its clients train one after the other.

    Args:
        shared_model: The model.
        rounds: The clients' training.
        settings: The training settings of clients without settings of their own.
        at_once: How many clients train at the same time; None: all of them in the same passes.
    """
    done: list[TrainedRound] = []
    for phase in rounds[0].phases if rounds else ():
        parts = [each.in_phase(phase, shared_model) for each in rounds]
        done = train_rounds(shared_model, parts, settings, at_once)
        rounds = [each.after(result) for each, result in zip(rounds, done, strict=True)]
    if done:
        return done
    chosen = at_once or AtOnce(clients=max(1, len(rounds)))
    if len(rounds) > 1 and shared_model.can_stack and not any(each.dp_sgd for each in rounds):
        alike: dict[TrainingSettings, list[int]] = {}
        for place, each in enumerate(rounds):
            alike.setdefault(each.settings or settings, []).append(place)
        places = [group for members in alike.values() for group in chosen.groups(members)]
        groups = [[rounds[place] for place in group] for group in places]
        try:
            if chosen.threads > 1 and len(groups) > 1:
                with torch.random.fork_rng(devices=[]):
                    trained = in_threads(
                        shared_model, groups, partial(_train_group, settings=settings), chosen.threads
                    )
            else:
                trained = [_train_group(shared_model, group, settings=settings) for group in groups]
            by_place = {
                place: result
                for group, results in zip(places, trained, strict=True)
                for place, result in zip(group, results, strict=True)
            }
            return [by_place[place] for place in range(len(rounds))]
        except CannotStackError as error:  # known from the first pass alone; the clients' states have not changed
            shared_model.alone.append(str(error))
    return [_train_alone(shared_model, each, settings) for each in rounds]


def _train_group(
    shared_model: SharedModel,
    group: Sequence[RoundTraining],
    stop: threading.Event | None = None,
    *,
    settings: TrainingSettings,
) -> list[TrainedRound]:
    if len(group) == 1:
        return [_train_alone(shared_model, group[0], settings, stop)]
    return _train_together(shared_model, group, group[0].settings or settings, stop)


def _train_alone(
    shared_model: SharedModel, each: RoundTraining, settings: TrainingSettings, stop: threading.Event | None = None
) -> TrainedRound:
    settings = each.settings or settings
    shared_model.load(each.start(shared_model))
    job = each.job(shared_model, settings, shared_model.parameters)
    trained = train_locally(shared_model.model, [job], settings, stop=stop)[0]
    return each.result(job, trained, shared_model.take(), settings.optimizer_state == "keep")


def _train_together(
    shared_model: SharedModel,
    rounds: Sequence[RoundTraining],
    settings: TrainingSettings,
    stop: threading.Event | None = None,
) -> list[TrainedRound]:
    shared = shared_model.parameters
    jobs = []
    for each in rounds:
        start = each.start(shared_model)
        own = {
            name: nn.Parameter(start[name].to(param.device, copy=True), param.requires_grad)
            for name, param in shared.items()
        }
        jobs.append(each.job(shared_model, settings, own))
    results = train_locally(shared_model.model, jobs, settings, shared, stop)
    return [
        each.result(job, trained, copies(job.parameters), settings.optimizer_state == "keep")
        for each, job, trained in zip(rounds, jobs, results, strict=True)
    ]


def score(
    shared_model: SharedModel, tensors: dict[str, Tensor], data: Encoded, settings: TrainingSettings
) -> Scores:
    """Return loss and accuracy of a client's tensors on some data.

    An adapter that adds nothing leaves the base's features as they are, which are computed only once.
    """
    shared_model.load(tensors)
    if shared_model.adds_nothing(tensors):
        features = shared_model.base_features(data, settings)
        if known := evaluate_features(shared_model.model, features, data, settings):
            return known
    return evaluate(shared_model.model, data, settings)


def summary_seeds(seed: int, client: int) -> SummarySeeds:
    """Return the seeds of the one-time data summary: the public projection's, and one of the client's own."""
    return SummarySeeds(
        *(int(rng.integers(2**31)) for rng in (seeded(seed, PROJECTION), seeded(seed, SUMMARY, client)))
    )
