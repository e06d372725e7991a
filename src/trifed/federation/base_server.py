"""Base class of the servers: method state, checkpoints, messages before round 1, clients that join and leave.

`server.Server` reads each client's upload; `sealed.server.SealedServer` sees only sums of them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from trifed.common.errors import MessageError
from trifed.federation.context import RunContext, decode_tensors, encode_tensors
from trifed.federation.messages import decode_summary
from trifed.methods.base import Gradient, ServerContext, State, is_head
from trifed.methods.packing import Layout, Tensors, Vector, pack, select, unpack
from trifed.similarity import Summary
from trifed.similarity.summary import MOST_CLASSES

SUMMARY, START = "summary/", "start"
"""Names of a checkpoint's arrays beside the method's state: summaries and the common start."""


@dataclass
class BaseServer(ABC):
    """The server of one run, without its rounds.

    Attributes:
        clients: Number of clients.
        names: The clients' names by index, for methods that share within given groups.
        start: Common start of the values that go either way, (n_values,), packed by `RunContext.exchanged`.
        state: The method's state.
        summaries: The clients' data summaries by index.
        shared_projections: The frozen projections that the method makes before round 1; empty without any.
    """

    context: RunContext
    clients: int
    start: Vector
    state: State = field(default_factory=dict)
    summaries: dict[int, Summary] = field(default_factory=dict)
    shared_projections: Tensors = field(default_factory=dict)
    names: list[str] = field(default_factory=list)

    # -- checkpoint

    def state_dict(self) -> State:
        """Return all arrays that a checkpoint needs, the shared projections apart, which have their own file."""
        arrays: State = {**self.state, START: self.start, **self.bookkeeping()}
        for client, summary in self.summaries.items():
            arrays |= {f"{SUMMARY}{client}/{name}": array for name, array in summary.to_arrays().items()}
        return arrays

    def bookkeeping(self) -> State:
        """Return the arrays on earlier rounds that the next round needs beside the method's state."""
        return {}

    def load_state_dict(self, arrays: Mapping[str, NDArray[np.generic]]) -> None:
        """Restore the arrays of `state_dict`, or the method's state alone."""
        rest = dict(arrays)
        self.start = rest.pop(START, self.start).astype(np.float32)
        summaries: dict[int, dict[str, NDArray[np.generic]]] = {}
        for client, name, array in pop_all(rest, SUMMARY):
            summaries.setdefault(client, {})[name] = array
        self.summaries = {client: Summary.from_arrays(found) for client, found in summaries.items()}
        self.state = rest

    @abstractmethod
    def recall(self, client: int, memory: Mapping[str, Vector]) -> None:
        """Take up the reference vectors in the checkpoint of a simulated client, if this server uses them."""

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

    @abstractmethod
    def forget(self, client: int) -> None:
        """Go back to the common start for a client, which begins anew."""

    def withdraw(self, client: int) -> None:
        """Delete what is known of a client alone; its index is not given to another client."""
        self.forget(client)
        if client in self.summaries:
            self.summaries[client] = self.summaries[client].emptied()
        self._on_membership_change([client])

    def _on_membership_change(self, reset: Sequence[int]) -> None:
        on_membership_change = self.context.method.on_membership_change
        if on_membership_change and self.state:
            self.state = on_membership_change(self.context.options, self._server_context(), self.state, reset)

    # -- rounds

    @abstractmethod
    def download(self, number: int, client: int) -> bytes | None:
        """Return the message that a client begins round `number` with; None if there is nothing to send."""

    @abstractmethod
    def arrives(self, client: int) -> Vector | None:
        """Return the values that a client has after its next download, (n_values,); None if nothing is sent."""

    def _server_context(self) -> ServerContext:
        sent, received = self.context.compression.layout, self.context.downloads.layout
        start = select(self.start, self.context.exchanged, sent)
        return ServerContext(self.clients, sent, start, self.summaries, tuple(self.names), received)


def layout_of(tensors: Tensors) -> Layout:
    """Return names and shapes of tensors."""
    return tuple((name, values.shape) for name, values in tensors.items())


def pop_all(arrays: State, prefix: str) -> Iterator[tuple[int, str, NDArray[np.generic]]]:
    """Remove all arrays under a prefix and yield client, rest of the name, and array."""
    for name in [name for name in arrays if name.startswith(prefix)]:
        client, _, rest = name.removeprefix(prefix).partition("/")
        yield int(client), rest, arrays.pop(name)
