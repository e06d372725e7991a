"""A client's side of a run: its state, and every message that it writes or reads, on any engine."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from trifed.common.errors import RunError
from trifed.federation.client_privacy import ClientPrivacy
from trifed.federation.client_settings import ANYTHING, AcceptanceLimits, ClientSettings
from trifed.federation.client_update import (
    ClientDataset,
    ClientState,
    RoundTraining,
    TrainedRound,
    score,
    summary_seeds,
    train_rounds,
)
from trifed.federation.context import RunContext, encode_tensors
from trifed.federation.guards import ReleaseGuards
from trifed.federation.messages import encode_summary
from trifed.federation.personalization import Personalization, with_personal_head
from trifed.federation.sealed.numbers import Mask, Sign
from trifed.federation.sealed.rules import SumTerms
from trifed.federation.sealed.upload import SealedUploads, held_labels
from trifed.federation.shared_projections import adapted_layout
from trifed.federation.training.evaluation import Scores, embed, evaluate_features
from trifed.federation.training.shared_model import SharedModel
from trifed.federation.upload import RECEIVED, SENT, Uploads, upload_pipeline
from trifed.methods.aggregation import HEAD
from trifed.methods.base import Stage
from trifed.methods.packing import Vector
from trifed.methods.summaries import projected
from trifed.similarity import Summary

BeforeRelease = Callable[[ClientState, bytes | None], None]
"""Gets the state after a round, and the upload that is about to leave."""


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
        self.uploads = self._uploads()
        self.personalization = Personalization(
            context, shared_model, dataset, settings.training, privacy, settings.num_labels
        )
        self.state = ClientState({}, {}, 0)
        self.local_init = self.personalization.local_init()

    def _uploads(self) -> Uploads:
        """Return the steps of the client's uploads, or of its parts of sums."""
        compression, rules = self.context.compression, self.context.sums
        if rules is None:
            return upload_pipeline(self.privacy.upload_steps(), compression, self.context.keeps_uploads)
        labels = rules.labels(compression.layout)
        return SealedUploads(compression, rules, held_labels(self.dataset.train.labels, labels))

    # -- before the first round

    def gradient(self) -> bytes:
        """Return the message with the mean gradient of the adapted weights on the client's training data."""
        layers = self.shared_model.first_gradient(self.dataset.train, self.settings.training)
        header = self.context.header("gradient", 0, self.dataset.index, self.examples)
        return encode_tensors(header, layers, adapted_layout(self.shared_model))

    def start(self) -> None:
        """Set the state to the common start, with the initial tensors from the client's labels."""
        self.local_init = self.personalization.local_init()
        self.state = ClientState(self.personalization.start(self.local_init), {}, 0)

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
            phases=self.context.method.phases,
        )

    def end_round(
        self, training: RoundTraining, trained: TrainedRound, before_release: BeforeRelease | None = None
    ) -> ClientUpdate:
        """Take the result of the training, and make the upload; raises as `round` does."""
        number, steps_before = training.number, training.state.steps
        self.state = trained.state
        upload = self._upload(number, trained.sent) if self.shared_model.layout else None
        if upload is None and self.shared_model.layout:  # a sealed run: a later sum has what was trained
            self.privacy.on_trained(number)
        if before_release:
            before_release(self.state, upload)
        if upload is not None:
            self.privacy.on_release(number, upload)
        return ClientUpdate(upload, trained.loss, trained.state.steps - steps_before, training.rejected_download)

    def send(
        self,
        number: int,
        sum_terms: bytes,
        mask: Mask | None = None,
        before_release: BeforeRelease | None = None,
        sign: Sign | None = None,
    ) -> bytes:
        """Return the client's part of the sealed sum of a round, 0 for the one before the first.

        Args:
            number: the round, whose training has come before.
            sum_terms: the server's message with the terms of the sum.
            mask: adds the client's masks to integers modulo 2^bits; None for none, as in a simulated run. It is
                called for each array of the part in turn.
            before_release: called with the state after it, before the part counts as released.
            sign: signs the masked integers of round 0; None in a simulated run.

        Raises:
            RunError: the run is not sealed.
            MessageError: the terms are not those of a sum of this round and client, or there is nothing to send.
        """
        index, rules = self.dataset.index, self.context.sums
        if rules is None or not isinstance(self.uploads, SealedUploads):
            raise RunError("a part of a sum was asked for, and this run is not sealed; set sealing.on = true")
        header = self.context.header("upload", number, index, self.examples)
        layout = self.uploads.compression.layout
        expected = self.context.header("terms", number, index)
        found = SumTerms.decode(sum_terms, expected, rules.stepped(layout), rules.at_least, rules.labels(layout))
        noise = self.privacy.sum_noise(number)
        part, memory = self.uploads.send(header, found, self.state.memory, mask, sign, noise)
        self.state = replace(self.state, memory=memory)
        if before_release:
            before_release(self.state, part)
        self.privacy.on_release(number, part)
        return part

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
        return self._with_own(values)

    def _with_own(self, values: Vector) -> Vector:
        """Return received values, (n_values,), with those of its own that the client keeps."""
        own = self.uploads.own(self.state.memory)
        if own is None:
            return values
        kept = self.shared_model.pack(self.state.tensors, self.shared_model.received)
        return np.where(own, kept, values).astype(np.float32)

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

    def _upload(self, number: int, tensors: dict[str, Tensor]) -> bytes | None:
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
        return self._model(stage, None if download is None else self._with_own(download))[0]

    def on(self, shared_model: SharedModel) -> Client:
        """Return this client with another model of the same adapter, such as a thread's own."""
        other = copy.copy(self)
        other.shared_model, other.personalization = shared_model, copy.copy(self.personalization)
        other.personalization.shared_model = shared_model
        return other

    def evaluated(self, stage: Stage, download: Vector | None) -> ScoredModel:
        """Return the client's model at a stage, as `tensors` does, and its scores."""
        shared_model, training, valid = self.shared_model, self.settings.training, self.dataset.valid
        download = None if download is None else self._with_own(download)
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
