"""A client's side of a run: what it keeps, and every message that it writes or reads. The same on every engine."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from trifed.errors import RunError
from trifed.federation.client import Client, ClientState, score, summary_seeds, temper, train_round
from trifed.federation.guards import few_tokens, small_components, too_few
from trifed.federation.messages import encode_summary
from trifed.federation.terms import Terms, decode_tensors, encode_tensors
from trifed.federation.workbench import Workbench
from trifed.methods.packing import Layout, Tensors, Vector
from trifed.settings import Guarding, PrivacySettings, TrainingSettings

TOWARDS_RECEIVED = 0.75
"""How far the model "between" lies from what was trained (0) to what was received (1)."""


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


@dataclass(frozen=True)
class Done:
    """What a client's round gives.

    `upload`: None where nothing travels; `loss`: mean over its steps, nats; `kept_own`: what came was not taken.
    """

    upload: bytes | None
    loss: float
    steps: int
    kept_own: bool = False


class Site:
    """One client. `state`: what it keeps from round to round; `own`: of the start what comes from its labels.

    `labels`: how many there are in all; `rounds`: of the whole run, which the learning rate's schedule needs;
    `privacy`: what this client lets out; `warned`: by setting, what there first was against something it let out.
    """

    def __init__(
        self, terms: Terms, bench: Workbench, client: Client, training: TrainingSettings, seed: int, rounds: int,
        labels: int, privacy: PrivacySettings = GUARDED,
    ) -> None:  # fmt: skip
        self.terms = terms
        self.bench = bench
        self.client = client
        self.training = training
        self.seed = seed
        self.rounds = rounds
        self.privacy = privacy
        self.warned: dict[str, str] = {}
        self.state = ClientState({}, {}, 0)
        make = terms.method.own_start
        own = make(terms.options, client.train.labels, labels) if make else {}
        self.own = {name: torch.from_numpy(values) for name, values in own.items()}

    # -- before the first round

    def gradient(self) -> bytes:
        """The mean gradient of the adapted weights on this client's training data."""
        layers = self.bench.first_gradient(self.client.train, self.training)
        header = self.terms.header("gradient", 0, self.client.index, len(self.client.train))
        return encode_tensors(header, layers, adapted_layout(self.bench))

    def start(self) -> None:
        """Take the common start, and over it what the method takes from this client's labels."""
        self.state = ClientState({**self.bench.start, **self.own}, {}, 0)

    def summary(self) -> bytes | None:
        """The one-time summary of this client's training data; None where the method asks for none.

        Raises:
            RunError: it would show single examples.
        """
        make = self.terms.method.summarise
        if make is None:
            return None
        features = self.bench.base_features(self.client.train, self.training)
        seeds = summary_seeds(self.seed, self.client.index)
        found = make(self.terms.options, features, self.client.train.labels, seeds)
        self._guard("small_components", small_components(found))
        return encode_summary(self.terms.header("summary", 0, self.client.index), found)

    # -- rounds

    def round(self, number: int, download: bytes | None, limits: Limits = ANYTHING) -> Done:
        """Take what came, within this client's limits, train, and write the upload.

        Raises:
            RunError: the upload would show single examples.
            MessageError: the download is none of this round, client and run. Nothing has changed then.
        """
        few = few_tokens(self.client, self.bench.layout, self.training, self.seed, number)
        self._guard("few_tokens", too_few({self.client.name: few}) if few else "")
        values = None if download is None else self.take(number, download, limits)
        kept_own = values is not None and limits.worse_by is not None and self._worse(values, limits.worse_by)
        if kept_own:
            values = None
        method, before = self.terms.method, self.state.steps
        done = train_round(
            self.bench,
            self.client,
            self.state,
            values,
            self.training,
            seed=self.seed,
            round_number=number,
            rounds=self.rounds,
            proximal=method.proximal(self.terms.options) if method.proximal else None,
        )
        self.state = done.state
        return Done(self._upload(number, done.sends), done.loss, done.state.steps - before, kept_own)

    def _guard(self, setting: str, against: str) -> None:
        """Refuse what there is something against, or let it out with a warning, or without one."""
        policy: Guarding = getattr(self.privacy, setting)
        if against and policy == "refuse":
            raise RunError(against)
        if against and policy == "warn":
            self.warned.setdefault(setting, against)

    def _worse(self, values: Vector, by: float) -> bool:
        """Is what came worse for this client's validation examples than what it has?"""
        if not len(self.client.valid):
            return False
        own, theirs = (
            score(self.bench, tensors, self.client.valid, self.training).loss
            for tensors in (self.state.tensors, self.bench.receive(self.state.tensors, values))
        )
        return not theirs <= own + by  # also where it is no number

    def take(self, number: int, download: bytes, limits: Limits = ANYTHING) -> Vector:
        """What a download of round `number` brings, (n_values,), within limits; raises as `round` does."""
        header, known = self.terms.header("download", number, self.client.index), self.known
        arrived = self.terms.wire.decode(download, header, known)[1]
        self._remember(received=arrived)
        if limits.others_at_most < 1 and self.state.steps:
            own = self.bench.pack(self.state.tensors)
            arrived = (own + limits.others_at_most * (arrived - own)).astype(np.float32)
        return arrived

    def _upload(self, number: int, tensors: dict[str, Tensor]) -> bytes | None:
        if not self.bench.layout:
            return None
        header, known = self.terms.header("upload", number, self.client.index, len(self.client.train)), self.known
        wanted = self.bench.pack(tensors)
        if "owed" in self.state.wire:
            wanted = wanted + self.state.wire["owed"]
        payload = self.terms.wire.encode(header, wanted, known)
        self._remember(owed=wanted - self.terms.wire.decode(payload, header, known)[1])
        return payload

    @property
    def known(self) -> Vector:
        """What both sides know that this client had last; nothing where the values themselves travel."""
        if self.terms.wire.bits is None:
            return np.zeros(0, np.float32)
        return self.state.wire.get("received", self.bench.start_values)

    def _remember(self, **vectors: Vector) -> None:
        if self.terms.wire.bits is not None:
            self.state = replace(self.state, wire={**self.state.wire, **vectors})

    # -- models

    def tensors(self, stage: str, arrived: Vector | None) -> dict[str, Tensor]:
        """The model at a stage: "trained", "received", or "between"; the one that is scored as it is used.

        `arrived`: what the last download brought, None where there was none.
        """
        method = self.terms.method
        found = self._at(stage, arrived)
        if method.tempered and stage == method.scored:
            return temper(self.bench, found, self.client.valid, self.training)
        return found

    def _at(self, stage: str, arrived: Vector | None) -> dict[str, Tensor]:
        own = self.state.tensors
        if stage == "trained" or arrived is None:
            return own
        received = self.bench.receive(own, arrived)
        if stage == "received":
            return received
        return {name: torch.lerp(tensor, received[name], TOWARDS_RECEIVED) for name, tensor in own.items()}


def adapted_layout(bench: Workbench) -> Layout:
    """Names and shapes of the adapted layers' weights."""
    return tuple((name, tuple(weight.shape)) for name, weight in bench.adapted.items())


def take_frames(bench: Workbench, terms: Terms, client: int, payload: bytes, layout: Layout) -> Tensors:
    """Put the frames that the server made in the place of the adapter's own, and give them, or MessageError."""
    frames = decode_tensors(payload, terms.header("frames", 0, client), layout)[1]
    bench.fix_frames(frames)
    return frames
