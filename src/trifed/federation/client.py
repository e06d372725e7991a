"""A client's side of a run: what it keeps, and every message that it writes or reads. The same on every engine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trifed.common.errors import GuardError
from trifed.config.settings import Guarding, PrivacySettings, TrainingSettings
from trifed.federation.client_update import (
    ClientDataset,
    ClientState,
    calibrate,
    score,
    summary_seeds,
    train_round,
)
from trifed.federation.context import RunContext, decode_tensors, encode_tensors
from trifed.federation.dp_mechanism import DpMechanism
from trifed.federation.guards import few_tokens, small_components, too_few
from trifed.federation.messages import encode_summary
from trifed.federation.shared_model import SharedModel
from trifed.methods.packing import Layout, Tensors, Vector
from trifed.methods.summaries import projected
from trifed.similarity import Summary


@dataclass(frozen=True)
class Limits:
    """What a client takes of what comes.

    `worse_by`: by how much it may be worse for the validation examples than what the client has, in nats of mean
    loss, before it goes on from its own instead; None for any. `others_at_most`: the largest share, 0 to 1, that
    others can have in what it goes on from, whatever the server sends.
    """

    worse_by: float | None = None
    others_at_most: float = 1.0


ANYTHING = Limits()
GUARDED = PrivacySettings()

Keep = Callable[[ClientState, bytes | None], None]
"""The state after a round, and the upload that is about to leave."""


@dataclass(frozen=True)
class Done:
    """What a client's round gives.

    `upload`: None where nothing travels; `loss`: mean over its steps, nats; `kept_own`: what came was not taken.
    """

    upload: bytes | None
    loss: float
    steps: int
    kept_own: bool = False


class Client:
    """One client. `state`: what it keeps from round to round; `own`: of the start what comes from its labels.

    `labels`: how many there are in all; `rounds`: of the whole run, which the learning rate's schedule needs;
    `privacy`: what this client lets out; `warned`: by setting, what there first was against something it let out;
    `noising`: noise and ledger where the run asks for them.
    """

    def __init__(
        self, context: RunContext, shared_model: SharedModel, client: ClientDataset, training: TrainingSettings,
        seed: int, rounds: int, labels: int, privacy: PrivacySettings = GUARDED,
        dp_mechanism: DpMechanism | None = None,
    ) -> None:  # fmt: skip
        self.context = context
        self.shared_model = shared_model
        self.client = client
        self.training = training
        self.seed = seed
        self.rounds = rounds
        self.labels = labels
        self.privacy = privacy
        self.warned: dict[str, str] = {}
        self.dp_mechanism = dp_mechanism
        self.state = ClientState({}, {}, 0)
        self.own = self._own()

    # -- before the first round

    def _own(self, all_labels: bool = False) -> dict[str, Tensor]:
        """The start that the method takes from this client's labels; from noised counts if training is noised.

        `all_labels`: from those of its validation examples too.
        """
        make, labels = self.context.method.local_init, self.client.train.labels
        if self.dp_mechanism and self.dp_mechanism.settings.training:
            told = self.dp_mechanism.told
            labels = np.repeat(told.class_labels, told.class_counts) if told else labels[:0]
        elif all_labels:
            labels = np.concatenate([labels, self.client.valid.labels])
        own = make(self.context.options, labels, self.labels) if make else {}
        return {name: torch.from_numpy(values) for name, values in own.items()}

    def gradient(self) -> bytes:
        """The mean gradient of the adapted weights on this client's training data."""
        layers = self.shared_model.first_gradient(self.client.train, self.training)
        header = self.context.header("gradient", 0, self.client.index, len(self.client.train))
        return encode_tensors(header, layers, adapted_layout(self.shared_model))

    def start(self) -> None:
        """Take the common start, and over it what the method takes from this client's labels."""
        self.state = ClientState({**self.shared_model.start, **self.own}, {}, 0)

    @property
    def examples(self) -> int:
        """How many training examples this client says it has: with noise no exact number."""
        return self.dp_mechanism.examples if self.dp_mechanism else len(self.client.train)

    def summary(self, mark: str = "") -> bytes | None:
        """The one-time summary of this client's training data; None where the method asks for none.

        `mark`: of the data, where there is noise: the same noised summary is told again of the same data.

        Raises:
            RunError: it would show single examples.
        """
        make = self.context.method.summarise
        if make is None:
            return None
        found = self._noised_summary(mark) if self.dp_mechanism else None
        if found is None:
            features = self.shared_model.base_features(self.client.train, self.training)
            seeds = summary_seeds(self.seed, self.client.index)
            found = make(self.context.options, features, self.client.train.labels, seeds)
            self._guard("small_components", small_components(found))
            if self.dp_mechanism:
                self.dp_mechanism.tell_unprotected(found)
        if self.dp_mechanism and self.dp_mechanism.settings.training and not self.state.steps:
            self.own = self._own()
            self.start()
        return encode_summary(self.context.header("summary", 0, self.client.index), found)

    def _noised_summary(self, mark: str) -> Summary | None:
        """With noise, of the labels that are public: of one where the task learns none."""
        labelled, train = self.shared_model.task.labelled, self.client.train

        def data() -> tuple[NDArray[np.float64], NDArray[np.int64]]:
            self.shared_model.load(
                self.shared_model.start
            )  # a pooler that was trained would bring other examples in
            features = np.nan_to_num(self.shared_model.base_features(train, self.training))
            seeds = summary_seeds(self.seed, self.client.index)
            return projected(features, seeds, self.context.summary_dim), train.labels if labelled else np.zeros(
                len(train), np.int64
            )

        return self.dp_mechanism.summary(mark, self.labels if labelled else 1, data) if self.dp_mechanism else None

    # -- rounds

    def round(
        self, number: int, download: bytes | None, limits: Limits = ANYTHING, keep: Keep | None = None
    ) -> Done:
        """Take what came, within this client's limits, train, and write the upload.

        `keep` is called before the upload counts as released: before the ledger has it, where there is one.

        Raises:
            RunError: the upload would show single examples, or the privacy budget has nothing left for it.
            MessageError: the download is none of this round, client and run. Nothing has changed then.
        """
        if self.dp_mechanism and self.shared_model.layout:
            self.dp_mechanism.check(number)
        if not self.privacy.update and not self.privacy.training:  # else noise bounds what an upload shows
            few = few_tokens(self.client, self.shared_model.layout, self.training, self.seed, number)
            self._guard("few_tokens", too_few({self.client.name: few}) if few else "")
        values = None if download is None else self.take(number, download, limits)
        kept_own = values is not None and limits.worse_by is not None and self._worse(values, limits.worse_by)
        if kept_own:
            values = None
        method, before = self.context.method, self.state.steps
        done = train_round(
            self.shared_model,
            self.client,
            self.state,
            values,
            self.training,
            seed=self.seed,
            round_number=number,
            rounds=self.rounds,
            proximal=method.proximal(self.context.options) if method.proximal else None,
            privately=self.dp_mechanism.steps(number, self.training.batch_size) if self.dp_mechanism else None,
        )
        self.state = done.state
        upload = self._upload(number, done.sends)
        if keep:
            keep(self.state, upload)
        if self.dp_mechanism and upload is not None:
            self.dp_mechanism.enter(number, upload)
        return Done(upload, done.loss, done.state.steps - before, kept_own)

    def _guard(self, setting: str, against: str) -> None:
        """Refuse what there is something against, or let it out with a warning, or without one."""
        policy: Guarding = getattr(self.privacy, setting)
        if against and policy == "refuse":
            raise GuardError(against)
        if against and policy == "warn":
            self.warned.setdefault(setting, against)

    def _worse(self, values: Vector, by: float) -> bool:
        """Is what came worse for this client's validation examples than what it has?"""
        if not len(self.client.valid):
            return False
        own, theirs = (
            score(self.shared_model, tensors, self.client.valid, self.training).loss
            for tensors in (self.state.tensors, self.shared_model.receive(self.state.tensors, values))
        )
        return not theirs <= own + by  # also where it is no number

    def take(self, number: int, download: bytes, limits: Limits = ANYTHING) -> Vector:
        """What a download of round `number` brings, (n_values,), within limits; raises as `round` does."""
        header, known = self.context.header("download", number, self.client.index), self.known
        arrived = self.context.wire.decode(download, header, known)[1]
        if self.context.wire.bits is not None or (self.dp_mechanism and self.dp_mechanism.updates):
            self._remember(received=arrived)
        if limits.others_at_most < 1 and self.state.steps:
            own = self.shared_model.pack(self.state.tensors)
            arrived = (own + limits.others_at_most * (arrived - own)).astype(np.float32)
        return arrived

    def _upload(self, number: int, tensors: dict[str, Tensor]) -> bytes | None:
        """The upload. With noise all that enters it of the training is the clipped and noised change.

        What rounding keeps back is then a part of numbers that could have been sent as they are, and so is all
        that it adds to later uploads: post-processing.
        """
        if not self.shared_model.layout:
            return None
        header, known = self.context.header("upload", number, self.client.index, self.examples), self.known
        wanted = self.shared_model.pack(tensors)
        if self.dp_mechanism and self.dp_mechanism.updates:
            wanted = self.received + self.dp_mechanism.noised(number, wanted - self.received)
        if "owed" in self.state.wire:
            wanted = wanted + self.state.wire["owed"]
        payload = self.context.wire.encode(header, wanted, known)
        if self.context.wire.bits is not None:
            self._remember(owed=wanted - self.context.wire.decode(payload, header, known)[1])
        return payload

    @property
    def known(self) -> Vector:
        """What a message's numbers are changes against: what both sides know that this client had last.

        Nothing where the values themselves travel.
        """
        return np.zeros(0, np.float32) if self.context.wire.bits is None else self.received

    @property
    def received(self) -> Vector:
        """What the server sent this client last, before that the common start; nothing of the client's data."""
        return self.state.wire.get("received", self.shared_model.start_values)

    def _remember(self, **vectors: Vector) -> None:
        self.state = replace(self.state, wire={**self.state.wire, **vectors})

    # -- models

    def tensors(self, stage: str, arrived: Vector | None) -> dict[str, Tensor]:
        """The model at a stage: "trained", "received", or "between"; the one that is scored as it is used.

        `arrived`: what the last download brought, None where there was none.
        """
        method = self.context.method
        found = self._at(stage, arrived)
        if method.calibrated and stage == method.evaluated_model:
            found = self._with_all_labels(found)
            return calibrate(self.shared_model, found, self.client.valid, self.training)
        return found

    def _with_all_labels(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Training needs the prior of what it trains on; what is used, the best estimate there is."""
        more = self._own(all_labels=True)
        kept = {name: own for name, own in self.own.items() if name in tensors}  # a task may have no head
        return {**tensors, **{name: tensors[name] + more[name] - own for name, own in kept.items()}}

    def _at(self, stage: str, arrived: Vector | None) -> dict[str, Tensor]:
        own = self.state.tensors
        if stage == "trained" or arrived is None:
            return own
        received = self.shared_model.receive(own, arrived)
        if stage == "received":
            return received
        return {
            name: torch.lerp(tensor, received[name], self.context.method.interpolation)
            for name, tensor in own.items()
        }


def adapted_layout(shared_model: SharedModel) -> Layout:
    """Names and shapes of the adapted layers' weights."""
    return tuple((name, tuple(weight.shape)) for name, weight in shared_model.adapted.items())


def receive_shared_projections(
    shared_model: SharedModel, context: RunContext, client: int, payload: bytes, layout: Layout
) -> Tensors:
    """Put the frames that the server made in the place of the adapter's own, and give them, or MessageError."""
    shared_projections = decode_tensors(payload, context.header("frames", 0, client), layout)[1]
    shared_model.set_shared_projections(shared_projections)
    return shared_projections
