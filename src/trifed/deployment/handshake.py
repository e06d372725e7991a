"""Opening the clients before the first round: their examples, and the layout and start that all agree on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from trifed.common.errors import MessageError, RunError
from trifed.config.run import RunConfig
from trifed.deployment.client_manager import ClientManager
from trifed.deployment.protocol import MOST_TEXT, Reply, digest, read_layout, rejected_for
from trifed.federation.base_server import BaseServer
from trifed.federation.context import run_context
from trifed.federation.messages import Rejected, decode_values
from trifed.federation.sealed.server import make_server
from trifed.federation.transport import ClientRecord
from trifed.methods.packing import Layout, Vector
from trifed.similarity.summary import MOST_DIM

MOST_BYTES = 2**53
"""The largest number of bytes that a client may report."""


@dataclass(frozen=True)
class OpenedClients:
    """The clients of a run after their opening.

    Attributes:
        replies: The clients' replies by index.
        rejected: Why a client could not be opened, by index; it has a record without examples.
        layers: Names and shapes of the weights that are adapted.
        lora_bytes: Size of one message of `fedavg-lora` on this model.
    """

    server: BaseServer
    records: list[ClientRecord]
    replies: Mapping[int, Reply]
    rejected: Mapping[int, Rejected]
    layers: Layout
    lora_bytes: int


class _Facts(NamedTuple):
    """Facts of one client's reply."""

    examples: int
    data: str
    layers: Layout
    lora_bytes: int
    features: int


def open_clients(config: RunConfig, run: str, client_manager: ClientManager) -> OpenedClients:
    """Open every client. One that cannot be opened keeps its index, and has no examples.

    Raises:
        RunError: No client could be opened.
    """
    names = client_manager.names
    replies = client_manager.ask("open", {client: {"start": int(client == 0)} for client in range(len(names))})
    found = {client: _read_facts(client_manager.check(replies.get(client))) for client in range(len(names))}
    votes = Counter(facts[2:] for facts in found.values() if isinstance(facts, _Facts))
    agreed = max(sorted(votes), key=votes.__getitem__, default=((), 0, 0))
    opened: dict[int, _Facts] = {}
    rejected: dict[int, Rejected] = {}
    start: tuple[Layout, Vector] | None = None
    for client, facts in found.items():
        if client and start is None and isinstance(facts, _Facts):  # those before it sent no start
            replies |= client_manager.ask("open", {client: {"start": 1}})
            facts = _read_facts(client_manager.check(replies.get(client)))
        if isinstance(facts, _Facts) and facts[2:] != agreed:
            facts = rejected_for("other_base")
        if isinstance(facts, _Facts) and start is None:
            sent = _read_start(config, run, client_manager, client, replies[client])
            facts, start = (sent, None) if isinstance(sent, Rejected) else (facts, sent)
        if isinstance(facts, Rejected):
            rejected[client] = facts
        else:
            opened[client] = facts
    if start is None:
        name, reason = names[0], rejected[0].reason
        raise RunError(f"{name} cannot take part: {reason}; fix this, and start the run again")
    records = [
        ClientRecord(name, client_manager.registered_nodes[name], *(opened[c][:2] if c in opened else (0,)))
        for c, name in enumerate(names)
    ]
    layers, lora_bytes, features = agreed
    context = run_context(config, start[0], client_manager.identity[0], run, features)
    server = make_server(context, len(records), start[1], names)
    return OpenedClients(server, records, replies, rejected, layers, lora_bytes)


def client_record(client_manager: ClientManager, name: str, opened: Reply) -> ClientRecord:
    """Make the record of a client that was opened; MessageError if its reply lacks a fact."""
    node = client_manager.registered_nodes[name]
    return ClientRecord(name, node, opened.number("examples"), opened.text("data"))


def _read_facts(reply: Reply | Rejected) -> _Facts | Rejected:
    if isinstance(reply, Rejected):
        return reply
    try:
        layers, lora_bytes = read_layout(reply.text("layers", MOST_TEXT)), reply.number("lora_bytes", MOST_BYTES)
        features = reply.number("features", MOST_DIM) if "features" in reply.facts else 0
        return _Facts(reply.number("examples"), reply.text("data"), layers, lora_bytes, features)
    except MessageError as error:
        return Rejected("bad_reply", str(error))


def _read_start(
    config: RunConfig, run: str, client_manager: ClientManager, client: int, reply: Reply
) -> tuple[Layout, Vector] | Rejected:
    """Read layout and common start from one client's reply; every client has announced their digest."""
    base, expected = client_manager.identity
    try:
        layout = read_layout(reply.text("layout", MOST_TEXT))
        header = run_context(config, layout, base, run).header("start", 0, client)
        start = decode_values(reply.part("start"), header, layout)[1]
    except MessageError as error:
        return Rejected("bad_reply", str(error))
    same = digest(layout, start) == expected
    return (layout, start) if same else rejected_for("starts_elsewhere")
