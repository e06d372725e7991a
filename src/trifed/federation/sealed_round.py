"""The second exchange of a sealed round: terms to each client of a sum, its part back, and the sum opened.

A sum is opened only if every client of its list has sent. Otherwise all of the list are left out of the round, and
nobody is asked again for the same round: two sums of other lists of the same numbers would show their difference.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from trifed.federation.events import Sizes
from trifed.federation.messages import Rejected, manifest
from trifed.federation.sealed_numbers import bits_of_count, bits_of_sum
from trifed.federation.sealed_server import INCOMPLETE, TOO_FEW, SealedServer, SumPart
from trifed.federation.sealing import SumTerms, sizes_of_part
from trifed.federation.transport import MessageTo, Reply

TERMS = "(terms of the sum)"
"""Name of the terms among the sizes of what a client receives."""
Exchanged = tuple[Sizes, Sizes]
"""Bytes of a client's part of a sum by tensor name, and of the terms."""


Ask = Callable[[Sequence[int], MessageTo], Iterator[tuple[int, Reply]]]
"""Clients and the message for each → the replies that count, with the clients' indices."""
WithKeys = Callable[[int, SumTerms], SumTerms]


@dataclass
class OpenedSums:
    """The sums of a round.

    Attributes:
        exchanged: Bytes that each client whose round counts has exchanged.
        left_out: Clients whose round does not count, those apart that gave no reply.
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
    lists, opened = server.lists(ready), OpenedSums()
    least = server.rules.at_least
    if number:
        few = Rejected(TOO_FEW, f"fewer than {least} clients of its group are ready, which a sum needs")
        opened.left_out |= dict.fromkeys(lists.few, few)
        opened.exchanged |= {client: ({}, {}) for client in lists.alone}
    terms = [with_keys(number, server.terms(number, clients)) for clients in lists.sums]
    terms_of = {client: each for each in terms for client in each.clients}
    parts: dict[int, SumPart] = {}
    sizes: dict[int, Exchanged] = {}

    def message(client: int) -> bytes:
        return terms_of[client].encode(server.context.header("terms", number, client))

    asked = [client for client in ready if client in terms_of]
    for client, reply in ask(asked, message) if asked else ():
        part = server.read_part(number, client, reply.payload or b"", terms_of[client])
        if isinstance(part, Rejected):
            opened.left_out[client] = part
            continue
        parts[client] = part
        found = sizes_of_part(server.context.compression.layout, len(terms_of[client].clients), server.rules)
        up = manifest(reply.payload or b"", found if number else {})
        sizes[client] = up, {TERMS: len(reply.sent or b"")}
    for each in terms:
        _open(server, number, each, parts, opened)
    opened.exchanged |= {
        client: sizes[client] for clients, _ in opened.sums for client in clients if client in sizes
    }
    return opened


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
        bits = bits_of_sum(n, server.rules.levels) if number else bits_of_count(n)
        opened.sums.append((list(sum_terms.clients), bits))
    elif number:  # without the sum before round 1 no row of the head is shared; no client is left out for it
        opened.left_out |= dict.fromkeys(sent, wrong)
