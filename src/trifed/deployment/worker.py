"""The long-lived process of a site that holds the base model; Flower starts a new process for every message.

It starts when it is needed, answers one request at a time over a socket in the site's folder, and ends after
`idle_seconds` without a request. The side that asks it imports neither torch nor transformers.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from trifed.common.errors import TrifedError, one_line
from trifed.common.imports import quick_imports
from trifed.common.lock import held
from trifed.common.stopping import MISTAKE, exit_code, stop_on_sigterm, stopped_later
from trifed.deployment.protocol import MOST_TEXT, Fact, Reply, Request, code_of, read_json
from trifed.deployment.site_settings import SiteSettings, read_site_settings

LOGGER = logging.getLogger(__name__)

SOCKET, LOCK, LOG = "worker.socket", "worker.lock", "worker.log"
START_SECONDS = 120.0
"""Seconds within which a new worker must listen."""
READY = b"+"
"""A worker's first byte. One that is just ending still accepts connections, but never sends it."""
DEFAULT_SECONDS = 86400.0
"""Seconds that an answer may take if the server sets no limit."""
MOST_HEADER, MOST_PART = 4 * MOST_TEXT, 2**38
"""The most bytes of a message's header, and of one of its parts."""
LONGEST_PATH = 100
"""Bytes in the path of a socket; systems allow about this many."""


def ask_worker(path: Path, request: Request) -> Reply:
    """Return a site's reply to a request, from its worker, which is started if there is none.

    An error's text goes to this process's log alone.

    Args:
        path: the site's settings file.
        request: the request; its fact `seconds` is how long the server waits.
    """
    try:
        seconds = min(request.real("seconds"), DEFAULT_SECONDS) if "seconds" in request.facts else DEFAULT_SECONDS
        settings = read_site_settings(path)
        with _connected(path, settings, time.monotonic() + seconds) as connection:
            send(connection, request.kind, request.facts, request.parts)
            return Reply.read(*receive(connection)[1:])
    except TrifedError as error:
        LOGGER.warning("%s: %s", path, one_line(error))
        return Reply(error=code_of(error))
    except (OSError, EOFError, ValueError) as error:
        LOGGER.warning("%s: the process with the model ended or cannot be reached (%s); see %s", path, error, LOG)
        return Reply(error="unreachable")


@contextmanager
def _connected(path: Path, settings: SiteSettings, until: float) -> Iterator[socket.socket]:
    """Yield a connection to the worker; each wait ends with a TimeoutError at `until`, of `time.monotonic`."""
    settings.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with _locked(settings.folder / LOCK, until):
        connection = _connect(settings.folder, until) or _start(path, settings, until)
    with connection:
        yield connection


def _start(path: Path, settings: SiteSettings, until: float) -> socket.socket:
    # Not by subprocess, because the worker outlives the process that starts it.
    pid = os.posix_spawn(
        sys.executable,
        [sys.executable, "-m", "trifed.deployment.worker", str(path.absolute())],
        os.environ,
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, str(settings.folder / LOG), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600),
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
    """Return a connection to a worker that is ready; None if there is none, or it is just ending."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(max(0.01, until - time.monotonic()))
    try:
        with _socket_path(folder) as address:
            connection.connect(address)
        if connection.recv(1) == READY:
            return connection
    except TimeoutError:  # it is busy
        connection.close()
        raise
    except OSError:
        pass
    connection.close()
    return None


@contextmanager
def _socket_path(folder: Path) -> Iterator[str]:
    """Yield the socket's path, by an open descriptor of its folder if it is too long for the system."""
    address = str(folder / SOCKET)
    if len(os.fsencode(address)) <= LONGEST_PATH:
        yield address
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        yield f"/proc/self/fd/{handle}/{SOCKET}"
    finally:
        os.close(handle)


@contextmanager
def _locked(path: Path, until: float) -> Iterator[None]:
    """Hold a lock between processes; TimeoutError at `until`."""
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
    """Send one message: the length of a JSON header in eight bytes, the header, and the parts in its order."""
    header = json.dumps(
        {"kind": kind, "facts": dict(facts), "parts": {name: len(part) for name, part in parts.items()}}
    ).encode()
    connection.sendall(len(header).to_bytes(8, "little") + header + b"".join(parts.values()))


def receive(connection: socket.socket) -> tuple[str, dict[str, Any], dict[str, bytes]]:
    """Receive one message of `send`: its kind, facts and parts.

    Raises:
        EOFError: The other side ended.
        ValueError: It is no such message, or larger than any.
    """
    with connection.makefile("rb") as stream:

        def read(size: int, most: int) -> bytes:
            if type(size) is not int or not 0 <= size <= most:
                raise ValueError(f"a message with {one_line(size, 30)} bytes, expected at most {most}")
            data = stream.read(size)
            if len(data) < size:
                raise EOFError("the other side ended")
            return data

        header = read_json(read(int.from_bytes(read(8, 8), "little"), MOST_HEADER))
        try:
            kind, facts, sizes = header["kind"], dict(header["facts"]), dict(header["parts"])
        except (KeyError, TypeError) as error:
            raise ValueError("no message of this package") from error
        return str(kind), facts, {name: read(size, MOST_PART) for name, size in sizes.items()}


def work(path: Path) -> None:
    """Answer requests to a site until there was none for `idle_seconds`; the site's folder is held as long.

    Raises:
        LockedError: Another process holds the site's folder.
    """
    settings = read_site_settings(path)
    with held(settings.folder), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
        (settings.folder / SOCKET).unlink(missing_ok=True)
        with _socket_path(settings.folder) as address:
            listening.bind(address)
        (settings.folder / SOCKET).chmod(0o600)
        listening.listen()
        listening.settimeout(settings.idle_seconds)
        try:
            _answer_all(path, settings, listening)
        finally:
            (settings.folder / SOCKET).unlink(missing_ok=True)


def _answer_all(path: Path, settings: SiteSettings, listening: socket.socket) -> None:
    """Answer one request after the other until none comes in time."""
    with stopped_later(), quick_imports():
        from trifed.deployment.site_process import SiteProcess  # after the socket exists: it imports torch

    site = SiteProcess(settings)
    while True:
        try:
            connection, _ = listening.accept()
        except TimeoutError:
            return
        with connection:
            try:
                connection.sendall(READY)
                request = Request(*receive(connection))
                current = read_site_settings(path)
                if current != site.settings:
                    site = SiteProcess(current)
                reply = site.answer(request)
                send(connection, "reply", reply.written_facts(), reply.parts)
            except (OSError, EOFError, ValueError) as error:  # the asking process ended; the next one may come
                print(f"not answered: {one_line(error)}", file=sys.stderr, flush=True)


def main() -> None:
    """Run the process of the site whose settings are named; SIGTERM ends it, and the next request starts it."""
    stop_on_sigterm()
    try:
        work(Path(sys.argv[1]))
    except TrifedError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(MISTAKE)
    except KeyboardInterrupt as stop:
        print("stopped; whole rounds are kept, and the next request starts this process again", file=sys.stderr)
        sys.exit(exit_code(stop))


if __name__ == "__main__":
    main()
