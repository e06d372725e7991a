"""What stands between a client's data and the wire where a run has [privacy]: noise, the ledger, what it may say.

::

    FOLDER/
        ledger.json              every release, written before it leaves
        summary.safetensors      the last noised summary, and a mark of the data it was made of
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load, save_file

from trifed.common.errors import RunError
from trifed.common.files import whole_file
from trifed.config.settings import PrivacySettings
from trifed.federation.dp_sgd import DpSgd
from trifed.methods.packing import Vector
from trifed.privacy import Entry, Ledger, Noise, clipped, noise_multiplier, noised_summary, steps_multiplier
from trifed.privacy.ledger import SUMMARY, TRAINING, UPDATE
from trifed.similarity import Summary
from trifed.similarity.checks import Ints

KEPT, MARK = "summary.safetensors", "mark"
LOST = "lost"
"""The digest of a release whose entry was lost, and that is counted again to be safe."""

Draw = Callable[[int, int], Noise]
"""Purpose and round, 0 for the summary → where its noise comes from."""
TOLD, SENT, TRAINED = 0, 1, 2
"""Purposes of noise."""


@dataclass(frozen=True)
class DpContext:
    """Whom noise is for, and where it keeps things. `steps`: of training a round; `draw`: source of noise."""

    client: str
    folder: Path
    rounds: int
    steps: int | None
    draw: Draw


class DpMechanism:
    """Of one client in one run.

    Raises:
        RunError: its ledger is damaged, or of another run; or training is to be noised for no number of steps.
    """

    def __init__(self, settings: PrivacySettings, whose: DpContext) -> None:
        self.settings = settings
        self.whose = whose
        self.ledger = Ledger(whose.folder, whose.client, settings)
        told, sent, trained = settings.summary, settings.update, settings.training
        self.summary_noise = noise_multiplier(told.epsilon, told.delta, told.releases) if told else None
        self.update_noise = noise_multiplier(sent.epsilon, sent.delta, whose.rounds) if sent else None
        self.steps_noise: float | None = None
        if trained:
            if not whose.steps:
                raise RunError("training.steps: needed with privacy.training; set it")
            steps = whose.rounds * whose.steps
            self.steps_noise = steps_multiplier(trained.epsilon, trained.delta, trained.rate, steps)
        self.told = self._kept(None) if told else None
        """The noised summary that was told last."""

    @property
    def examples(self) -> int:
        """What a client says of how many examples it has: what its noised summary says, else 1, as all do."""
        return max(1, int(self.told.class_counts.sum())) if self.told else 1

    # -- the summary

    def summary(
        self, mark: str, n_labels: int, data: Callable[[], tuple[NDArray[np.float64], Ints]]
    ) -> Summary | None:
        """The noised summary of the data with this mark: the one that was told already, else a new release.

        `data`: projected features (n, dim) and labels (n,). None where summaries are not protected.

        Raises:
            RunError: a new one would go over the budget.
        """
        z = self.summary_noise
        if z is None:
            return None
        found = self._kept(mark)
        if found is None:
            self.ledger.check_new(Entry(what=SUMMARY, round=0, multiplier=z, digest=""))
            features, labels = data()
            found = noised_summary(features, labels, n_labels, z, self.whose.draw(TOLD, 0))
            with whole_file(self.whose.folder / KEPT) as path:  # first, so that it can be told again after a crash
                save_file(found.to_arrays(), path, {MARK: mark})
        self.ledger.enter(Entry(what=SUMMARY, round=0, multiplier=z, digest=digest_of(found.to_arrays())))
        self.told = found
        return found

    def opened_again(self, *, summarises: bool) -> None:
        """The server has opened this client before: a ledger that is not there was lost with what it said.

        `summarises`: does the method tell summaries? Then one was told.
        """
        if self.ledger.path.exists():
            return
        self.ledger.lose()
        if summarises:
            self.ledger.enter(Entry(what=SUMMARY, round=0, multiplier=self.summary_noise, digest=LOST))

    def lose(self) -> None:
        """This client's rounds are gone, or older than the server knows, and so may be the ledger's."""
        self.ledger.lose()

    def tell_unprotected(self, summary: Summary) -> None:
        """Enter a summary that goes out as it is."""
        self.ledger.enter(Entry(what=SUMMARY, round=0, multiplier=None, digest=digest_of(summary.to_arrays())))

    def _kept(self, mark: str | None) -> Summary | None:
        """The summary that was told last, of data with this mark, or any; None where there is none."""
        path = self.whose.folder / KEPT
        if not path.is_file():
            return None
        try:
            with safe_open(path, "np") as file:
                if mark is not None and (file.metadata() or {}).get(MARK) != mark:
                    return None
                return Summary.from_arrays({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
        except SafetensorError as error:
            raise RunError(
                f"{path}: damaged ({error}); remove it, and the next summary is a new release"
            ) from error

    # -- updates

    @property
    def updates(self) -> bool:
        """Are updates clipped and noised?"""
        return self.settings.update is not None

    def check(self, number: int) -> None:
        """Before training for round `number`; RunError where the budget has nothing left for its update."""
        if self.ledger.book.lost:
            for before in range(1, number):
                for entry in self._entries(before, LOST):
                    self.ledger.enter_missing(entry)
        for entry in self._entries(number, ""):
            self.ledger.check(entry)

    def noised(self, number: int, change: Vector) -> Vector:
        """A round's change, (n,), clipped and with noise on every number; unchanged where none is asked for."""
        chosen, z = self.settings.update, self.update_noise
        if chosen is None or z is None:
            return change
        noise = self.whose.draw(SENT, number)(len(change))
        found: Vector = (clipped(change, chosen.clip) + chosen.clip * z * noise).astype(np.float32)
        return found

    def steps(self, number: int, divisor: int) -> DpSgd | None:
        """How round `number` trains: None as without noise; `divisor`: a public number of examples a step."""
        chosen, z = self.settings.training, self.steps_noise
        if chosen is None or z is None:
            return None
        return DpSgd(chosen.clip, z, chosen.rate, divisor, self.whose.draw(TRAINED, number))

    def enter(self, number: int, payload: bytes) -> None:
        """Enter an upload before it leaves; RunError where it would go over the budget, and must not leave."""
        for entry in self._entries(number, digest_of(load(payload))):
            self.ledger.enter(entry)

    def _entries(self, number: int, digest: str) -> list[Entry]:
        """What an upload of a round is entered as: that it was sent, and the training that it shows."""
        found = [Entry(what=UPDATE, round=number, multiplier=self.update_noise, digest=digest)]
        chosen, z = self.settings.training, self.steps_noise
        if chosen is None or z is None:
            return found
        steps = self.whose.steps or 0
        trained = Entry(what=TRAINING, round=number, multiplier=z, digest=digest, rate=chosen.rate, steps=steps)
        return [trained, *found]


def digest_of(arrays: Mapping[str, NDArray[np.generic]]) -> str:
    """Of numbers that are released; not of a message's bytes, whose header safetensors writes in any order."""
    found = hashlib.sha256()
    for name in sorted(arrays):
        found.update(f"{name} {arrays[name].dtype} {arrays[name].shape}".encode() + arrays[name].tobytes())
    return found.hexdigest()[:32]
