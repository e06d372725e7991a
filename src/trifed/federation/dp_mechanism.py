"""Differential privacy of one client in one run: noise, the ledger, and the last noised summary.

::

    FOLDER/
        ledger.json              every release, written before it leaves
        summary.safetensors      the last noised summary, and a hash of the data that it was made of
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load, save_file

from trifed.common.errors import RunError
from trifed.common.files import whole_file
from trifed.config.run import RunConfig
from trifed.config.settings import PrivacySettings
from trifed.federation.client_privacy import ClientPrivacy, FeaturesAndLabels, Labels, NoPrivacy
from trifed.federation.client_update import ClientDataset
from trifed.federation.state_tensors import open_tensors
from trifed.federation.training.batches import NOISE, seeded
from trifed.federation.training.dp_sgd import DpSgd
from trifed.federation.upload import ClipAndNoise
from trifed.privacy import (
    Entry,
    Ledger,
    Noise,
    noise_multiplier,
    noised_summary,
    seeded_noise,
    steps_multiplier,
)
from trifed.privacy.ledger import SUMMARY, TRAINING, UPDATE
from trifed.similarity import Summary

SUMMARY_FILE, DATA_ID = "summary.safetensors", "mark"
TRAINED = "trained"
"""Digest of the noised training of a sealed round."""
LOST = "lost"
"""Digest of a release whose entry was lost, and which is counted again to be safe."""

Draw = Callable[[int, int], Noise]
"""Purpose and round, 0 for the summary → the source of its noise."""
SUMMARY_NOISE, UPDATE_NOISE, TRAINING_NOISE = 0, 1, 2
"""Purposes of noise."""


@dataclass(frozen=True)
class DpContext:
    """What a client's mechanism depends on besides the run's [privacy].

    Attributes:
        client: The client's name.
        folder: Folder of the ledger and the last noised summary.
        rounds: Rounds of the run.
        steps: Training steps a round; None if they are not fixed.
        draw: Source of noise.
        repeatable: Whether a repeated round has the same noise, so that it is the same release.
        noise_clients: Clients of a sealed sum whose noise together meets the budget; 1 if the run is not sealed.
    """

    client: str
    folder: Path
    rounds: int
    steps: int | None
    draw: Draw
    repeatable: bool = False
    noise_clients: int = 1


class DpMechanism(ClientPrivacy):
    """Noise and ledger of one client in one run.

    Raises:
        RunError: its ledger is damaged or belongs to another run; or `training.steps` is missing, on which the
            noise of private training depends.
    """

    active = True

    def __init__(self, settings: PrivacySettings, context: DpContext) -> None:
        self.settings = settings
        self.context = context
        self.ledger = Ledger(context.folder, context.client, settings)
        summary, update, training = settings.summary, settings.update, settings.training
        if training and not context.steps:
            raise RunError("training.steps: needed with privacy.training; set it")
        self.summary_noise = (
            noise_multiplier(summary.epsilon, summary.delta, summary.releases) if summary else None
        )
        in_sums = context.noise_clients > 1
        self.update_noise = (
            noise_multiplier(update.epsilon, update.delta, context.rounds, in_sums=in_sums) if update else None
        )
        """Noise multiplier of an update or, in a sealed run, of a sum."""
        steps = context.rounds * (context.steps or 0)
        self.steps_noise = (
            steps_multiplier(training.epsilon, training.delta, training.rate, steps) if training else None
        )
        self.released = self._released() if summary else None
        """The noised summary that was released last."""

    # -- before the first round

    def num_examples(self, exact: int) -> int:
        """Return the count in the noised summary, at least 1; 1 without a noised summary."""
        return max(1, int(self.released.class_counts.sum())) if self.released else 1

    def labels(self, exact: Labels) -> Labels:
        """Return labels by the counts in the noised summary where training is noised; else the exact labels."""
        if not self.settings.training:
            return exact
        return np.repeat(self.released.class_labels, self.released.class_counts) if self.released else exact[:0]

    def summary(
        self, data_id: str, num_labels: int, data: FeaturesAndLabels, exact: Callable[[], Summary]
    ) -> Summary:
        """Return the noised summary that these data had before, else a new one; an exact one without noise.

        Raises:
            RunError: a new one would exceed the budget.
        """
        z = self.summary_noise
        summary = exact() if z is None else self._noised_summary(data_id, num_labels, z, data)
        self.ledger.enter(Entry(what=SUMMARY, round=0, multiplier=z, digest=digest_of(summary.to_arrays())))
        self.released = None if z is None else summary
        return summary

    def _noised_summary(self, data_id: str, num_labels: int, z: float, data: FeaturesAndLabels) -> Summary:
        summary = self._released(data_id)
        if summary is None:
            self.ledger.check_new(Entry(what=SUMMARY, round=0, multiplier=z, digest=""))
            summary = noised_summary(*data(), num_labels, z, self.context.draw(SUMMARY_NOISE, 0))
            # First, to be sent again after a crash.
            with whole_file(self.context.folder / SUMMARY_FILE, durable=True) as path:
                save_file(summary.to_arrays(), path, {DATA_ID: data_id})
        return summary

    def on_reopen(self, *, has_summary: bool) -> None:
        """Begin a ledger that was lost, with the summary that was released."""
        if self.ledger.path.exists():
            return
        self.ledger.lose()
        if has_summary:
            self.ledger.enter(Entry(what=SUMMARY, round=0, multiplier=self.summary_noise, digest=LOST))

    def on_state_lost(self) -> None:
        """Note that entries may be missing: each earlier round without an entry is counted."""
        self.ledger.lose()

    def _released(self, data_id: str | None = None) -> Summary | None:
        """Return the summary that was released last; None if there is none, or one of other data."""
        path = self.context.folder / SUMMARY_FILE
        if not path.is_file():
            return None
        with open_tensors(path, "remove it, and the next summary is a new release") as file:
            if data_id is not None and (file.metadata() or {}).get(DATA_ID) != data_id:
                return None
            return Summary.from_arrays({name: file.get_tensor(name).numpy() for name in file.keys()})  # noqa: SIM118

    # -- rounds

    def check(self, round_number: int) -> None:
        """Check the budget; first count earlier rounds whose entries were lost."""
        if self.ledger.book.lost:
            for earlier in range(1, round_number):
                for entry in self._entries(earlier, LOST):
                    self.ledger.enter_missing(entry)
        check = self.ledger.check if self.context.repeatable else self.ledger.check_new
        for entry in self._entries(round_number, ""):
            (self.ledger.check if self._once_a_round(entry) else check)(entry)

    def dp_sgd(self, round_number: int, batch_size: int) -> DpSgd | None:
        """Return the step of DP-SGD; `batch_size` is a public number that divides the sum of gradients."""
        training, z = self.settings.training, self.steps_noise
        if training is None or z is None:
            return None
        return DpSgd(training.clip, z, training.rate, batch_size, self.context.draw(TRAINING_NOISE, round_number))

    def upload_steps(self) -> list[ClipAndNoise]:
        """Return the Gaussian mechanism on updates, where the run has it."""
        update, z = self.settings.update, self.update_noise
        if update is None or z is None:
            return []
        return [ClipAndNoise(update.clip, z, lambda round_number: self.context.draw(UPDATE_NOISE, round_number))]

    def sum_noise(self, round_number: int) -> Noise | None:
        """Return the source of the client's share of the noise in a sealed sum; None without noise on updates."""
        return None if self.update_noise is None else self.context.draw(UPDATE_NOISE, round_number)

    def on_trained(self, round_number: int) -> None:
        """Enter the noised training of a sealed round, which a sum of this or a later round shows."""
        for entry in self._entries(round_number, TRAINED):
            if entry.what == TRAINING:
                self.ledger.enter_missing(entry)

    def on_release(self, round_number: int, payload: bytes) -> None:
        """Enter an upload, and the noised training that it shows."""
        for entry in self._entries(round_number, digest_of(load(payload))):
            (self.ledger.enter_missing if self._once_a_round(entry) else self.ledger.enter)(entry)

    def _once_a_round(self, entry: Entry) -> bool:
        """Return whether a round has one such entry: training in a sealed run, where a repetition replaces it."""
        return entry.what == TRAINING and self.context.noise_clients > 1

    def _entries(self, round_number: int, digest: str) -> list[Entry]:
        """Return the ledger's entries for a round's upload: its training where that is noised, and the update."""
        z, clients = self.update_noise, self.context.noise_clients
        update = Entry(
            what=UPDATE, round=round_number, multiplier=z, digest=digest, clients=1 if z is None else clients
        )
        training, z, steps = self.settings.training, self.steps_noise, self.context.steps or 0
        if training is None:
            return [update]
        of_training = {"what": TRAINING, "clients": 1, "multiplier": z, "rate": training.rate, "steps": steps}
        return [update.model_copy(update=of_training), update]


def make_privacy(
    config: RunConfig, client: str, folder: Path, draw: Draw, *, repeatable: bool = False
) -> ClientPrivacy:
    """Return a client's protection; none without [privacy]. For the arguments see `DpContext`."""
    if not config.privacy.on:
        return NoPrivacy()
    steps, clients = config.training.steps, config.sealing.noise_clients
    context = DpContext(client, folder, config.rounds, steps, draw, repeatable, clients)
    return DpMechanism(config.privacy, context)


def simulated_privacy(config: RunConfig, client: ClientDataset, folder: Path) -> ClientPrivacy:
    """Return a simulated client's protection: noise from the run's seed, and a ledger in `folder`."""

    def draw(purpose: int, round_number: int) -> Noise:
        return seeded_noise(seeded(config.seed, NOISE, purpose, round_number, client.index))

    return make_privacy(config, client.name, folder, draw, repeatable=True)


def digest_of(arrays: Mapping[str, NDArray[np.generic]]) -> str:
    """Return 32 hex digits over released arrays; a message's bytes differ, as its header has no fixed order."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(f"{name} {arrays[name].dtype} {arrays[name].shape}".encode() + arrays[name].tobytes())
    return digest.hexdigest()[:32]
