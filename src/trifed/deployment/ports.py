"""Ports of this machine: finding a free one for a site's node, and refusing one that is in use."""

from __future__ import annotations

import argparse
import re
import socket
import sys
import time
from collections.abc import Collection, Sequence
from pathlib import Path

from trifed.common.stopping import MISTAKE

FIRST = 9094
"""The port of a site's node if it is free; Flower's default."""
RELEASE_SECONDS = 10.0
"""Seconds within which a node that was just stopped releases its port."""


def is_free(port: int, host: str = "127.0.0.1") -> bool:
    """Return whether a server could listen on a port now, by binding it for a moment."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def find_port(taken: Collection[int] = (), first: int = FIRST) -> int:
    """Return the first port from `first` on that is free and not in `taken`; 0 if there is none."""
    return next((port for port in range(first, 2**16) if port not in taken and is_free(port)), 0)


def ports_beside(folder: Path) -> set[int]:
    """Return the ports in the start.sh of the folders beside `folder`, whose nodes may not run now."""
    scripts = [script for script in folder.absolute().parent.glob("*/start.sh") if script.is_file()]
    found = [re.findall(r"--port (\d{1,5})\b", script.read_text("utf-8", errors="replace")) for script in scripts]
    return {int(port) for ports in found for port in ports}


def refuse_taken_port(arguments: Sequence[str], what: str) -> None:
    """End this process if the port in a command's arguments stays in use; a port that is not given is not checked.

    Args:
        arguments: The arguments, with `--port` and perhaps `--host`.
        what: What would listen on the port, for the message.

    Raises:
        SystemExit: The port is in use; the message on standard error names a free one.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--port", type=int)
    parser.add_argument("--host", default="127.0.0.1")
    given = parser.parse_known_args(arguments)[0]
    until = time.monotonic() + RELEASE_SECONDS
    while given.port and not is_free(given.port, given.host):
        if time.monotonic() >= until:
            print(
                f"error: {what} cannot listen on port {given.port}: another process of this machine uses it; stop "
                f"that process, or start with a free port: start.sh --port {find_port(first=given.port + 1)}",
                file=sys.stderr,
            )
            raise SystemExit(MISTAKE)
        time.sleep(0.2)
