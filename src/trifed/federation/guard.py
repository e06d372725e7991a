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

from trifed.atomic import whole_file
from trifed.errors import RunError
from trifed.methods.packing import Vector
from trifed.privacy import Ledger, Noise, clipped, noise_multiplier, noised_summary
from trifed.privacy.ledger import SUMMARY, UPDATE
from trifed.settings import PrivacySettings
from trifed.similarity import Summary
from trifed.similarity.checks import Ints

KEPT, MARK = "summary.safetensors", "mark"
LOST = "lost"
"""The digest of a release whose entry was lost, and that is counted again to be safe."""

Draw = Callable[[int], Noise]
"""Round, 0 for the summary → where its noise comes from."""


@dataclass(frozen=True)
class Guarded:
    """Whom a guard is for, and where it keeps things. `draw`: where noise comes from."""

    client: str
    folder: Path
    rounds: int
    draw: Draw


class Guard:
    """Of one client in one run.

    Raises:
        RunError: its ledger is damaged, or of another run.
    """

    def __init__(self, settings: PrivacySettings, whose: Guarded) -> None:
        self.settings = settings
        self.whose = whose
        self.ledger = Ledger(whose.folder, whose.client, settings)
        told, sent = settings.summary, settings.update
        self.summary_noise = noise_multiplier(told.epsilon, told.delta, told.releases) if told else None
        self.update_noise = noise_multiplier(sent.epsilon, sent.delta, whose.rounds) if sent else None
        kept = self._kept(None) if told else None
        self.examples = _examples(kept) if kept else 1
        """What a client says of how many examples it has: what its noised summary says, else 1, as all do."""

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
            self.ledger.check_new(SUMMARY, z)
            features, labels = data()
            found = noised_summary(features, labels, n_labels, z, self.whose.draw(0))
            with whole_file(self.whose.folder / KEPT) as path:  # first, so that it can be told again after a crash
                save_file(found.to_arrays(), path, {MARK: mark})
        self.ledger.enter(SUMMARY, 0, digest_of(found.to_arrays()), z)
        self.examples = _examples(found)
        return found

    def opened_again(self, *, summarises: bool) -> None:
        """The server has opened this client before: a ledger that is not there was lost with what it said.

        `summarises`: does the method tell summaries? Then one was told.
        """
        if self.ledger.path.exists():
            return
        self.ledger.lose()
        if summarises:
            self.ledger.enter(SUMMARY, 0, LOST, self.summary_noise)

    def lose(self) -> None:
        """This client's rounds are gone, or older than the server knows, and so may be the ledger's."""
        self.ledger.lose()

    def tell_unprotected(self, summary: Summary) -> None:
        """Enter a summary that goes out as it is."""
        self.ledger.enter(SUMMARY, 0, digest_of(summary.to_arrays()), None)

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
                self.ledger.enter_missing(UPDATE, before, LOST, self.update_noise)
        self.ledger.check(UPDATE, number, self.update_noise)

    def noised(self, number: int, change: Vector) -> Vector:
        """A round's change, (n,), clipped and with noise on every number; unchanged where none is asked for."""
        chosen, z = self.settings.update, self.update_noise
        if chosen is None or z is None:
            return change
        noise = self.whose.draw(number)(len(change))
        found: Vector = (clipped(change, chosen.clip) + chosen.clip * z * noise).astype(np.float32)
        return found

    def enter(self, number: int, payload: bytes) -> None:
        """Enter an upload before it leaves; RunError where it would go over the budget, and must not leave."""
        self.ledger.enter(UPDATE, number, digest_of(load(payload)), self.update_noise)


def _examples(told: Summary) -> int:
    return max(1, int(told.class_counts.sum()))


def digest_of(arrays: Mapping[str, NDArray[np.generic]]) -> str:
    """Of numbers that are released; not of a message's bytes, whose header safetensors writes in any order."""
    found = hashlib.sha256()
    for name in sorted(arrays):
        found.update(f"{name} {arrays[name].dtype} {arrays[name].shape}".encode() + arrays[name].tobytes())
    return found.hexdigest()[:32]
