"""The server's side of a run: the method's state, and every message that the server writes or reads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from trifed.common.errors import MessageError
from trifed.federation.compression import Compression
from trifed.federation.context import RunContext, decode_tensors, encode_tensors
from trifed.federation.messages import BAD_REPLY, Rejected, decode_summary
from trifed.federation.screening import Bounded, Screening
from trifed.methods.base import Gradient, ServerContext, State, Upload, is_head
from trifed.methods.packing import Layout, Tensors, Vector, pack, select, unpack
from trifed.similarity import Summary
from trifed.similarity.summary import MOST_CLASSES

REFERENCE, SUMMARY, START, ACCEPTED = "known/", "summary/", "start", "turns/accepted"
UPLOADED = "uploaded/"
"""Names of a checkpoint's arrays beside the method's state: reference vectors, summaries, the common start, for a
method with turns the round of each client's last accepted upload, and uploads that are reference vectors."""


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
class Server:
    """The server of one run.

    Attributes:
        clients: Number of clients.
        names: The clients' names by index, for methods that share within given groups.
        start: Common start of the values that go either way, (n_values,), packed by `RunContext.exchanged`.
        state: The method's state.
        summaries: The clients' data summaries by index.
        references: Reference vectors of the messages in few bits.
        screening: The bounds on each upload.
        shared_projections: The frozen projections that the method makes before round 1; empty without any.
    """

    context: RunContext
    clients: int
    start: Vector
    state: State = field(default_factory=dict)
    summaries: dict[int, Summary] = field(default_factory=dict)
    references: References = field(default_factory=References)
    shared_projections: Tensors = field(default_factory=dict)
    names: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.screening = Screening(self.context.aggregation, max(1, len(self.context.method.turns)))

    # -- checkpoint

    def state_dict(self) -> State:
        """Return all arrays that a checkpoint needs, the shared projections apart, which have their own file."""
        arrays: State = {**self.state, START: self.start, **self.bookkeeping()}
        arrays |= {f"{REFERENCE}{client}": values for client, values in self.references.confirmed.items()}
        arrays |= {f"{UPLOADED}{client}": values for client, values in self.references.uploaded.items()}
        for client, summary in self.summaries.items():
            arrays |= {f"{SUMMARY}{client}/{name}": array for name, array in summary.to_arrays().items()}
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
        self.start = rest.pop(START, self.start).astype(np.float32)
        self.screening.load_state_dict(rest)
        accepted = {client: int(number) for client, number in enumerate(rest.pop(ACCEPTED, ())) if number}
        confirmed, uploaded = (
            {client: values.astype(np.float32) for client, _, values in _pop(rest, prefix)}
            for prefix in (REFERENCE, UPLOADED)
        )
        self.references = References(confirmed, accepted=accepted, uploaded=uploaded)
        summaries: dict[int, dict[str, NDArray[np.generic]]] = {}
        for client, name, array in _pop(rest, SUMMARY):
            summaries.setdefault(client, {})[name] = array
        self.summaries = {client: Summary.from_arrays(found) for client, found in summaries.items()}
        self.state = rest

    # -- before the first round

    def read_gradient(self, client: int, payload: bytes, layers: Layout, examples: int) -> Gradient:
        """Read a client's first gradient.

        Args:
            client: The client's index.
            payload: The message.
            layers: Names and shapes of the adapted weights.
            examples: Training examples that the client has reported.

        Raises:
            MessageError: The gradient is not what it should be.
        """
        header, tensors = decode_tensors(payload, self.context.header("gradient", 0, client), layers)
        if header.examples != examples:
            raise MessageError(f"{header}: {header.examples} examples, and it was opened with {examples}")
        return Gradient(client, header.examples, tensors)

    def make_shared_projections(self, gradients: Sequence[Gradient]) -> Tensors:
        """Make the adapters' frozen projections from the clients' gradients, and start the cores from them."""
        make = self.context.method.shared_projections
        self.shared_projections = make(self.context.options, gradients, self.context.rank) if make else {}
        self.start_from_projections()
        return self.shared_projections

    def start_from_projections(self) -> None:
        """Replace the common start of the cores by that of the shared projections."""
        layout = self.context.exchanged
        start = {**unpack(self.start, layout), **self.shared_projections}
        self.start = pack({name: start[name] for name, _ in layout}, layout)

    def shared_projections_for(self, client: int) -> bytes:
        """Return the message that brings the shared projections to a client."""
        header, tensors = self.context.header("frames", 0, client), self.shared_projections
        return encode_tensors(header, tensors, layout_of(tensors))

    def read_summary(self, client: int, payload: bytes) -> Summary:
        """Read a client's one-time summary.

        Raises:
            MessageError: The summary is not what it should be.
        """
        header, shapes = self.context.header("summary", 0, client), self.context.compression.layout
        n_labels = min((shape[0] for name, shape in shapes if is_head(name)), default=MOST_CLASSES)
        summary = decode_summary(payload, header, self.context.summary_dim, min(n_labels, MOST_CLASSES))
        if (summary.class_labels >= n_labels).any():
            raise MessageError(f"{header}: a label over the {n_labels} of the head; it is refused")
        return summary

    def open(self, summaries: Mapping[int, Summary]) -> None:
        """Begin, with the clients' one-time summaries if the method asks for them; a missing one is empty."""
        if self.context.method.summarise:
            nobody = Summary.empty(self.context.summary_dim)
            self.summaries = {client: summaries.get(client, nobody) for client in range(self.clients)}
        if self.context.compression.layout:
            self.state = self.context.method.start(self.context.options, self._server_context())

    # -- clients that join, change or leave

    def admit(self, client: int, summary: Summary | None, name: str = "") -> None:
        """Add a client, whose index is the next one, or replace the summary of a known client."""
        if summary is not None:
            self.summaries[client] = summary
        self.names += [name] if client >= self.clients else []
        new = [client] if client >= self.clients else []
        self.clients = max(self.clients, client + 1)
        self._on_membership_change(new)

    def forget(self, client: int) -> None:
        """Go back to the common start for a client, which begins anew."""
        self.references.forget(client)

    def withdraw(self, client: int) -> None:
        """Delete a client's core, summary and reference vector; its index is not given to another client."""
        self.references.forget(client)
        if client in self.summaries:
            self.summaries[client] = self.summaries[client].emptied()
        self._on_membership_change([client])

    def _on_membership_change(self, reset: Sequence[int]) -> None:
        on_membership_change = self.context.method.on_membership_change
        if on_membership_change and self.state:
            self.state = on_membership_change(self.context.options, self._server_context(), self.state, reset)

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

    def _server_context(self) -> ServerContext:
        sent, received = self.context.compression.layout, self.context.downloads.layout
        start = select(self.start, self.context.exchanged, sent)
        return ServerContext(self.clients, sent, start, self.summaries, tuple(self.names), received)


def layout_of(tensors: Tensors) -> Layout:
    """Return names and shapes of tensors."""
    return tuple((name, values.shape) for name, values in tensors.items())


def _pop(arrays: State, prefix: str) -> Iterator[tuple[int, str, NDArray[np.generic]]]:
    """Remove all arrays under a prefix and yield client, rest of the name, and array."""
    for name in [name for name in arrays if name.startswith(prefix)]:
        client, _, rest = name.removeprefix(prefix).partition("/")
        yield int(client), rest, arrays.pop(name)
