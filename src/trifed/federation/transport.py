"""`Transport`, the connection between server and clients, and the records and replies that it gives."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from trifed.federation import events
from trifed.federation.base_server import BaseServer
from trifed.federation.messages import Rejected
from trifed.federation.sealed.rules import SumTerms
from trifed.methods.base import Stage
from trifed.methods.packing import Layout

MessageTo = Callable[[int], bytes | None]
"""Index of a client → the message for it, made when it is asked for; None if there is nothing to send."""
Exchange = Literal["gradient", "projections", "summary", "holders", "train", "send", "finish"]
"""In a sealed run 'train' brings no upload, and 'send' the parts of sums; 'holders' comes before the first sum."""


@dataclass
class ClientRecord:
    """The server's record of one client.

    Attributes:
        node: Address at the transport.
        examples: Training examples that the client has reported; 0 for a client that does not train.
        data: The client's own mark of the data that it was opened with.
        counts: The last round in which the client's upload was accepted, 0 before that.
        left: Whether the client has left for good.
        beginning: The client's own mark of the backup that it continued from; empty without one.
    """

    name: str
    node: int
    examples: int
    data: str = ""
    counts: int = 0
    left: bool = False
    beginning: str = ""


@dataclass(frozen=True)
class Reply:
    """A client's reply.

    Attributes:
        sent: The server's message that this replies to.
        payload: The client's message.
        loss: Mean training loss over the steps, nats.
        seconds: Time that the client's update took.
        kept_own: Whether the client trained from its own values instead of the received ones.
        scores: The final model's scores on `valid` and `test` data, if the client shares them.
    """

    sent: bytes | None = None
    payload: bytes | None = None
    loss: float = 0.0
    steps: int = 0
    seconds: float = 0.0
    kept_own: bool = False
    scores: Mapping[str, Mapping[str, float]] | None = None


@dataclass(frozen=True)
class Opened:
    """The server of a run whose clients are connected.

    Attributes:
        resumed: The last whole round of a run that continues; None for a new run.
        examples: Training examples of each client, if the transport logs them.
        sent: Bytes exchanged before the run was resumed, if the transport logs them.
        rejected: Clients that could not be opened, by index, with the reasons.
    """

    server: BaseServer
    resumed: int | None = None
    examples: list[int] | None = None
    sent: int | None = None
    rejected: Mapping[int, Rejected] = field(default_factory=dict)


class Transport(Protocol):
    """The connection between the server and the clients of one run."""

    @property
    def records(self) -> Sequence[ClientRecord]:
        """Every client of the run; a client's position is its index."""

    @property
    def adapted_layout(self) -> Layout:
        """Names and shapes of the weights that are adapted."""

    def open(self) -> Opened:
        """Connect the clients, and make the server or load it from the last checkpoint."""

    def ask(
        self, kind: Exchange, number: int, clients: Sequence[int], message: MessageTo
    ) -> Iterator[tuple[int, Reply | Rejected]]:
        """Send a message to each client and yield the replies, with the clients' indices, as they come."""

    def reject(self, number: int, client: int, rejected: Rejected) -> None:
        """Handle a reply that does not count; before the first round (0) the client takes no part in the run."""

    def with_keys(self, number: int, sum_terms: SumTerms) -> SumTerms:
        """Return the terms of a sum with the keys that its clients sent when they were ready."""

    def check_ready(self, number: int, ready: Sequence[int]) -> None:
        """Check, in a sealed run, that enough clients are ready, before any of them sends its part of a sum."""

    def close_round(self, number: int, accepted: Sequence[int], sealed: bool = False) -> None:
        """Check the replies of a round, or, after the last round, of the final download.

        `sealed`: `check_ready` has checked them.
        """

    def update_clients(self, number: int) -> Sequence[int]:
        """Let clients join and leave before a round; return those that lack the shared projections."""

    def evaluate(self, number: int, stages: Sequence[Stage]) -> Iterable[events.ClientScores]:
        """Score the clients' models after a round, where the server may see the scores."""

    def save_checkpoint(self, number: int, needed: Collection[int] = ()) -> None:
        """Keep the state after a round, and those of the rounds that are `needed`; round 0 ends the opening."""
