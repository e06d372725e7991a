"""Bytes of a client's messages in a sealed run with ten clients and 12 labels, at ranks 16 and 32.

    python benchmarks/privacy/sealed_bytes.py --data DIR [--ranks N ...] [--out sealed_bytes.json]

DIR holds the data sets; the 12 most frequent intents of BANKING77 are used. A round has two training steps, since
bytes do not depend on what was learned. A round's bytes are those of both exchanges with all headers, keys and
signatures; *opening* is what is sent once, before the first round. The first round, which has no step sizes yet,
is kept apart.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import pandas as pd

from trifed import make_config
from trifed.experiments.runner import run
from trifed.federation.run_folder import RunFolder

sys.path.insert(0, str(Path(__file__).parents[1] / "evidence"))
from records import environment

HERE = Path(__file__).resolve().parent
CLIENTS, LABELS, ROUNDS = 10, 12, 4
Json = dict[str, Any]


def settings(rank: int, table: Path | str) -> Json:
    """Return the nested settings of a run."""
    return {
        "name": "bytes", "method": "own-prior", "rounds": ROUNDS, "evaluate_every": ROUNDS, "controls": False,
        "baselines": [], "adapter": {"rank": rank}, "model": {"name": "demo", "max_length": 32},
        "data": {"source": str(table), "clients": {"split": "iid", "count": CLIENTS, "max_examples": 60}},
        "training": {"steps": 2, "batch_size": 8, "precision": "fp32", "device": "cpu"},
        "sealing": {"on": True},
    }  # fmt: skip


def measure(rank: int, table: Path) -> Json:
    """Make a run; return the bytes of a client up and down, in rounds after the first and before them."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "run"
        run(make_config(settings(rank, table)), folder)
        events = RunFolder(folder).events()
    sent = [event for event in events if event["event"] == "trained" and event["up"]]
    of_round = {way: [sum(e[way].values()) for e in sent if e["round"] > 1] for way in ("up", "down")}
    first = {way: [sum(e[way].values()) for e in sent if e["round"] == 1] for way in ("up", "down")}
    once = {
        way: sum(sum(e[way].values()) for e in events if e["event"] in ("summary", "opening") and e.get(way))
        / CLIENTS
        for way in ("up", "down")
    }
    return {
        "round": {way: statistics.median(each) for way, each in of_round.items()},
        "first_round": {way: statistics.median(each) for way, each in first.items()},
        "opening": once,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--ranks", type=int, nargs="+", default=[16, 32])
    parser.add_argument("--out", type=Path, default=HERE / "sealed_bytes.json")
    given = parser.parse_args()
    source = given.data / "banking77" / "train.parquet"
    if not source.is_file():
        parser.error(f"--data: {source} does not exist; give the folder that holds banking77/train.parquet")
    rows = pd.read_parquet(source)
    rows = rows[rows["label"].isin(rows["label"].value_counts().index[:LABELS])]
    with tempfile.TemporaryDirectory() as scratch:
        table = Path(scratch) / "intents.parquet"
        rows.to_parquet(table)
        found = {str(rank): measure(rank, table) for rank in given.ranks}
    for rank, each in found.items():
        print(
            f"rank {rank}: up {each['round']['up']:.0f}, down {each['round']['down']:.0f} bytes a round and client"
        )
    shown = {rank: settings(int(rank), "12 intents of DIR/banking77/train.parquet") for rank in found}
    facts = {"bytes_of_a_client": found, "settings": shown, "environment": environment()}
    given.out.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
