"""What a round between sites weighs on the wire, as Flower sends it: payload and everything around it.

    python benchmarks/flower/wire.py [--rounds 8] [--bits 32 8 1] [--ways flower folders] [--seconds 0 54]
                                     [--out wire.json]

A real SuperLink and three SuperNodes on this machine with TLS and keys, as `trifed flower` writes them; between
each node and the server stands a relay that counts bytes in both directions. `ce-lora` sends 1,536 numbers: six
cores of 16 × 16, of MiniLM's queries. Counted are whole rounds after the first, with the requests by which nodes
look for messages while they wait. `--seconds`: how long the slowest site seems to train; it sleeps so long, the
second half as long, the third not at all. `--ways`: `flower`, its own commands and the keys that it makes;
`folders`, as `trifed flower` writes them; `http2`, the same with HTTP/2 at both ends, which needs
`pip install h2 hypercorn`. Needs `pip install '.[demo,flower]'`.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import socket
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from cryptography.hazmat.primitives.asymmetric import ec
from loopback import corpus, deployment, environment

from trifed.deployment import certificates
from trifed.federation.run_folder import RunFolder

HERE = Path(__file__).parent
SITES = ["amber", "basil", "coral"]
COUNTED = ("up", "down", "connections")
WAYS, CURVE = ("flower", "folders", "http2"), certificates.CURVE
SLOW = """import os, time
from trifed.deployment.flower import run_installed_app
from trifed.deployment.worker import ask_worker

def answer(path, request):
    if request.kind == "train":
        time.sleep({1} * (1, 0.5, 0)[{0}.index(path.parent.name)])
    return ask_worker(path, request)

run_installed_app(answer)
"""
"""A site's ClientApp that sleeps before it trains."""
PLAIN = """import os, sys
for name in ("PULLS", "PUSHES"):
    os.environ.pop(f"FLWR_PRIVATE_MAX_CONCURRENT_OBJ_{{name}}", None)
from flwr.{0}.cli import flower_{0}
sys.argv[0] = "flower-{0}"
flower_{0}()
"""
OURS = "from trifed.deployment.flower_connection import {0}\n{0}()\n"
HTTP2_NODE = """from trifed.deployment import flower_connection
class Client(flower_connection.KeptClient):
    def __init__(self, **settings):
        super().__init__(http2=True, **settings)
flower_connection.KeptClient = Client
flower_connection.supernode()
"""
HTTP2_LINK = """import asyncio
import uvicorn
from flwr.superlink.cli import flower_superlink
from hypercorn.asyncio import serve
from hypercorn.config import Config

def run(app, host, port, ssl_keyfile, ssl_certfile, **_):
    config = Config()
    config.bind, config.keyfile, config.certfile = [f"{host}:{port}"], ssl_keyfile, ssl_certfile
    config.keep_alive_timeout = 120
    asyncio.run(serve(app, config))

uvicorn.run = run
flower_superlink()
"""
"""Both ends speak HTTP/2, which compresses headers. No part of trifed: it shows what Flower could have."""
Json = dict[str, Any]


class Relay:
    """A port that passes everything on. `up`, `down`: bytes from and to whoever connects."""

    def __init__(self, target: int) -> None:
        self.target, self.up, self.down, self.connections = target, 0, 0, 0
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.port = self.listening.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            near, _ = self.listening.accept()
            self.connections += 1
            far = socket.create_connection(("127.0.0.1", self.target))
            threading.Thread(target=self._pass, args=(near, far, "up"), daemon=True).start()
            threading.Thread(target=self._pass, args=(far, near, "down"), daemon=True).start()

    def _pass(self, one: socket.socket, other: socket.socket, way: str) -> None:
        with contextlib.suppress(OSError):
            while data := one.recv(65536):
                setattr(self, way, getattr(self, way) + len(data))
                other.sendall(data)
        for end in (one, other):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


def settings(rows: list[Json], bits: int, rounds: int) -> Json:
    return {
        "name": "wire",
        "rounds": rounds,
        "method": "ce-lora",
        "model": {"name": "demo", "max_length": 32},
        "adapter": {"rank": 16, "target_modules": ["query"]},
        "data": {"source": "none", "labels": sorted({row["label"] for row in rows})},
        "wire": {"bits": bits},
        "training": {"steps": 2, "batch_size": 8, "device": "cpu"},
        "deployment": {"clients": len(SITES), "join_seconds": 120, "round_seconds": 120, "quorum": len(SITES)},
    }


def commands(way: str, seconds: float) -> dict[str, str]:
    """Commands in the place of installed ones: a site that trains for a while, and both ends of the wire."""
    ends = {
        "flower": (PLAIN.format("supernode"), PLAIN.format("superlink")),
        "folders": (OURS.format("supernode"), OURS.format("superlink")),
        "http2": (HTTP2_NODE, HTTP2_LINK),
    }[way]
    return dict(zip(("trifed-supernode", "trifed-superlink"), ends, strict=True)) | {
        "trifed-clientapp": SLOW.format(SITES, seconds)
    }


def measure(folder: Path, bits: int, rounds: int, way: str, seconds: float) -> Json:
    """One run; bytes by round and site."""
    relays: list[Relay] = []

    def through(port: int) -> int:
        relays.append(Relay(port))
        return relays[-1].port

    certificates.CURVE = ec.SECP384R1() if way == "flower" else CURVE  # Flower's own choice for keys
    values, placed = settings(corpus(), bits, rounds), commands(way, seconds)
    with deployment(folder, values, SITES, through, commands=placed) as run:
        return _follow(RunFolder(run), relays, rounds)


def _follow(run: RunFolder, relays: list[Relay], rounds: int) -> Json:
    """Read the counters whenever a round is over."""
    marks: list[list[dict[str, int]]] = []
    while len(marks) < rounds:
        done = [e for e in run.events() if e["event"] == "round"]
        if len(done) > len(marks):
            marks.append([{name: getattr(relay, name) for name in COUNTED} for relay in relays])
        time.sleep(0.05)
    events = run.events()
    trained = [e for e in events if e["event"] == "trained" and e["round"] == rounds]
    found: Json = {
        "seconds_a_round": statistics.median(e["seconds"] for e in events if e["event"] == "round"),
        "payload_up": statistics.mean(sum(e["up"].values()) for e in trained),
        "payload_down": statistics.mean(sum(e["down"].values()) for e in trained),
    }
    for name in COUNTED:
        each = [
            [after[site][name] - before[site][name] for before, after in itertools.pairwise(marks)]
            for site in range(len(SITES))
        ]
        every = list(itertools.chain(*each))
        found[f"{name}_a_round"] = statistics.median(every)
        found[f"{name}_least"], found[f"{name}_most"] = min(every), max(every)
        found[f"{name}_by_site"] = dict(zip(SITES, map(statistics.mean, each), strict=True))
    for way in ("up", "down"):
        found[f"{way}_around_the_payload"] = found[f"{way}_a_round"] - found[f"payload_{way}"]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--bits", type=int, nargs="+", default=[32, 8, 1])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS[:2])
    parser.add_argument("--seconds", type=float, nargs="+", default=[0.0])
    parser.add_argument("--out", type=Path, default=HERE / "wire.json")
    given = parser.parse_args()
    result: Json = {
        "numbers": 6 * 16 * 16,
        "sites": len(SITES),
        "rounds": given.rounds,
        "environment": environment(),
        "runs": [],
    }
    for bits, seconds, way in itertools.product(given.bits, given.seconds, given.ways):
        with tempfile.TemporaryDirectory() as folder:
            found = measure(Path(folder), bits, given.rounds, way, seconds)
        result["runs"].append({"bits": bits, "slowest_trains": seconds, "way": way, **found})
        given.out.write_text(json.dumps(result, indent=1) + "\n")
        print(bits, seconds, way, json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
