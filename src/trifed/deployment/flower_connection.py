"""Flower's SuperLink and SuperNode with fewer bytes between them: `trifed-superlink` and `trifed-supernode`.

Both run Flower's own command after they have changed defaults of the libraries under it, because Flower 1.42 has
no settings for them. Where another version of Flower sets these values itself or does not use them, a run works as
before and sends more bytes.
"""

from __future__ import annotations

import sys
import time
from functools import partial
from types import SimpleNamespace
from typing import Any

from trifed.common.imports import quick_imports
from trifed.deployment.ports import refuse_taken_port

with quick_imports():
    import httpx
    import uvicorn
    from flwr.superlink.cli import flower_superlink
    from flwr.supernode import start_client_internal
    from flwr.supernode.cli import flower_supernode

KEEP = 120
"""Seconds for which a connection stays open without a request. Flower's heartbeats come every 20 s or so."""
LEFT_OUT = ("user-agent", "accept-encoding", "connection")
"""Headers of httpx that Flower's server does not use."""
LOOK, LONGEST, SHARE = 3, 10, 1 / 3
"""Flower's node looks for messages every `LOOK` seconds. Here it waits a `SHARE` of the time since its last
message, between `LOOK` and `LONGEST` seconds."""


def superlink() -> None:
    """Run Flower's SuperLink; its web server, uvicorn, keeps the sites' connections open for `KEEP` seconds.

    Raises:
        SystemExit: Another process uses the port.
    """
    refuse_taken_port(sys.argv[1:], "the SuperLink")
    uvicorn.run = partial(uvicorn.run, timeout_keep_alive=KEEP)
    flower_superlink()


def supernode() -> None:
    """Run Flower's SuperNode with a kept connection, shorter headers, and fewer looks for messages.

    Raises:
        SystemExit: Another process uses the port.
    """
    refuse_taken_port(sys.argv[1:], "this site's node")
    httpx.Client = KeptClient  # type: ignore[misc]
    if hasattr(start_client_internal, "time"):
        start_client_internal.time = SimpleNamespace(sleep=Waiting().sleep)
    flower_supernode()


class KeptClient(httpx.Client):
    """An httpx client that keeps idle connections for `KEEP` seconds (httpx: 5) and leaves out headers."""

    def __init__(self, **settings: Any) -> None:
        defaults: dict[str, Any] = {
            "limits": httpx.Limits(keepalive_expiry=KEEP),
            "event_hooks": {"request": [_shorten]},
        }
        super().__init__(**defaults | settings)


def _shorten(request: httpx.Request) -> None:
    """Remove the headers that the server does not use."""
    for name in LEFT_OUT:
        request.headers.pop(name, None)


class Waiting:
    """Sleep for Flower's node: the longer it has waited for a message, the later it looks again.

    A site that has waited `t` seconds for the others begins the next round at most `t / 3` seconds after
    them, or `LOOK` seconds as in Flower.
    """

    def __init__(self) -> None:
        self.waited = 0.0

    def sleep(self, seconds: float) -> None:
        """Sleep longer than `LOOK` seconds after a long wait, and as asked while a message is worked on."""
        if seconds == LOOK:
            seconds = min(max(LOOK, self.waited * SHARE), LONGEST)
            self.waited += seconds
        else:
            self.waited = 0.0
        time.sleep(seconds)
