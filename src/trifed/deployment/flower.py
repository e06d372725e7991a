"""Flower as the transport of `deployment.protocol`: a ServerApp that leads a run, a ClientApp for one client.

Every message is one record. Only this file and `flower_connection` import flwr.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from trifed.common.errors import MessageError, RunError, TrifedError
from trifed.common.imports import quick_imports
from trifed.common.stopping import exit_code
from trifed.common.text import printable
from trifed.deployment.protocol import Fact, Missing, Reply, Request, code_of
from trifed.deployment.worker import ask_worker

with quick_imports():
    from flwr.app import ConfigRecord, Context, Message, RecordDict
    from flwr.clientapp import ClientApp
    from flwr.common.constant import ErrorCode
    from flwr.serverapp import Grid, ServerApp

if TYPE_CHECKING:
    from trifed.federation.events import Event, Listener

LOGGER = logging.getLogger(__name__)
RECORD, PART = "trifed", "part/"
CONTINUE = "All complete rounds are kept; run.sh continues."
INSTALL = "install the version that trifed's constraints.txt names"
SITE_PATH = "TRIFED_PATH"
"""Environment variable with the PATH of a site's start.sh, which gives Flower another one."""
POLL = 0.5
"""Seconds between two looks for replies."""
EXPIRED = (ErrorCode.MESSAGE_UNAVAILABLE, ErrorCode.REPLY_MESSAGE_UNAVAILABLE)
"""Flower's errors for a message, or a reply, that has expired."""
UNUSED = {"flwr.supernode.cli.flower_supernode": "flower_supernode", "flwr.cli.install": "install_from_fab"}
"""Modules that Flower's process for one message imports and does not use here, and the name it takes from each.
They import a database, Flower's command line and more, which takes as long as half of the rest."""

Answer = Callable[[Path, Request], Reply]


class FlowerChannel:
    """A `Channel` over Flower's grid."""

    def __init__(self, grid: Grid) -> None:
        self.grid = grid

    def nodes(self) -> set[int]:
        """Return the connected nodes."""
        return set(self.grid.get_node_ids())

    def ask(
        self, requests: Mapping[int, Request], seconds: float, missing: Missing = lambda _: None
    ) -> dict[int, Reply]:
        """Send all requests; return the replies that come within `seconds`, and Flower's own errors as replies.

        An expired message counts as no reply. It lives as long as the round, so the clocks of the SuperLink and of
        this machine decide whether Flower reports that first.
        """
        if not requests:
            return {}
        messages = [
            Message(
                write(request.kind, request.facts, request.parts), node, _message_type(request.kind), ttl=seconds
            )
            for node, request in requests.items()
        ]
        waiting = dict(zip(self.grid.push_messages(messages), requests, strict=True))
        replies: dict[int, Reply] = {}
        until = time.monotonic() + seconds
        while waiting and time.monotonic() < until:
            for message in self.grid.pull_messages(list(waiting)):
                node = waiting.pop(message.metadata.reply_to_message_id)
                if not (message.has_error() and message.error.code in EXPIRED):
                    replies[node] = reply_of(message)
            if waiting:
                missing(waiting.values())
                time.sleep(POLL)
        return replies


def _message_type(kind: str) -> str:
    """Return Flower's message type of a kind of request."""
    return "train" if kind == "train" else f"query.{kind}"


def write(kind: str, facts: Mapping[str, Fact], parts: Mapping[str, bytes]) -> RecordDict:
    """Write a message as one record."""
    values: dict[str, Any] = {"kind": kind, **facts, **{f"{PART}{name}": part for name, part in parts.items()}}
    return RecordDict({RECORD: ConfigRecord(values)})


def read(content: RecordDict) -> tuple[str, dict[str, Any], dict[str, bytes]]:
    """Read kind, facts and parts; MessageError if it is no message of this package."""
    record = content.config_records.get(RECORD)
    if record is None or "kind" not in record:
        raise MessageError("the message was not written by trifed; it is refused")
    parts = {n.removeprefix(PART): v for n, v in record.items() if n.startswith(PART) and isinstance(v, bytes)}
    facts = {
        name: value
        for name, value in record.items()
        if name != "kind" and not name.startswith(PART) and isinstance(value, str | int | float)
    }
    return str(record["kind"]), facts, parts


def reply_of(message: Message) -> Reply:
    """Read a client's reply; Flower's own error becomes a code, because its text comes from the client."""
    if message.has_error():
        return Reply(error="not_connected" if message.error.code == ErrorCode.NODE_UNAVAILABLE else "other")
    try:
        return Reply.read(*read(message.content)[1:])
    except MessageError:
        return Reply(error="bad_reply")


def client_app(answer: Answer = ask_worker) -> ClientApp:
    """Make a ClientApp without importing torch; `--node-config 'node="/etc/node.toml"'` gives the settings."""
    app = ClientApp()

    def handle(message: Message, context: Context) -> Message:
        reply = _answer(message, context, answer)
        return Message(write("reply", reply.written_facts(), reply.parts), reply_to=message)

    app.train()(handle)
    for kind in ("hello", "open", "gradient", "frames", "ready", "send", "finish"):
        app.query(kind)(handle)
    return app


def run_installed_app(answer: Answer = ask_worker) -> None:
    """Run Flower's process for one message, with the installed ClientApp in place of the one that the server sent.

    A site's start.sh gives Flower this command under the name `flwr-clientapp`. The app that comes with a run is
    neither unpacked nor imported, so a server cannot run code at the site.

    Raises:
        SystemExit: The message is answered, or this version of Flower has no place for an app of one's own.
    """
    for module, name in UNUSED.items():
        unused = ModuleType(module)
        vars(unused)[name] = None
        sys.modules.setdefault(module, unused)
    with quick_imports():
        from flwr.supernode.cli import flwr_clientapp
        from flwr.supernode.runtime import run_clientapp as process

    replaced: dict[str, Callable[..., object]] = {
        "install_from_fab": lambda *_, **__: None,
        "get_load_client_app_fn": lambda **_: lambda *__: client_app(answer),
    }
    for name, function in replaced.items():
        if not hasattr(process, name):
            raise SystemExit(f"flwr {version('flwr')}: cannot keep the server's app from being run; {INSTALL}")
        setattr(process, name, function)
    os.environ["PATH"] = os.environ.pop(SITE_PATH, os.environ.get("PATH", ""))
    flwr_clientapp()


def _answer(message: Message, context: Context, answer: Answer) -> Reply:
    """Return a client's reply. No exception is raised, because Flower would send its text to the server."""
    try:
        node = settings_of(context)
        if node is None:
            LOGGER.warning("this node names no settings; start it with --node-config 'node=\"/…/node.toml\"'")
            return Reply(error="no_settings")
        return answer(node, Request(*read(message.content)))
    except Exception as error:
        LOGGER.exception("a message is not answered; the server gets a code alone")
        return Reply(error=code_of(error))


def settings_of(context: Context) -> Path | None:
    """Return the path of a node's settings: given at its start, or by the run (`sites`) for a simulated node."""
    if "node" in context.node_config:
        return Path(str(context.node_config["node"]))
    folder, partition = (
        str(context.run_config.get("sites", "")),
        int(str(context.node_config.get("partition-id", -1))),
    )
    found = sorted(Path(folder).expanduser().glob("*/node.toml")) if folder else []
    return found[partition] if 0 <= partition < len(found) else None


def say(event: Event) -> None:
    """Print an event as a line."""
    # Here, as in server_app: a site's process for one message has no events.
    from trifed.federation.events import line_of

    line = line_of(event)
    if line:
        print(line, flush=True)


def from_round_of(context: Context) -> int | None:
    """Return the round to which a run goes back, from its configuration; None if it does not.

    Raises:
        RunError: It is no number.
    """
    value = str(context.run_config.get("from-round", ""))
    if value and not value.isdecimal():
        raise RunError(f"from-round: got {value!r}, expected the number of a round, such as from-round=3")
    return int(value) if value else None


def without_traceback(record: logging.LogRecord) -> bool:
    """Remove the traceback of an error that the user can correct, whose message was printed. Return True."""
    if record.exc_info and isinstance(record.exc_info[1], TrifedError):
        record.exc_info = None
    return True


def server_app(run: Path, listener: Listener = say) -> ServerApp:
    """Make a ServerApp that leads the run of a TOML file.

    `folder` in its run configuration is the run's folder; an unfinished run there continues, after the round
    `from-round` if that is given.
    """
    app = ServerApp()

    @app.main()  # type: ignore[untyped-decorator]
    def main(grid: Grid, context: Context) -> None:
        # Here, because the ClientApp imports this file anew for every message.
        from trifed.config.run import to_toml
        from trifed.deployment.checkpoint import FACTS
        from trifed.deployment.folders import read_run
        from trifed.federation.run_folder import RunFolder

        with quick_imports():
            from trifed.deployment.site_transport import SiteTransport

        config = read_run(run)
        path = Path(str(context.run_config.get("folder", f"runs/{config.name}"))).expanduser()
        folder = RunFolder.open(path) if (path / "config.toml").is_file() else RunFolder.create(path)
        if not (path / FACTS).is_file():  # the settings may have been corrected after a start that failed
            folder.write_text("config.toml", to_toml(config))
        try:
            SiteTransport(config, FlowerChannel(grid), folder, listener).run(from_round_of(context))
        except (TrifedError, OSError) as error:
            # Flower marks the run as failed; the message is all that there is to read.
            where = f"{error}. Correct that first. {CONTINUE}"
            found = error if isinstance(error, TrifedError) else RunError(where)
            print(printable(f"\ntrifed: {found}\n"), flush=True)
            logging.getLogger("flwr").addFilter(without_traceback)
            raise found from error
        except (KeyboardInterrupt, SystemExit) as stop:  # Flower turns SIGTERM into the latter
            print(f"\ntrifed: Stopped. {CONTINUE}\n", flush=True)
            raise SystemExit(exit_code(stop)) from None

    return app
