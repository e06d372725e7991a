"""A client's side of a run: its state, and every message that it writes or reads, on any engine."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from trifed.config.run import RunConfig
from trifed.config.settings import PrivacySettings, TrainingSettings
from trifed.federation.client_privacy import ClientPrivacy
from trifed.federation.client_update import (
    ClientDataset,
    ClientState,
    RoundTraining,
    TrainedRound,
    score,
    summary_seeds,
    train_rounds,
)
from trifed.federation.context import RunContext, decode_tensors, encode_tensors
from trifed.federation.evaluation import Scores, embed, evaluate_features
from trifed.federation.guards import ReleaseGuards
from trifed.federation.messages import encode_summary
from trifed.federation.personalization import Personalization, with_personal_head
from trifed.federation.shared_model import SharedModel
from trifed.federation.upload import RECEIVED, SENT, upload_pipeline
from trifed.methods.aggregation import HEAD
from trifed.methods.base import Stage
from trifed.methods.packing import Layout, Tensors, Vector
from trifed.methods.summaries import projected
from trifed.similarity import Summary


@dataclass(frozen=True)
class AcceptanceLimits:
    """Limits on the downloads that a client accepts.

    Attributes:
        worse_by: nats of mean validation loss by which a download may be worse than the client's own tensors; a
            worse one is rejected. None accepts any.
        others_at_most: largest share, 0 to 1, of the received values in the tensors that training starts from.
    """

    worse_by: float | None = None
    others_at_most: float = 1.0


ANYTHING = AcceptanceLimits()

BeforeRelease = Callable[[ClientState, bytes | None], None]
"""Gets the state after a round, and the upload that is about to leave."""


@dataclass(frozen=True)
class ClientSettings:
    """Settings of a run that a client needs.

    Attributes:
        training: local training of this client.
        seed: seed of the run.
        rounds: rounds of the whole run, for the schedule of the learning rate.
        num_labels: labels of the task, 1 if it learns none.
        guards: policies for releases that could show single examples.
        tells_examples: False if the client counts as one example.
    """

    training: TrainingSettings
    seed: int
    rounds: int
    num_labels: int
    guards: PrivacySettings
    tells_examples: bool = True

    @classmethod
    def of(cls, config: RunConfig, num_labels: int, client: str = "") -> ClientSettings:
        """Return the settings of a configured run; with a client's name, its own training settings."""
        return cls(config.training_of(client), config.seed, config.rounds, num_labels, config.privacy)


@dataclass(frozen=True)
class ClientUpdate:
    """Result of a client's round.

    Attributes:
        upload: the message for the server; None if the method sends nothing.
        loss: mean training loss over the round's steps, nats.
        steps: optimiser steps of the round.
        rejected_download: True if the download was worse than the limits allow, so training ignored it.
    """

    upload: bytes | None
    loss: float
    steps: int
    rejected_download: bool = False


@dataclass(frozen=True)
class ScoredModel:
    """A client's tensors at a stage, their scores, and their share of the received model if it was chosen."""

    tensors: dict[str, Tensor]
    valid: Scores
    test: Scores
    received_share: float | None = None


class Client:
    """One client. `state` changes with every round; `local_init` holds the initial tensors from its labels."""

    def __init__(
        self, context: RunContext, shared_model: SharedModel, dataset: ClientDataset, settings: ClientSettings,
        privacy: ClientPrivacy,
    ) -> None:  # fmt: skip
        self.context = context
        self.shared_model = shared_model
        self.dataset = dataset
        self.settings = settings
        self.privacy = privacy
        self.guards = ReleaseGuards(settings.guards)
        self.uploads = upload_pipeline(privacy.upload_steps(), context.compression, context.keeps_uploads)
        self.personalization = Personalization(
            context, shared_model, dataset, settings.training, privacy, settings.num_labels
        )
        self.state = ClientState({}, {}, 0)
        self.local_init = self.personalization.local_init()

    # -- before the first round

    def gradient(self) -> bytes:
        """Return the message with the mean gradient of the adapted weights on the client's training data."""
        layers = self.shared_model.first_gradient(self.dataset.train, self.settings.training)
        header = self.context.header("gradient", 0, self.dataset.index, self.examples)
        return encode_tensors(header, layers, adapted_layout(self.shared_model))

    def start(self) -> None:
        """Set the state to the common start, with the initial tensors from the client's labels."""
        self.local_init = self.personalization.local_init()
        self.state = ClientState({**self.shared_model.start, **self.local_init}, {}, 0)

    @property
    def examples(self) -> int:
        """Number of training examples that the client states; not exact under privacy."""
        number = self.privacy.num_examples(len(self.dataset.train))
        return number if self.settings.tells_examples else min(number, 1)

    def summary(self, data_id: str = "") -> bytes | None:
        """Return the message with the one-time summary of the training data; None if the method needs none.

        Args:
            data_id: hash of the data; under privacy the same data get the same summary again.

        Raises:
            RunError: it would show single examples, or exceed the privacy budget.
        """
        make = self.context.method.summarise
        if make is None:
            return None
        labelled, train = self.shared_model.task.labelled, self.dataset.train
        seeds = summary_seeds(self.settings.seed, self.dataset.index)

        def exact() -> Summary:
            features = self.shared_model.base_features(train, self.settings.training)
            summary = make(self.context.options, features, train.labels, seeds)
            self.guards.check_summary(summary)
            return summary

        def projected_data() -> tuple[NDArray[np.float64], NDArray[np.int64]]:
            self.shared_model.load(self.shared_model.start)  # a trained pooler would bring in other examples
            features = np.nan_to_num(self.shared_model.base_features(train, self.settings.training))
            labels = train.labels if labelled else np.zeros(len(train), np.int64)
            return projected(features, seeds, self.context.summary_dim), labels

        num_labels = self.settings.num_labels if labelled else 1
        summary = self.privacy.summary(data_id, num_labels, projected_data, exact)
        if not self.state.steps:
            self.start()  # the labels of a new noised summary replace those of an earlier one
        return encode_summary(self.context.header("summary", 0, self.dataset.index), summary)

    # -- rounds

    def round(
        self,
        number: int,
        download: bytes | None,
        limits: AcceptanceLimits = ANYTHING,
        before_release: BeforeRelease | None = None,
    ) -> ClientUpdate:
        """Take the download, within limits, train, and make the upload.

        `before_release` is called before the upload counts as released, so before the ledger has it.

        Raises:
            RunError: the upload would show single examples, or exceed the privacy budget.
            MessageError: the download is not of this round, client and run. Nothing has changed then.
        """
        training = self.begin_round(number, download, limits)
        return self.end_round(
            training, train_rounds(self.shared_model, [training], self.settings.training)[0], before_release
        )

    def begin_round(
        self, number: int, download: bytes | None, limits: AcceptanceLimits = ANYTHING
    ) -> RoundTraining:
        """Take the download, within limits, and return the training to be done; raises as `round` does."""
        layout, training, seed = self.shared_model.layout, self.settings.training, self.settings.seed
        if layout:
            self.privacy.check(number)
        self.guards.check_upload(self.dataset, layout, training, seed, number)
        received = None if download is None else self.accept(number, download, limits)
        proximal = self.context.method.proximal
        return RoundTraining(
            self.dataset,
            self.state,
            received,
            seed,
            number,
            self.settings.rounds,
            proximal(self.context.options) if proximal else None,
            self.privacy.dp_sgd(number, training.batch_size),
            rejected_download=download is not None and received is None,
            settings=training,
            frozen=self.shared_model.untrained(partial(self.context.method.in_turn, number)),
        )

    def end_round(
        self, training: RoundTraining, trained: TrainedRound, before_release: BeforeRelease | None = None
    ) -> ClientUpdate:
        """Take the result of the training, and make the upload; raises as `round` does."""
        number, steps_before = training.number, training.state.steps
        self.state = trained.state
        upload = self._upload(number, trained.sent) if self.shared_model.layout else None
        if before_release:
            before_release(self.state, upload)
        if upload is not None:
            self.privacy.on_release(number, upload)
        return ClientUpdate(upload, trained.loss, trained.state.steps - steps_before, training.rejected_download)

    def accept(self, number: int, download: bytes, limits: AcceptanceLimits) -> Vector | None:
        """Take a download; return its values, (n_values,), or None if they are worse than the limits allow."""
        values = self.take(number, download, limits)
        return None if self._is_worse(values, limits.worse_by) else values

    def take(self, number: int, download: bytes, limits: AcceptanceLimits = ANYTHING) -> Vector:
        """Return the values of a round's download, (n_values,), within limits; raises as `round` does."""
        header = self.context.header("download", number, self.dataset.index)
        form, reference = self.context.for_download(number, download), self.download_reference
        values = form.decode(download, header, reference)[1]
        memory = self.uploads.receive(values, self.state.memory)
        if self.context.method.turns:
            memory = {**memory, RECEIVED: values}  # the next download may hold a part of them
        self.state = replace(self.state, memory=memory)
        if limits.others_at_most < 1 and self.state.steps:
            trained = self.shared_model.pack(self.state.tensors, self.shared_model.received)
            values = (trained + limits.others_at_most * (values - trained)).astype(np.float32)
        return values

    @property
    def reference(self) -> Vector:
        """Values that an upload is a change against: what came or went last, or the common start, (n_values,).

        Client and server both have them, and nothing in them depends on the client's data alone.
        """
        received, sent = self.state.memory.get(RECEIVED), self.state.memory.get(SENT)
        return self.context.upload_reference(self.shared_model.exchanged_start, received, sent)

    @property
    def download_reference(self) -> Vector:
        """Values that a download is a change against: the last one, before that the common start, (n_values,)."""
        return self.context.download_reference(self.shared_model.exchanged_start, self.state.memory.get(RECEIVED))

    def _is_worse(self, values: Vector, worse_by: float | None) -> bool:
        """Return True if received values exceed the client's own validation loss by more than `worse_by` nats."""
        if worse_by is None or not len(self.dataset.valid):
            return False
        before, after = (
            score(self.shared_model, with_personal_head(tensors), self.dataset.valid, self.settings.training).loss
            for tensors in (self.state.tensors, self.shared_model.receive(self.state.tensors, values))
        )
        return not after <= before + worse_by  # also if the loss is NaN

    def _upload(self, number: int, tensors: dict[str, Tensor]) -> bytes:
        header = self.context.header("upload", number, self.dataset.index, self.examples)
        values = self.shared_model.pack(tensors)
        part = self.context.part(number)
        upload, memory = self.uploads.encode(header, values, self.reference, self.state.memory, part)
        self.state = replace(self.state, memory=memory)
        return upload

    def tensors(self, stage: Stage, download: Vector | None) -> dict[str, Tensor]:
        """Return the client's model at a stage; the evaluated one as it is used, with its calibration.

        `download`: values of the last download, (n_values,); None if there was none.
        """
        return self._model(stage, download)[0]

    def on(self, shared_model: SharedModel) -> Client:
        """Return this client with another model of the same adapter, such as a thread's own."""
        other = copy.copy(self)
        other.shared_model, other.personalization = shared_model, copy.copy(self.personalization)
        other.personalization.shared_model = shared_model
        return other

    def evaluated(self, stage: Stage, download: Vector | None) -> ScoredModel:
        """Return the client's model at a stage, as `tensors` does, and its scores."""
        shared_model, training, valid = self.shared_model, self.settings.training, self.dataset.valid
        share = self.personalization.chosen_share(stage, self.state.tensors, download)
        tensors, features = self._model(stage, download, share)
        shared_model.load(tensors)
        known = None if features is None else evaluate_features(shared_model.model, features, valid, training)
        test = score(shared_model, tensors, self.dataset.test, training)
        return ScoredModel(tensors, known or score(shared_model, tensors, valid, training), test, share)

    def _model(
        self, stage: Stage, download: Vector | None, share: float | None = None
    ) -> tuple[dict[str, Tensor], NDArray[np.float32] | None]:
        """Return the model at a stage, and its features of the validation data if they had to be computed."""
        method = self.context.method
        tensors = self.personalization.model(stage, self.state.tensors, download, share)
        if not method.calibrated or stage != method.evaluated_model:
            return tensors, None
        features = None
        if HEAD in tensors and len(self.dataset.valid) > 1:  # otherwise the head is not scaled
            self.shared_model.load(tensors)
            features = embed(self.shared_model.model, self.dataset.valid, self.settings.training)
        return self.personalization.calibrated(tensors, self.local_init, features), features


def adapted_layout(shared_model: SharedModel) -> Layout:
    """Return names and shapes of the adapted layers' weights."""
    return tuple((name, tuple(weight.shape)) for name, weight in shared_model.adapted.items())


def receive_shared_projections(
    shared_model: SharedModel, context: RunContext, client: int, payload: bytes, layout: Layout
) -> Tensors:
    """Set the projections of the adapters to those in a message from the server, and return them.

    Raises:
        MessageError: the message is not of this run and client.
    """
    shared_projections = decode_tensors(payload, context.header("frames", 0, client), layout)[1]
    shared_model.set_shared_projections(shared_projections)
    return shared_projections
