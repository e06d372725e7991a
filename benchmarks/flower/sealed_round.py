"""Seconds and bytes of a round between three sites, sealed and open: what the second exchange costs.

    python benchmarks/flower/sealed_round.py [--rounds 10] [--out sealed_round.json]

A real SuperLink and three SuperNodes on this machine, with MiniLM, the default method and two training steps a
round; once in an open run and once in a sealed one. A sealed run reports no seconds of training, so whole rounds
are compared. The first round, in which the model is loaded, is left out. Take no timing beside another job.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from loopback import corpus, deployment, environment

from trifed.federation.run_folder import RunFolder

HERE = Path(__file__).parent
SITES = ["amber", "basil", "coral"]
Json = dict[str, Any]


def settings(sealed: bool, rounds: int) -> Json:
    return {
        "name": "sealed" if sealed else "open",
        "rounds": rounds,
        "model": {"name": "demo", "max_length": 32},
        "data": {"source": "none", "labels": sorted({row["label"] for row in corpus()})},
        "training": {"steps": 2, "batch_size": 16, "device": "cpu", "precision": "fp32"},
        "deployment": {"clients": len(SITES), "join_seconds": 300, "round_seconds": 300, "quorum": len(SITES)},
        "sealing": {"on": sealed},
    }


def measure(sealed: bool, rounds: int) -> Json:
    """Make a run; return the seconds and the bytes of its rounds after the first."""
    made = settings(sealed, rounds)
    with tempfile.TemporaryDirectory() as name, deployment(Path(name), made, SITES) as path:
        events: list[Json] = []
        while not any(event["event"] == "finished" for event in events):
            time.sleep(0.5)
            events = RunFolder(path).events() if (path / "events.jsonl").is_file() else []
    seconds = [event["seconds"] for event in events if event["event"] == "round"][1:]
    trained = [event for event in events if event["event"] == "trained" and event["round"] > 1]
    up, down = ([sum(event[way].values()) for event in trained if event.get(way)] for way in ("up", "down"))
    return {
        "seconds": {"median": statistics.median(seconds), "all": seconds},
        "rounds_with_a_sum": sum(event["event"] == "sum" and event["round"] > 0 for event in events),
        "bytes_of_one_site": {"up": statistics.median(up), "down": statistics.median(down)},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--out", type=Path, default=HERE / "sealed_round.json")
    given = parser.parse_args()
    result: Json = {"rounds": given.rounds, "sites": len(SITES), "environment": environment()}
    for name, sealed in (("open", False), ("sealed", True)):
        result[name] = measure(sealed, given.rounds)
        print(name, json.dumps(result[name]), flush=True)
    given.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
