"""The second exchange of a sealed round: terms to each client of a sum, its part back, and the sum opened.

A sum is opened only if every client of its list has sent. Otherwise all of the list are left out of the round, and
nobody is asked again for the same round: two sums of other lists of the same numbers would show their difference.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from trifed.federation.events import Sizes
from trifed.federation.messages import Rejected, manifest
from trifed.federation.sealed.numbers import bits_of_count
from trifed.federation.sealed.rules import SumTerms, sizes_of_part
from trifed.federation.sealed.server import INCOMPLETE, NO_PART, SealedServer, SumPart
from trifed.federation.transport import MessageTo, Reply

TERMS = "(terms of the sum)"
"""Name of the terms among the sizes of what a client receives."""
Exchanged = tuple[Sizes, Sizes]
"""Bytes of a client's part of a sum by tensor name, and of the terms."""


NOT_ITS_OWN = ("unknown_site",)
"""Codes of a client that sends no part because of another client of its list."""
Ask = Callable[[Sequence[int], MessageTo], Iterable[tuple[int, Reply | Rejected]]]
"""Clients and the message for each → the replies, with the clients' indices."""
WithKeys = Callable[[int, SumTerms], SumTerms]


@dataclass
class OpenedSums:
    """The sums of a round.

    Attributes:
        exchanged: Bytes that each client whose round counts has exchanged: none for one without a sum, which keeps
            what it has trained.
        left_out: Clients whose round does not count.
        sums: Clients and bits of each opened sum.
    """

    exchanged: dict[int, Exchanged] = field(default_factory=dict)
    left_out: dict[int, Rejected] = field(default_factory=dict)
    sums: list[tuple[list[int], int]] = field(default_factory=list)


def open_sums(
    server: SealedServer, number: int, ready: Sequence[int], ask: Ask, with_keys: WithKeys
) -> OpenedSums:
    """Ask the clients that are ready for their parts, and open the sums.

    Args:
        server: The server, which takes the sums.
        number: The round, 0 for the sum of label holders.
        ready: Clients that have trained.
        ask: Sends a message to each client.
        with_keys: Adds the clients' keys to the terms of a sum.
    """
    lists, opened = server.lists(ready, number), OpenedSums()
    if number:
        waits = Rejected(NO_PART, "it sent no part of its last sum, so it is in no list of this round")
        opened.left_out |= dict.fromkeys(lists.waiting, waits)
        opened.exchanged |= {client: ({}, {}) for client in (*lists.few, *lists.alone)}
        server.note_few(lists.few)
    terms = [with_keys(number, server.terms(number, clients)) for clients in lists.sums]
    terms_of = {client: each for each in terms for client in each.clients}
    parts: dict[int, SumPart] = {}
    sizes: dict[int, Exchanged] = {}

    def message(client: int) -> bytes:
        return terms_of[client].encode(server.context.header("terms", number, client))

    asked = [client for client in ready if client in terms_of]
    for client, reply in ask(asked, message) if asked else ():
        n = len(terms_of[client].clients)
        if isinstance(reply, Rejected):
            opened.left_out[client] = reply
        elif isinstance(
            part := server.read_part(number, client, reply.payload or b"", terms_of[client]), Rejected
        ):
            opened.left_out[client] = part
        else:
            parts[client], sizes[client] = part, _exchanged(server, number, reply, n)
    if number:
        missing = [client for client in asked if client in opened.left_out]
        at_fault = [client for client in missing if opened.left_out[client].code not in NOT_ITS_OWN]
        server.note_parts(number, list(parts), at_fault)
    for each in terms:
        _open(server, number, each, parts, opened)
    opened.exchanged |= {
        client: sizes[client] for clients, _ in opened.sums for client in clients if client in sizes
    }
    return opened


def _exchanged(server: SealedServer, number: int, reply: Reply, clients: int) -> Exchanged:
    """Return the bytes of a client's part of a sum of `clients`, and of its terms."""
    found = sizes_of_part(server.context.compression.layout, clients, server.rules) if number else {}
    return manifest(reply.payload or b"", found), {TERMS: len(reply.sent or b"")}


def _open(
    server: SealedServer, number: int, sum_terms: SumTerms, parts: dict[int, SumPart], opened: OpenedSums
) -> None:
    """Open one sum, or leave out all of its clients."""
    n = len(sum_terms.clients)
    sent = [client for client in sum_terms.clients if client in parts]
    if len(sent) < n:
        wrong: Rejected | None = Rejected(
            INCOMPLETE, f"{n - len(sent)} of the {n} clients of its sum sent no part"
        )
    else:
        wrong = server.add(number, sum_terms, [parts[client] for client in sent])
    if wrong is None:
        bits = server.rules.bits(n, server.context.compression.layout) if number else bits_of_count(n)
        opened.sums.append((list(sum_terms.clients), bits))
    elif number:  # without the sum before round 1 no row of the head is shared; no client is left out for it
        opened.left_out |= dict.fromkeys(sent, wrong)
