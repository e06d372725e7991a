"""Sealed sums at a site: a key for each round, the checks before it sends, and its masks.

What a site has sent is in its record, see `sum_record`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load

from trifed.common.errors import MessageError, RunError
from trifed.deployment.protocol import RefusedError
from trifed.deployment.site_keys import SiteKeys, own_key, trusted_sites
from trifed.deployment.site_opening import check_holders, known_holders
from trifed.deployment.site_settings import SiteSettings
from trifed.deployment.site_store import SiteStore
from trifed.deployment.sum_record import SentSum, SumRecord
from trifed.federation.context import RunContext
from trifed.federation.dp_mechanism import digest_of
from trifed.federation.messages import encode
from trifed.federation.sealed.numbers import Integers, Mask, Sign
from trifed.federation.sealed.proof import members_digest, part_bytes
from trifed.federation.sealed.rules import SumTerms
from trifed.federation.sealed.upload import PENDING
from trifed.federation.upload import RESIDUAL, Memory
from trifed.methods.packing import Vector
from trifed.privacy.masking import (
    Array,
    RoundKey,
    mask_context,
    masked,
    masks,
    part_statement,
    sign,
    statement,
    verify,
)

FEWEST = 3
"""Fewest sites of a sum, whatever run and site have set: of two, each would learn the other's numbers."""


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
    """One run's sealed sums at a site.

    Args:
        run: The run's name.
        site: The site's own settings.
        at_least: The run's, the fewest sites of a sum, this one included.
        store: The run's folder.
        greeting: What all sites of a sum must have been greeted with: digests of the settings, of the base model
            and of the method's code.
    """

    def __init__(
        self, run: str, site: SiteSettings, at_least: int, store: SiteStore, greeting: Sequence[bytes]
    ) -> None:
        self.run, self.site, self.greeting = run, site, greeting
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

    def check(self, ready: ReadyRound, index: int, sum_terms: SumTerms, labels: str) -> None:
        """Check the list of a sum, before anything is computed for it.

        Args:
            ready: The round.
            index: This site's index.
            sum_terms: The terms.
            labels: Digest of the labels that this site holds.

        Raises:
            RefusedError: Too few sites; or one that this site does not know, or whose signature is not its own; or
                other holders of labels than the sites have signed.
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
        if ready.number and sum_terms.opening:
            holders, sent = self.record.holders(), self.record.sent(0)
            if holders is None:
                holders = known_holders(ready.sites, self.run, sum_terms)
                self.record.write_holders(holders)
            check_holders(holders, index, sum_terms, labels, sent.numbers if sent else "")

    def alike(self, sum_terms: SumTerms, reference: Vector, terms_digest: str) -> list[bytes]:
        """Return all that the sites of a sum must have been given alike, beside names and keys.

        The settings are among it: otherwise a server could give all sites but one a learning rate of almost 0, and
        the sum would be the upload of that one.

        Args:
            sum_terms: The terms of the sum.
            reference: The values that all sites of the sum started from, (n_values,).
            terms_digest: Digest of the message with the terms.
        """
        indices = [np.array(each, np.int64).tobytes() for each in (sum_terms.clients, sum_terms.opening)]
        arrays = [sum_terms.steps.tobytes(), sum_terms.holders.tobytes(), reference.tobytes()]
        return [*indices, *arrays, terms_digest.encode(), *self.greeting]

    def signer(self, sum_terms: SumTerms, alike: Sequence[bytes]) -> Sign:
        """Return the function that signs this site's masked part of the sum of label holders.

        It signs with the part all that the masks depend on, `alike` among it.
        """
        members = members_digest(sum_terms.names, sum_terms.keys, alike)

        def signed(part: Integers) -> tuple[bytes, bytes]:
            statement_of_part = part_statement(self.run, sum_terms.names, members, part_bytes(part))
            return members, sign(own_key(self.site), statement_of_part)

        return signed

    def mask(
        self, ready: ReadyRound, sum_terms: SumTerms, alike: Sequence[bytes], terms_digest: str, numbers: str
    ) -> Mask:
        """Return the function that masks this site's integers; the record is written before the first are masked.

        The masks depend on all that the sites of a sum must have been given alike: if one of them was given
        something else, they do not cancel.

        Args:
            ready: The round.
            sum_terms: Its terms, checked.
            alike: All that the sites must have been given alike, see `alike`.
            terms_digest: Digest of the message with the terms.
            numbers: Digest of the site's own numbers, before they are rounded.
        """
        members = list(zip(sum_terms.names, publics_of(sum_terms), strict=True))
        others = [public for _, public in members if public != ready.key.public]
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
