"""Opening the clients before the first round: their examples, and the layout and start that all agree on."""

from __future__ import annotations

from trifed.common.errors import RunError
from trifed.config.run import RunConfig
from trifed.deployment.client_manager import ClientManager
from trifed.deployment.protocol import Reply, digest, read_layout
from trifed.federation.context import run_context
from trifed.federation.messages import Rejected, decode_values
from trifed.federation.server import Server
from trifed.federation.transport import ClientRecord
from trifed.methods.packing import Layout, Vector


def open_clients(
    config: RunConfig, run: str, client_manager: ClientManager
) -> tuple[Server, list[ClientRecord], dict[int, Reply]]:
    """Open every client; return the server, the client records, and the clients' replies by index.

    A client that cannot be opened is refused if enough others are connected.

    Raises:
        RunError: Too few clients could be opened, or one sent another start than it had announced.
    """
    while True:
        names = list(client_manager.names)
        replies = client_manager.ask("open", {client: {"start": int(client == 0)} for client in range(len(names))})
        checked = {client: client_manager.check(replies.get(client)) for client in range(len(names))}
        rejected = {names[c]: reply for c, reply in checked.items() if isinstance(reply, Rejected)}
        if not rejected:
            break
        for name, why in rejected.items():  # the others get other indices then, and are opened again
            if len(names) - len(rejected) < config.deployment.clients:
                raise RunError(f"{name} could not be opened: {why.reason}; mend it, and start the run again")
            client_manager.refuse(name, why)
    records = [client_record(client_manager, name, replies[client]) for client, name in enumerate(names)]
    layout, start = _agree_on_start(config, run, client_manager, replies[0])
    context = run_context(config, layout, client_manager.identity[0], run)
    return Server(context, len(records), start), records, replies


def client_record(client_manager: ClientManager, name: str, opened: Reply) -> ClientRecord:
    """Make the record of a client that was opened; MessageError if its reply lacks a fact."""
    node = client_manager.registered_nodes[name]
    return ClientRecord(name, node, opened.number("examples"), opened.text("data"))


def _agree_on_start(
    config: RunConfig, run: str, client_manager: ClientManager, opened: Reply
) -> tuple[Layout, Vector]:
    """Read layout and common start from one client's reply; every client has announced their digest."""
    base, expected = client_manager.identity
    layout = read_layout(opened.text("layout"))
    header = run_context(config, layout, base, run).header("start", 0, 0)
    start = decode_values(opened.part("start"), header, layout)[1]
    if digest(layout, start) != expected:
        raise RunError(f"{client_manager.names[0]} sent another start than it had announced; leave it out")
    return layout, start
