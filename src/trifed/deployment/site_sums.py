"""Sealed sums at a site: a key for each round, the checks before it sends, and the record of what it has sent.

::

    FOLDER/RUN/sums.json     for each round in which this site has sent: a digest of the terms, the sites of the
                             sum, and a digest of its own numbers; and a digest of how many hold which label

A server could compute one site's numbers from two sums of the same numbers that differ by that site. Therefore a
site sends once in a round, and never the same numbers with other sites, in any of its runs. They are compared to
the last bit, before they are rounded: numbers that are only alike are not found. The record is on the disk before
anything leaves, and neither going back nor opening the run again removes it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load

from trifed.common.errors import MessageError, RunError, damage_in
from trifed.deployment.protocol import RefusedError
from trifed.deployment.site_keys import SiteKeys, own_key, trusted_sites
from trifed.deployment.site_settings import SiteSettings
from trifed.deployment.site_store import SiteStore
from trifed.federation.context import RunContext
from trifed.federation.dp_mechanism import digest_of
from trifed.federation.messages import encode
from trifed.federation.run_folder import RunFolder
from trifed.federation.sealed_numbers import Integers, Mask
from trifed.federation.sealed_upload import PENDING
from trifed.federation.sealing import SumTerms
from trifed.federation.upload import RESIDUAL, Memory
from trifed.methods.packing import Vector
from trifed.privacy.masking import Array, RoundKey, mask_context, masked, masks, sign, statement, verify

SUMS = "sums.json"
FEWEST = 3
"""Fewest sites of a sum, whatever run and site have set: of two, each would learn the other's numbers."""


@dataclass(frozen=True)
class SentSum:
    """One sum that this site has sent its part of.

    Attributes:
        terms: Digest of the terms of the sum, with its list of sites and their keys.
        sites: Names of the sites of the sum, sorted.
        numbers: Digest of the site's own numbers, see `digest_of_change`; before the first round, of its labels.
    """

    terms: str
    sites: list[str]
    numbers: str


class SumRecord:
    """The record of one run, and of the others in the same site's folder."""

    def __init__(self, store: SiteStore) -> None:
        self._files = RunFolder(store.folder)

    def sent(self, number: int) -> SentSum | None:
        """Return what was sent in a round; None if nothing was."""
        return _rounds_of(self._files.path / SUMS).get(number)

    def of_all_runs(self) -> dict[str, dict[int, SentSum]]:
        """Return what was sent in each round of each run of this site, by the names of the runs.

        Raises:
            RefusedError: The record of a run is damaged.
        """
        paths = sorted(self._files.path.parent.glob(f"*/{SUMS}"))
        return {path.parent.name: _rounds_of(path) for path in paths}

    def check_holders(self, holders: str) -> None:
        """Check that the numbers of holders are those of the run's first sum; the first ones are written down.

        Raises:
            RefusedError: They are others, so a row of the head could be a sum of fewer sites than it seems.
        """
        content = self._read()
        known = content.setdefault("holders", holders)
        if known != holders:
            raise RefusedError(
                "bad_request", "the numbers of holders of the labels changed during the run; refused"
            )
        self._files.write_json(SUMS, content, durable=True)

    def check_numbers(self, numbers: str, sites: Sequence[str]) -> None:
        """Check that the same numbers were not sent with other sites, in any run of this site.

        Raises:
            RefusedError: They were.
        """
        for run, rounds in self.of_all_runs().items():
            for number, found in rounds.items():
                if found.numbers == numbers and found.sites != sorted(sites):
                    raise RefusedError(
                        "sum_sent",
                        f"the same numbers were sent in round {number} of {run} in a sum with other sites "
                        f"({', '.join(found.sites)}); the difference would show those of one site",
                    )

    def write(self, number: int, entry: SentSum) -> None:
        """Write down what is about to be sent; it is on the disk when this returns."""
        content = self._read()
        content.setdefault("rounds", {})[str(number)] = vars(entry)
        self._files.write_json(SUMS, content, durable=True)

    def _read(self) -> dict[str, Any]:
        return _content_of(self._files.path / SUMS)


def _rounds_of(path: Path) -> dict[int, SentSum]:
    """Return what a run's record says was sent, by round; what a later version has added is ignored."""
    rounds = _content_of(path).get("rounds", {})
    with _readable(path):
        return {
            int(number): SentSum(entry["terms"], sorted(entry["sites"]), entry["numbers"])
            for number, entry in rounds.items()
        }


def _content_of(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    with _readable(path):
        return dict(json.loads(path.read_text(encoding="utf-8")))


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Refuse what needs a record that is damaged; the file's name is for the site's log."""
    way_out = "put it back from a backup: without it the same numbers could be sent in two sums"
    try:
        with damage_in(path, way_out, also=(AttributeError,)):
            yield
    except RunError as error:
        raise RefusedError("storage", str(error)) from error


@dataclass(frozen=True)
class ReadyRound:
    """A round that this site is ready to send: its key, which is in memory only, and the round that it continues.

    Attributes:
        sites: The public keys of all sites by name, as this site has them.
    """

    number: int
    counts: int
    key: RoundKey
    sites: SiteKeys


class SealedSums:
    """One run's sealed sums at a site. `at_least`: the run's, the fewest sites of a sum, this one included."""

    def __init__(self, run: str, site: SiteSettings, at_least: int, store: SiteStore) -> None:
        self.run, self.site = run, site
        self.at_least = max(FEWEST, at_least, site.at_least)
        self.record = SumRecord(store)
        self.pending: ReadyRound | None = None

    @property
    def fingerprint(self) -> str:
        """The fingerprint of the list of keys of the round that is ready; empty without one."""
        return self.pending.sites.fingerprint if self.pending else ""

    def refuse_sent(self, number: int) -> None:
        """Check that nothing was sent in a round.

        Raises:
            RefusedError: Something was, so the same numbers could be asked for under another list.
        """
        if self.record.sent(number):
            raise RefusedError("sum_sent", f"round {number}: its sum was sent already; it is not sent again")

    def ready(self, context: RunContext, number: int, index: int, counts: int) -> bytes:
        """Return the message with this site's new key for a round, signed with the site's own key.

        Raises:
            RefusedError: A record is damaged, so this site could not send later, when the others wait for it.
        """
        self.record.of_all_runs()
        sites, key = known_sites(self.site), RoundKey.generate()
        self.pending, public = ReadyRound(number, counts, key, sites), key.public
        signature = sign(own_key(self.site), statement(self.run, number, self.site.name, public))
        arrays = {"key": np.frombuffer(public, np.uint8), "signature": np.frombuffer(signature, np.uint8)}
        return encode(context.header("ready", number, index), arrays)

    def take(self, number: int) -> ReadyRound:
        """Return the round that is ready, which can be sent once only.

        Raises:
            RefusedError: This round is not ready: the process has ended since, or another request came between.
        """
        pending, self.pending = self.pending, None
        if pending is None or pending.number != number:
            raise RefusedError(
                "not_ready",
                f"round {number}: there is nothing to send; the process ended, or was asked for another",
            )
        return pending

    def check(self, ready: ReadyRound, index: int, sum_terms: SumTerms) -> None:
        """Check the list of a sum, before anything is computed for it.

        Raises:
            RefusedError: Too few sites; or one that this site does not know, or whose signature is not its own.
            MessageError: This site is not in it as it should be, or a name or key occurs twice.
        """
        names, publics = sum_terms.names, publics_of(sum_terms)
        own = sum_terms.clients.index(index)
        if not len(names) == len(publics) == len(sum_terms.signatures) == len(sum_terms.clients):
            raise MessageError(
                "the list of the sum: not each site has a name, a key and a signature; it is refused"
            )
        if (names[own], publics[own]) != (self.site.name, ready.key.public):
            raise MessageError("the list of the sum: this site is not in it with its name and key; it is refused")
        if len({*names}) != len(names) or len({*publics}) != len(names):
            raise MessageError("the list of the sum: a name or key occurs twice; it is refused")
        if len(names) < self.at_least:
            raise RefusedError(
                "too_few_for_a_sum",
                f"the sum has {len(names)} sites, and at least {self.at_least} are needed here (sealing.at_least, "
                f"or at_least in node.toml); it is refused",
            )
        for name, public, signature in zip(names, publics, map(bytes, sum_terms.signatures), strict=True):
            known = ready.sites.get(name)
            if known is None or not verify(known, statement(self.run, ready.number, name, public), signature):
                found = "is not in this site's list" if known is None else "has not signed its key of this round"
                raise RefusedError(
                    "unknown_site",
                    f"{name} {found}; get the new list from the server, compare its fingerprint, and run "
                    f"`trifed flower trust`",
                )
        if ready.number:
            self.record.check_holders(_digest(sum_terms.holders, np.array(sum_terms.opening)))

    def mask(
        self, ready: ReadyRound, sum_terms: SumTerms, reference: Vector, terms_digest: str, numbers: str
    ) -> Mask:
        """Return the function that masks this site's integers; the record is written before the first are masked.

        The masks depend on all that the sites of a sum must have received alike: with other terms or another
        reference vector at one of them they do not cancel.

        Args:
            ready: The round.
            sum_terms: Its terms, checked.
            reference: The values that all sites of the sum started from, (n_values,).
            terms_digest: Digest of the message with the terms.
            numbers: Digest of the site's own numbers, before they are rounded.
        """
        members = list(zip(sum_terms.names, publics_of(sum_terms), strict=True))
        others = [public for _, public in members if public != ready.key.public]
        indices = [np.array(each, np.int64).tobytes() for each in (sum_terms.clients, sum_terms.opening)]
        arrays = [sum_terms.steps.tobytes(), sum_terms.holders.tobytes(), reference.tobytes()]
        alike = [*indices, *arrays, terms_digest.encode()]
        done: list[Array] = []

        def mask(values: Integers, bits: int) -> Integers:
            array: Array = "magnitudes" if done else "sum"
            if not done:
                self.record.check_numbers(numbers, sum_terms.names)
                self.record.write(ready.number, SentSum(terms_digest, sorted(sum_terms.names), numbers))
            done.append(array)
            context = mask_context(self.run, ready.number, members, array, alike)
            return masked(values, masks(ready.key, others, context, len(values), bits), bits)

        return mask


def known_sites(site: SiteSettings) -> SiteKeys:
    """Return the list of keys that a site has stored.

    Raises:
        RefusedError: There is none, or the site is not in it with its own key.
    """
    try:
        return trusted_sites(site)
    except RunError as error:
        raise RefusedError("no_site_keys", str(error)) from error


def publics_of(sum_terms: SumTerms) -> list[bytes]:
    """Return the public keys of the round in the order of the sum's clients, 32 bytes each."""
    return [bytes(key) for key in sum_terms.keys]


def digest_of_change(memory: Memory) -> str:
    """Return 32 hex digits over the change that waits for a sum, with what earlier roundings have left.

    It depends on no step or level, which the server sets: with others the same numbers would be sent again.
    """
    pending = memory.get(PENDING, np.zeros(0, np.float32))
    return _digest(pending + memory.get(RESIDUAL, np.zeros_like(pending)))


def digest_of_labels(held: NDArray[np.bool_]) -> str:
    """Return 32 hex digits over which labels a site holds, (n_labels,)."""
    return _digest(held)


def digest_of_terms(payload: bytes) -> str:
    """Return 32 hex digits over the arrays of a message with terms; MessageError if it is none.

    Its bytes would not do: the header of a message has no fixed order.
    """
    try:
        return digest_of(load(payload))
    except (SafetensorError, ValueError, KeyError, TypeError, OverflowError) as error:
        raise MessageError(f"the terms of the sum are no readable message ({error}); they are refused") from error


def _digest(*arrays: NDArray[np.generic]) -> str:
    """Return 32 hex digits over arrays."""
    return digest_of({str(place): array for place, array in enumerate(arrays)})
