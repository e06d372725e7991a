"""Flower carries the messages: a ServerApp that leads a run, and a ClientApp that answers for one client.

The only file that imports flwr. What is said is that of `sites.protocol`, one record a message.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid, ServerApp

from trifed.common.errors import MessageError, TrifedError
from trifed.deployment.event_format import line_of
from trifed.deployment.protocol import Fact, Reply, Request
from trifed.deployment.refusals import RefusalCode, code_of, read_code
from trifed.deployment.worker import ask_worker
from trifed.federation.events import Event, Listener

LOGGER = logging.getLogger(__name__)
RECORD, PART = "trifed", "part/"
POLL = 0.5
"""Seconds between two looks for replies."""
EXPIRED = (ErrorCode.MESSAGE_UNAVAILABLE, ErrorCode.REPLY_MESSAGE_UNAVAILABLE)
"""What Flower says of a message, or of the reply to one, that has outlived its time to live."""

FLOWERS = {ErrorCode.NODE_UNAVAILABLE: RefusalCode.NOT_CONNECTED}
"""Codes for Flower's own errors; any other means that the node could not answer."""

Answer = Callable[[Path, Request], Reply]


class FlowerChannel:
    """A `Channel` over Flower's grid."""

    def __init__(self, grid: Grid) -> None:
        self.grid = grid

    def nodes(self) -> set[int]:
        """Nodes that are connected."""
        return set(self.grid.get_node_ids())

    def ask(self, requests: Mapping[int, Request], seconds: float) -> dict[int, Reply]:
        """Send all, and collect what comes within `seconds`; an error of Flower's own becomes a reply with it.

        That a message has expired is not one: a message lives as long as the round, and which clock is ahead, the
        SuperLink's or this one, decides whether Flower says so first. Either way nobody has answered.
        """
        if not requests:
            return {}
        messages = [
            Message(write(request.kind, request.facts, request.parts), node, kind_of(request), ttl=seconds)
            for node, request in requests.items()
        ]
        waiting = dict(zip(self.grid.push_messages(messages), requests, strict=True))
        found: dict[int, Reply] = {}
        until = time.monotonic() + seconds
        while waiting and time.monotonic() < until:
            for message in self.grid.pull_messages(list(waiting)):
                node = waiting.pop(message.metadata.reply_to_message_id)
                if not (message.has_error() and message.error.code in EXPIRED):
                    found[node] = reply_of(message)
            if waiting:
                time.sleep(POLL)
        return found


def kind_of(request: Request) -> str:
    """Flower's type of message."""
    return "train" if request.kind == "train" else f"query.{request.kind}"


def write(kind: str, facts: Mapping[str, Fact], parts: Mapping[str, bytes]) -> RecordDict:
    """One record with everything in it."""
    values: dict[str, Any] = {"kind": kind, **facts, **{f"{PART}{name}": part for name, part in parts.items()}}
    return RecordDict({RECORD: ConfigRecord(values)})


def read(content: RecordDict) -> tuple[str, dict[str, Any], dict[str, bytes]]:
    """Kind, facts and parts; MessageError where it is no message of this package."""
    record = content.config_records.get(RECORD)
    if record is None or "kind" not in record:
        raise MessageError("a message that is none of trifed's")
    parts = {n.removeprefix(PART): v for n, v in record.items() if n.startswith(PART) and isinstance(v, bytes)}
    facts = {name: value for name, value in record.items() if name != "kind" and not name.startswith(PART)}
    return str(record["kind"]), facts, parts


def reply_of(message: Message) -> Reply:
    """A client's reply; a code for Flower's own error, whose text comes from the client and is not read."""
    if message.has_error():
        return Reply(error=FLOWERS.get(message.error.code, RefusalCode.OTHER))
    try:
        _, facts, parts = read(message.content)
    except MessageError:
        return Reply(error=RefusalCode.BAD_REPLY)
    lost, code = bool(facts.pop("lost", 0)), read_code(facts.pop("error", ""))
    return Reply(facts, parts, code, lost)


def client_app(answer: Answer = ask_worker) -> ClientApp:
    """A ClientApp, imported without torch; `--node-config 'node="/etc/node.toml"'` names the node's settings."""
    app = ClientApp()

    def handle(message: Message, context: Context) -> Message:
        reply = _answer(message, context, answer)
        told = {**reply.facts, "lost": int(reply.lost), "error": reply.error or ""}
        return Message(write("reply", told, reply.parts), reply_to=message)

    app.train()(handle)
    for kind in ("hello", "open", "gradient", "frames", "finish"):
        app.query(kind)(handle)
    return app


def _answer(message: Message, context: Context, answer: Answer) -> Reply:
    """A client's answer. No exception leaves: Flower would send its text to the server."""
    try:
        node = settings_of(context)
        if node is None:
            LOGGER.warning("this node names no settings; start it with --node-config 'node=\"/…/node.toml\"'")
            return Reply(error=RefusalCode.NO_SETTINGS)
        return answer(node, Request(*read(message.content)))
    except Exception as error:
        LOGGER.exception("a message is not answered; the server gets a code alone")
        return Reply(error=code_of(error))


def settings_of(context: Context) -> Path | None:
    """Where a node's settings lie: as it was started with or, of simulated nodes, as the run says (`sites`)."""
    if "node" in context.node_config:
        return Path(str(context.node_config["node"]))
    folder, place = str(context.run_config.get("sites", "")), context.node_config.get("partition-id")
    found = sorted(Path(folder).expanduser().glob("*/node.toml")) if folder and place is not None else []
    return found[int(str(place))] if found and int(str(place)) < len(found) else None


def say(event: Event) -> None:
    """A line for whoever follows the run."""
    line = line_of(event)
    if line:
        print(line, flush=True)


def server_app(run: Path, listener: Listener = say) -> ServerApp:
    """A ServerApp that leads the run of a TOML file.

    Its run configuration names the folder that the run is kept in, by `folder`; an unfinished run there goes on.
    """
    app = ServerApp()

    @app.main()  # type: ignore[untyped-decorator]
    def main(grid: Grid, context: Context) -> None:
        # Here, because the ClientApp imports this file anew for every message.
        from trifed.config.run import to_toml
        from trifed.deployment.server_folder import read_run
        from trifed.deployment.site_transport import SiteTransport
        from trifed.federation.run_folder import RunFolder

        config = read_run(run)
        path = Path(str(context.run_config.get("folder", f"runs/{config.name}"))).expanduser()
        if (path / "config.toml").is_file():
            folder = RunFolder.open(path)
        else:
            folder = RunFolder.create(path)
            folder.write_text("config.toml", to_toml(config))
        try:
            SiteTransport(config, FlowerChannel(grid), folder, listener).run()
        except TrifedError as error:
            # Flower writes a traceback and marks the run as failed; the message is all that there is to read.
            print(f"\ntrifed: {error}\n", flush=True)
            raise

    return app
