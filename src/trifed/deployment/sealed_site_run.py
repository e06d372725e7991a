"""A site's answers in a sealed run: it trains and says that it is ready, then sends its part of a sum.

Between the two the round's key is in memory only. If the process ends there, the site sends nothing in that round,
and in the next one it goes back to the state of the last round that counts.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from trifed.common.errors import MessageError, TrifedError
from trifed.deployment.protocol import Fact, Reply, Request
from trifed.deployment.site_run import WITHHELD, SiteRun
from trifed.deployment.site_sums import SealedSums, digest_of_change, digest_of_labels, digest_of_terms
from trifed.federation.client import Client
from trifed.federation.client_update import ClientState
from trifed.federation.sealed.rules import SumTerms
from trifed.federation.sealed.upload import SealedUploads
from trifed.methods import METHODS, code_hash


@dataclass
class SealedSiteRun(SiteRun):
    """A sealed run that is loaded at a site. `sums`: its keys of a round, and the record of what was sent."""

    sums: SealedSums = field(init=False)

    def __post_init__(self) -> None:
        method_code = code_hash(METHODS[self.config.method.name])
        greeting = [each.encode() for each in (self.greeted, self.shared_model.fingerprint, method_code)]
        self.sums = SealedSums(self.name, self.settings, self.config.sealing.at_least, self.store, greeting)

    @property
    def tells_scores(self) -> bool:
        """False: in a sealed run the site sends no scores of its final model, whatever `tell_scores` is."""
        return False

    def ready(self, request: Request) -> Reply:
        """Reply with a key for the sum of label holders, before the first round."""
        client = self._client(request)
        self.sums.refuse_sent(0)
        return self._ready(client, 0, 0)

    def train(self, request: Request) -> Reply:
        """Train one round from the state that the server counts on, and reply with a key of this round."""
        self.sums.refuse_sent(request.number("round"))
        self.sums.pending = None
        return super().train(request)

    def _trained(self, request: Request, client: Client, key: str) -> Reply:
        """Train from the state in memory, and save the result: a client without a group has nothing to send.

        Without the round's key, which is in memory only, nothing of it can be sent.
        """
        number, counts, before = request.number("round"), request.number("counts"), client.state
        back: dict[str, Fact] = {"back_to": counts} if self._goes_back(request) else {}

        def save(state: ClientState, upload: bytes | None) -> None:
            self.store.save_round(number, counts, state, client.local_init, self.settings.keep_rounds)

        try:
            reply = self._ready(client, number, counts)
            client.round(number, request.parts.get("download"), self._limits(), save)
        except (TrifedError, OSError):
            client.state, self.sums.pending = before, None
            raise
        return Reply({**reply.facts, **WITHHELD, **back}, reply.parts)

    def _ready(self, client: Client, number: int, counts: int) -> Reply:
        part = self.sums.ready(client.context, number, client.dataset.index, counts)
        return Reply({"sites": self.sums.fingerprint}, {"ready": part})

    def send(self, request: Request) -> Reply:
        """Check the terms of a sum, and reply with the masked part; the same terms get the same bytes again.

        The record of the sum and the new state are on the disk before the part leaves.
        """
        number, payload, client = request.number("round"), request.part("terms"), self._client(request)
        terms = _read(client, number, payload)
        key, sent = digest_of_terms(payload), self.sums.record.sent(number)
        if sent and sent.terms == key and (upload := self.store.upload_for(key)):
            client.privacy.on_release(number, upload)  # the process may have ended before it was entered
            return Reply(parts={"sum": upload})
        self.sums.refuse_sent(number)
        ready = self.sums.take(number)
        labels = digest_of_labels(held_by(client))
        self.sums.check(ready, client.dataset.index, terms, labels)
        reference = client.reference if number else np.zeros(0, np.float32)
        numbers = digest_of_change(client.state.memory) if number else labels
        alike = self.sums.alike(terms, reference, key)
        mask = self.sums.mask(ready, terms, alike, key, numbers)

        def save(state: ClientState, part: bytes | None) -> None:
            if number:
                self.store.save_round(number, ready.counts, state, client.local_init, self.settings.keep_rounds)
            self.store.save_upload(key, part or b"")

        return Reply(parts={"sum": client.send(number, payload, mask, save, self.sums.signer(terms, alike))})

    def _request_key(self, request: Request, client: Client) -> str:
        """Return no key: what is sent again as it was is the part of a sum, see `send`."""
        return ""

    def _read_data(self, request: Request) -> Client:
        self.sums.pending = None  # the client that was ready is replaced
        return super()._read_data(request)


def held_by(client: Client) -> NDArray[np.bool_]:
    """Return which labels a client of a sealed run holds, (n_labels,)."""
    return client.uploads.held if isinstance(client.uploads, SealedUploads) else np.zeros(0, bool)


def _read(client: Client, number: int, payload: bytes) -> SumTerms:
    """Read the terms of a sum; MessageError if they are none. How many sites are enough is checked later."""
    layout, header = (
        client.context.compression.layout,
        client.context.header("terms", number, client.dataset.index),
    )
    rules = client.context.sums
    if rules is None:
        raise MessageError(f"{header}: the run is not sealed, so it has no sums")
    return SumTerms.decode(payload, header, rules.stepped(layout), 1, rules.labels(layout))
