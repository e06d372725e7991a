"""What a round between sites weighs on the wire, as Flower sends it: payload and everything around it.

    python benchmarks/flower/wire.py [--rounds 8] [--bits 32 8 1] [--out wire.json]

A real SuperLink and three SuperNodes on this machine with TLS and keys, as `trifed flower` writes them; between
each node and the server stands a relay that counts bytes in both directions. `ce-lora` sends 1,536 numbers: six
cores of 16 × 16, of MiniLM's queries. Counted are whole rounds after the first; nodes that look for messages while
they wait are in it, so longer rounds weigh a little more. Needs `pip install 'trifed[demo,flower]'`.
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
from loopback import corpus, deployment, environment

from trifed.federation.run_folder import RunFolder

HERE = Path(__file__).parent
SITES = ["amber", "basil", "coral"]
Json = dict[str, Any]


class Relay:
    """A port that passes everything on. `up`, `down`: bytes from and to whoever connects."""

    def __init__(self, target: int) -> None:
        self.target, self.up, self.down = target, 0, 0
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.port = self.listening.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            near, _ = self.listening.accept()
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


def measure(folder: Path, bits: int, rounds: int) -> Json:
    """One run; bytes by round and site."""
    relays: list[Relay] = []

    def through(port: int) -> int:
        relays.append(Relay(port))
        return relays[-1].port

    with deployment(folder, settings(corpus(), bits, rounds), SITES, through) as run:
        return _follow(RunFolder(run), relays, rounds)


def _follow(run: RunFolder, relays: list[Relay], rounds: int) -> Json:
    """Read the counters whenever a round is over."""
    marks: list[list[tuple[int, int]]] = []
    while len(marks) < rounds:
        done = [e for e in run.events() if e["event"] == "round"]
        if len(done) > len(marks):
            marks.append([(relay.up, relay.down) for relay in relays])
        time.sleep(0.05)
    events = run.events()
    trained = [e for e in events if e["event"] == "trained" and e["round"] == rounds]
    found: Json = {
        "seconds_a_round": statistics.median(e["seconds"] for e in events if e["event"] == "round"),
        "payload_up": statistics.mean(sum(e["up"].values()) for e in trained),
        "payload_down": statistics.mean(sum(e["down"].values()) for e in trained),
    }
    for place, way in enumerate(("up", "down")):
        each = [
            after[site][place] - before[site][place]
            for before, after in itertools.pairwise(marks)
            for site in range(len(SITES))
        ]
        found[f"{way}_a_round"] = statistics.median(each)
        found[f"{way}_least"], found[f"{way}_most"] = min(each), max(each)
        found[f"{way}_around_the_payload"] = found[f"{way}_a_round"] - found[f"payload_{way}"]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--bits", type=int, nargs="+", default=[32, 8, 1])
    parser.add_argument("--out", type=Path, default=HERE / "wire.json")
    given = parser.parse_args()
    result: Json = {
        "numbers": 6 * 16 * 16,
        "sites": len(SITES),
        "rounds": given.rounds,
        "environment": environment(),
        "bits": {},
    }
    for bits in given.bits:
        with tempfile.TemporaryDirectory() as folder:
            found = result["bits"][str(bits)] = measure(Path(folder), bits, given.rounds)
        given.out.write_text(json.dumps(result, indent=1) + "\n")
        print(bits, json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
