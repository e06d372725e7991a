"""The server of a run in which it reads each client's upload."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from trifed.common.errors import MessageError
from trifed.federation.base_server import BaseServer, pop_all
from trifed.federation.compression import Compression
from trifed.federation.messages import BAD_REPLY, Rejected
from trifed.federation.screening import Bounded, Screening
from trifed.federation.upload import RECEIVED, SENT
from trifed.methods.base import State, Upload
from trifed.methods.packing import Vector

REFERENCE, UPLOADED, ACCEPTED = "known/", "uploaded/", "turns/accepted"
"""Names of a checkpoint's arrays beside those of `BaseServer`: reference vectors, uploads that are such, and for a
method with turns the round of each client's last accepted upload."""


@dataclass
class References:
    """Reference vectors that messages in few bits are deltas from, (n_values,) for each client.

    A download becomes the reference once the client's next upload shows that it arrived. `accepted`: the round of
    that upload, which says what the client has. `uploaded`: the last upload that was aggregated, where it holds
    what no download does.
    """

    confirmed: dict[int, Vector] = field(default_factory=dict)
    pending: dict[int, Vector] = field(default_factory=dict)
    accepted: dict[int, int] = field(default_factory=dict)
    uploaded: dict[int, Vector] = field(default_factory=dict)

    def confirm(self, client: int) -> None:
        """Make the pending download the reference, because the client has it."""
        if client in self.pending:
            self.confirmed[client] = self.pending.pop(client)

    def forget(self, client: int) -> None:
        """Go back to the common start for a client."""
        for known in (self.confirmed, self.pending, self.accepted, self.uploaded):
            known.pop(client, None)


@dataclass
class Server(BaseServer):
    """The server of one run that is not sealed.

    Attributes:
        references: Reference vectors of the messages in few bits.
        screening: The bounds on each upload.
    """

    references: References = field(default_factory=References)

    def __post_init__(self) -> None:
        self.screening = Screening(self.context.aggregation, max(1, len(self.context.method.turns)))

    # -- checkpoint

    def state_dict(self) -> State:
        """Return all arrays that a checkpoint needs, the shared projections apart, which have their own file."""
        arrays = super().state_dict()
        arrays |= {f"{REFERENCE}{client}": values for client, values in self.references.confirmed.items()}
        arrays |= {f"{UPLOADED}{client}": values for client, values in self.references.uploaded.items()}
        return arrays

    def bookkeeping(self) -> State:
        """Return the arrays on earlier rounds that the next round needs beside the method's state."""
        arrays = self.screening.state_dict()
        if self.context.method.turns:
            rounds = [self.references.accepted.get(client, 0) for client in range(self.clients)]
            arrays[ACCEPTED] = np.array(rounds, np.int64)
        return arrays

    def load_state_dict(self, arrays: Mapping[str, NDArray[np.generic]]) -> None:
        """Restore the arrays of `state_dict`, or the method's state alone."""
        rest = dict(arrays)
        self.screening.load_state_dict(rest)
        accepted = {client: int(number) for client, number in enumerate(rest.pop(ACCEPTED, ())) if number}
        confirmed, uploaded = (
            {client: values.astype(np.float32) for client, _, values in pop_all(rest, prefix)}
            for prefix in (REFERENCE, UPLOADED)
        )
        self.references = References(confirmed, accepted=accepted, uploaded=uploaded)
        super().load_state_dict(rest)

    def recall(self, client: int, memory: Mapping[str, Vector]) -> None:
        """Take up the reference vectors in the checkpoint of a simulated client."""
        if RECEIVED in memory:
            self.references.confirmed[client] = memory[RECEIVED]
        if SENT in memory:
            self.references.uploaded[client] = memory[SENT]

    def forget(self, client: int) -> None:
        """Go back to the common start for a client, which begins anew."""
        self.references.forget(client)

    # -- rounds

    def download(self, number: int, client: int) -> bytes | None:
        """Return the message that a client begins round `number` with; None if there is nothing to send yet."""
        values = self.context.method.download(self.state, client)
        if values is None:
            return None
        header, reference = self.context.header("download", number, client), self._download_reference(client)
        encoding = self._encoding(number, client)
        payload = encoding.encode(header, values, reference)
        if not self.context.downloads.lossless:
            self.references.pending[client] = encoding.decode(payload, header, reference)[1]
        return payload

    def arrives(self, client: int) -> Vector | None:
        """Return the values that a client has after its next download, (n_values,); None if nothing is sent."""
        values = self.context.method.download(self.state, client)
        if values is None or self.context.downloads.lossless:
            return values
        number = max(self.references.accepted.values(), default=0) + 1
        return self._encoding(number, client).arrives(values, self._download_reference(client))

    def accept(self, number: int, client: int, payload: bytes, examples: int | None = None) -> Upload | Rejected:
        """Check and decode a client's upload of round `number`.

        Args:
            number: The round.
            client: The client's index.
            payload: The message.
            examples: Training examples that the client has reported, if known: a client that reports another
                number in every round would choose its own weight.
        """
        header = self.context.header("upload", number, client)
        reference = self._upload_reference(client)
        try:
            found, values = self.context.for_upload(number).decode(payload, header, reference)
        except MessageError as error:
            return Rejected(BAD_REPLY, str(error))
        if examples is not None and found.examples != examples:
            return Rejected(
                BAD_REPLY, f"{header}: {found.examples} examples, and it began with {examples}; it is refused"
            )
        self.references.confirm(client)
        self.references.accepted[client] = number
        part = self.context.part(number)
        if part:
            values = part.put(part.take(values), self._values_before(client))
        return Upload(client, number, found.examples, values)

    def aggregate(self, uploads: Sequence[Upload]) -> list[Bounded]:
        """Aggregate the uploads of a round; return the changes by the bounds of `[aggregation]`."""
        if not uploads:
            return []
        screened, bounded = self.screening.apply(uploads, self._values_before)
        if screened:
            self.state = self.context.method.aggregate(
                self.context.options, self._server_context(), self.state, screened
            )
        if self.context.keeps_uploads:
            self.references.uploaded |= {upload.client: upload.values for upload in uploads}
        return bounded

    def _values_before(self, client: int) -> Vector:
        """Return the values that a client began the present round with, (n_values,)."""
        values = self.context.method.download(self.state, client)
        return self.context.upload_reference(self.start, values, self.references.uploaded.get(client))

    def _encoding(self, number: int, client: int) -> Compression:
        """Return the encoding of a client's download in round `number`.

        With turns it holds what the round before has changed, if the client took part in that; else everything.
        """
        took_part = self.references.accepted.get(client) == number - 1
        partly = took_part and self.context.part(number - 1) is not None
        return self.context.for_upload(number - 1) if partly else self.context.downloads

    def _download_reference(self, client: int) -> Vector:
        return self.context.download_reference(self.start, self.references.confirmed.get(client))

    def _upload_reference(self, client: int) -> Vector:
        received = self.references.pending.get(client, self.references.confirmed.get(client))
        return self.context.upload_reference(self.start, received, self.references.uploaded.get(client))
