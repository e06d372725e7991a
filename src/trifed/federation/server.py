"""The server's side of a run: the method's state, and every message that it writes or reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from trifed.common.errors import MessageError
from trifed.federation.context import RunContext, decode_tensors, encode_tensors
from trifed.federation.messages import decode_summary
from trifed.methods.base import Gradient, ServerContext, State, Upload, is_head
from trifed.methods.packing import Layout, Tensors, Vector
from trifed.similarity import Summary


class Server:
    """`clients`: how many; `state`: the method's; `summaries`: what clients told of their data; `known`: by client
    what it had last, where changes travel; `pending`: what it has if the last download came.
    """

    def __init__(self, context: RunContext, clients: int, start: Vector) -> None:
        self.context = context
        self.clients = clients
        self.start = start
        self.state: State = {}
        self.summaries: dict[int, Summary] = {}
        self.known: dict[int, Vector] = {}
        self.pending: dict[int, Vector] = {}

    # -- before the first round

    def shared_projections(self, payloads: Mapping[int, bytes], layers: Layout) -> Tensors:
        """Frames of the adapters from the clients' gradients; `layers`: names and shapes of the adapted weights.

        Raises:
            MessageError: a gradient is not what it should be.
        """
        make = self.context.method.shared_projections
        gradients = []
        for client, payload in payloads.items():
            header, found = decode_tensors(payload, self.context.header("gradient", 0, client), layers)
            gradients.append(Gradient(client, header.examples, found))
        return make(self.context.options, gradients, self.context.rank) if make else {}

    def shared_projections_for(self, client: int, shared_projections: Tensors) -> bytes:
        """The message that brings frames to a client."""
        return encode_tensors(
            self.context.header("frames", 0, client), shared_projections, layout_of(shared_projections)
        )

    def open(self, summaries: Mapping[int, bytes]) -> None:
        """Begin, with the clients' one-time summaries where the method asks for them.

        Raises:
            MessageError: a summary is not what it should be.
        """
        self.summaries = {client: self._summary(client, payload) for client, payload in summaries.items()}
        if self.context.compression.layout:
            self.state = self.context.method.start(self.context.options, self._server_context())

    # -- later

    def admit(self, client: int, summary: bytes | None) -> None:
        """A client that came late, whose place is the next, or one that tells another summary.

        Raises:
            MessageError: the summary is not what it should be; nothing has changed then.
        """
        if summary is not None:
            self.summaries[client] = self._summary(client, summary)
        late = [client] if client >= self.clients else []
        self.clients = max(self.clients, client + 1)
        self._on_membership_change(late)

    def withdraw(self, client: int) -> None:
        """Delete what is a client's own: its core, its summary, what it had last. Its place stays empty."""
        self.forget(client)
        if client in self.summaries:
            self.summaries[client] = self.summaries[client].emptied()
        self._on_membership_change([client])

    def _on_membership_change(self, anew: Sequence[int]) -> None:
        on_membership_change = self.context.method.on_membership_change
        if on_membership_change and self.state:
            self.state = on_membership_change(self.context.options, self._server_context(), self.state, anew)

    def _summary(self, client: int, payload: bytes) -> Summary:
        header = self.context.header("summary", 0, client)
        found = decode_summary(payload, header, self.context.summary_dim)
        labels = min((shape[0] for name, shape in self.context.compression.layout if is_head(name)), default=None)
        if labels is not None and (found.class_labels >= labels).any():
            raise MessageError(f"{header}: a label over the {labels} of the head; it is refused")
        return found

    # -- rounds

    def download(self, number: int, client: int) -> bytes | None:
        """What round `number` begins with at a client; None where there is nothing yet."""
        values = self.context.method.download(self.state, client)
        if values is None:
            return None
        header, known = self.context.header("download", number, client), self._known(client)
        payload = self.context.compression.encode(header, values, known)
        if self.context.compression.bits is not None:
            # Not what it has before its upload shows that it came.
            self.pending[client] = self.context.compression.decode(payload, header, known)[1]
        return payload

    def arrives(self, client: int) -> Vector | None:
        """What a client would have after its next download, (n_values,); None where there is nothing yet."""
        values = self.context.method.download(self.state, client)
        return None if values is None else self.context.compression.arrives(values, self._known(client))

    def accept(self, number: int, client: int, payload: bytes, examples: int | None = None) -> Upload:
        """A client's upload of round `number`.

        `examples`: how many it said it has to train on, where that is known; who says another number in every
        round would weigh what it likes.

        Raises:
            MessageError: it is not what it should be.
        """
        header = self.context.header("upload", number, client)
        known = self.pending.get(client, self._known(client))
        found, values = self.context.compression.decode(payload, header, known)
        if examples is not None and found.examples != examples:
            raise MessageError(f"{header}: {found.examples} examples, and it began with {examples}; it is refused")
        if client in self.pending:
            self.known[client] = self.pending.pop(client)
        return Upload(client, number, found.examples, values)

    def forget(self, client: int) -> None:
        """A client has lost what it had: it starts again from the common start."""
        self.known.pop(client, None)
        self.pending.pop(client, None)

    def aggregate(self, uploads: Sequence[Upload]) -> None:
        """Close a round; without uploads everything stays."""
        if uploads:
            self.state = self.context.method.aggregate(
                self.context.options, self._server_context(), self.state, uploads
            )

    def _known(self, client: int) -> Vector:
        if self.context.compression.bits is None:
            return np.zeros(0, np.float32)
        return self.known.get(client, self.start)

    def _server_context(self) -> ServerContext:
        return ServerContext(self.clients, self.context.compression.layout, self.start, self.summaries)


def layout_of(tensors: Tensors) -> Layout:
    """Names and shapes."""
    return tuple((name, values.shape) for name, values in tensors.items())
