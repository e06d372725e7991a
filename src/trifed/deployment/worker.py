"""The process that holds a node's base model, because Flower starts a new one for every message.

It is started when it is needed, answers one request at a time over a socket in the node's own folder, and ends
when it was idle for `idle_seconds`. Whoever asks it imports neither torch nor transformers.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from trifed.common.errors import TrifedError
from trifed.deployment.protocol import Fact, Reply, Request
from trifed.deployment.refusals import RefusalCode, code_of, read_code
from trifed.deployment.site_settings import SiteSettings, read_site_settings

LOGGER = logging.getLogger(__name__)

SOCKET, LOCK, LOG = "worker.socket", "worker.lock", "worker.log"
START_SECONDS = 120.0
"""Until a worker that was started has to listen."""
READY = b"+"
"""What a worker says first: one that is just being ended accepts connections, and says nothing."""
LONGEST = 86400.0
"""Seconds that an answer may take where the server does not say."""
LONGEST_PATH = 100
"""Of a socket, in bytes: systems allow about this much."""


def ask_worker(path: Path, request: Request) -> Reply:
    """The answer of the node whose settings lie at `path`, from its worker, started where there is none.

    `seconds` among the facts is how long the server waits for it. An error's text goes to this
    process's log alone.
    """
    seconds = float(request.facts.get("seconds", LONGEST))
    try:
        settings = read_site_settings(path)
        with _connected(path, settings, time.monotonic() + seconds) as connection:
            send(connection, request.kind, request.facts, request.parts)
            kind, facts, parts = receive(connection)
    except TrifedError as error:
        LOGGER.warning("%s: %s", path, error)
        return Reply(error=code_of(error))
    except (OSError, EOFError, ValueError) as error:
        LOGGER.warning("%s: the process with the model ended or cannot be reached (%s); see %s", path, error, LOG)
        return Reply(error=RefusalCode.UNREACHABLE)
    code = read_code(facts.pop("error", ""))
    return Reply(facts, parts, code, kind == "lost")


@contextmanager
def _connected(path: Path, settings: SiteSettings, until: float) -> Iterator[socket.socket]:
    """A connection whose every wait ends at `until`, of `time.monotonic`; TimeoutError then."""
    settings.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with _locked(settings.folder / LOCK, until):
        connection = _connect(settings.folder, until)
        if connection is None:
            connection = _start(path, settings, until)
    with connection:
        yield connection


def _start(path: Path, settings: SiteSettings, until: float) -> socket.socket:
    # Not by subprocess: the worker outlives whoever starts it.
    log = str(settings.folder / LOG)
    pid = os.posix_spawn(
        sys.executable,
        [sys.executable, "-m", "trifed.deployment.worker", str(path.absolute())],
        os.environ,
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ],
        setsid=True,
    )
    limit = min(until, time.monotonic() + START_SECONDS)
    while time.monotonic() < limit and os.waitpid(pid, os.WNOHANG) == (0, 0):
        connection = _connect(settings.folder, until)
        if connection is not None:
            return connection
        time.sleep(0.05)
    raise OSError("it did not start")


def _connect(folder: Path, until: float) -> socket.socket | None:
    """A connection to a worker that has said that it is there; None where none is, or it is just ending."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(max(0.01, until - time.monotonic()))
    try:
        with _short(folder) as place:
            connection.connect(place)
        if connection.recv(1) == READY:
            return connection
    except TimeoutError:  # it is there, and busy
        connection.close()
        raise
    except OSError:
        pass
    connection.close()
    return None


@contextmanager
def _short(folder: Path) -> Iterator[str]:
    """The socket's path, short enough for the system: through an open folder where it is deep."""
    place = str(folder / SOCKET)
    if len(os.fsencode(place)) <= LONGEST_PATH:
        yield place
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        yield f"/proc/self/fd/{handle}/{SOCKET}"
    finally:
        os.close(handle)


@contextmanager
def _locked(path: Path, until: float) -> Iterator[None]:
    """One at a time, also between processes; TimeoutError at `until`."""
    with path.open("w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > until:
                    raise TimeoutError("another message is being answered") from None
                time.sleep(0.05)
        yield


def send(connection: socket.socket, kind: str, facts: Mapping[str, Fact], parts: Mapping[str, bytes]) -> None:
    """One message: eight bytes of length, a JSON header, and the parts one behind the other."""
    sizes = {name: len(part) for name, part in parts.items()}
    header = json.dumps({"kind": kind, "facts": dict(facts), "parts": sizes}).encode()
    connection.sendall(len(header).to_bytes(8, "little") + header + b"".join(parts.values()))


def receive(connection: socket.socket) -> tuple[str, dict[str, Any], dict[str, bytes]]:
    """The inverse; EOFError where the other side ended."""
    header = json.loads(_exactly(connection, int.from_bytes(_exactly(connection, 8), "little")))
    parts = {name: _exactly(connection, size) for name, size in header["parts"].items()}
    return header["kind"], header["facts"], parts


def _exactly(connection: socket.socket, size: int) -> bytes:
    found = bytearray()
    while len(found) < size:
        part = connection.recv(min(1 << 20, size - len(found)))
        if not part:
            raise EOFError("the other side ended")
        found += part
    return bytes(found)


def work(path: Path) -> None:
    """Answer for a node until nobody has asked for `idle_seconds`."""
    settings = read_site_settings(path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
        (settings.folder / SOCKET).unlink(missing_ok=True)
        with _short(settings.folder) as place:
            listening.bind(place)
        (settings.folder / SOCKET).chmod(0o600)
        listening.listen()
        listening.settimeout(settings.idle_seconds)
        from trifed.deployment.site_process import SiteProcess  # after the socket is there: it imports torch

        node = SiteProcess(settings)
        while True:
            try:
                connection, _ = listening.accept()
            except TimeoutError:
                break
            with connection:
                try:
                    connection.sendall(READY)
                    request = Request(*receive(connection))
                    if read_site_settings(path) != node.settings:
                        node = SiteProcess(read_site_settings(path))
                    reply = node.answer(request)
                    facts = {**reply.facts, "error": reply.error or ""}
                    send(connection, "lost" if reply.lost else "reply", facts, reply.parts)
                except (OSError, EOFError, ValueError) as error:  # who asked has gone; the next one may come
                    print(f"not answered: {error}", file=sys.stderr, flush=True)
        (settings.folder / SOCKET).unlink(missing_ok=True)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    work(Path(sys.argv[1]))
