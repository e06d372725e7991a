"""All methods and controls on six data sets under equal conditions: the yardstick for work on accuracy.

    python benchmarks/methods/bench.py --data DIR [--work DIR] [--jobs 2] [--only PARTITION ...] [--quick]

DIR holds the public data sets, each a folder with a train.parquet (columns text, label; QNLI and MRPC also
text_pair, CLINC150 also domain). First the learning rates: every method has the same grid, on SST-2 for sentences
and on BANKING77 for intents, on validation data of a seed that no reported run uses; what was found is kept in
rates.json and taken from there. Then one comparison for each partition, written to results/PARTITION.json when it
is done. Everything is kept under --work and goes on where it was broken off.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from rich.console import Console

from trifed.comparison.compare import compare
from trifed.comparison.config import layer, make_comparison
from trifed.reports.comparison import CompareWatch, render_comparison

HERE = Path(__file__).parent
METHODS = [
    "local", "ce-lora", "fedavg-tri", "fedavg-lora", "ffa-lora", "fedsa-lora", "fed-xs", "fed-sb", "fedprox-lora",
    "pfedme-lora", "fedavg-full",
]  # fmt: skip
FRAMES = {method: {"adapter": {"rank": 32}} for method in ("fed-xs", "fed-sb")}
"""Between frozen frames rank 8 has 64 numbers a layer to train; their authors use 24 and more."""

RUN: dict[str, Any] = {
    "rounds": 16,
    "evaluate_every": 4,
    "model": {"name": "demo", "max_length": 64},
    "data": {
        "valid_fraction": 0.1,
        "test_fraction": 0.6,
        "allow_single_class": True,
        "clients": {"min_examples": 40, "max_examples": 160},
    },
    "training": {"batch_size": 8},
}
"""Per client at most 48 examples to train on, 16 to validate and 96 to test: 96 optimiser steps."""

PAIR_RUN: dict[str, Any] = {
    "data": {"valid_fraction": 0.1, "test_fraction": 0.4, "clients": {"max_examples": 240}},
    "training": {"steps": 6},
}
"""Two texts and how they relate are hard to learn from 48 examples: 120 a client here, in as many steps."""

PARTITIONS: dict[str, dict[str, Any]] = {
    "sst2-dirichlet-0.5": {"split": "dirichlet", "alpha": 0.5},
    "banking77-dirichlet-0.5": {"split": "dirichlet", "alpha": 0.5},
    "clinc150-domain": {"split": "column", "column": "domain"},
    "qnli-dirichlet-1.0": {"split": "dirichlet", "alpha": 1.0},
    "mrpc-dirichlet-1.0": {"split": "dirichlet", "alpha": 1.0},
    "agnews-pathological-2": {"split": "pathological", "labels_per_client": 2},
}
FOLDERS = {
    "sst2": "glue_sst2",
    "banking77": "banking77",
    "clinc150": "clinc150",
    "qnli": "glue_qnli",
    "mrpc": "glue_mrpc",
    "agnews": "ag_news",
}
PAIRS = ("qnli", "mrpc")
TUNED_ON = {"sentences": "sst2-dirichlet-0.5", "intents": "banking77-dirichlet-0.5"}
TUNING = {"learning_rates": [1e-3, 3e-3, 1e-2], "seed": 100, "extend": 2}
TUNING_ROUNDS = {"sentences": 4, "intents": 7}
"""Sentiment settles at once, 77 intents do not."""

Rates = dict[str, dict[str, Any]]
"""Family → `partition`, and by method the grid and the choice."""


def family_of(partition: str) -> str:
    return "intents" if partition.startswith(("banking77", "clinc150")) else "sentences"


def settings(data: Path, partition: str) -> dict[str, Any]:
    """[run] of one partition's comparison."""
    name = partition.split("-")[0]
    source: dict[str, Any] = {"source": str(data / FOLDERS[name] / "train.parquet")}
    if name in PAIRS:
        source["text_pair"] = "text_pair"
    conditions = layer(RUN, PAIR_RUN) if name in PAIRS else RUN
    return layer(conditions, {"data": {**source, "clients": PARTITIONS[partition]}})


def carry_out(values: dict[str, Any], work: Path, jobs: int) -> dict[str, Any]:
    console = Console()
    with CompareWatch(console) as watch:
        result = compare(make_comparison(values), work / values["name"], jobs=jobs, listener=watch)
    console.print(render_comparison(result))
    return result.data


def tune(data: Path, work: Path, jobs: int) -> Rates:
    """The rates in rates.json; a family that is not there is tuned now."""
    path = HERE / "rates.json"
    known: Rates = json.loads(path.read_text()) if path.is_file() else {}
    for family, partition in TUNED_ON.items():
        if family in known and set(METHODS) <= set(known[family]["methods"]):
            continue
        # The one reported run that a comparison needs is thrown away: only its tuning counts here.
        values = {
            "name": f"tune-{family}",
            "methods": METHODS,
            "seeds": [TUNING["seed"] + 1],
            "run": {**settings(data, partition), "rounds": 1},
            "method_settings": FRAMES,
            "tuning": {**TUNING, "rounds": TUNING_ROUNDS[family]},
        }
        found = carry_out(values, work, jobs)["tuning"]["all"]
        known[family] = {"partition": partition, **found}
        path.write_text(json.dumps(known, indent=1) + "\n")
    return known


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--work", type=Path, default=Path("runs/methods"))
    parser.add_argument("--out", type=Path, default=HERE / "results")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only", nargs="+", choices=list(PARTITIONS), default=list(PARTITIONS))
    parser.add_argument("--quick", action="store_true", help="two partitions, one seed, 4 rounds: no result")
    given = parser.parse_args()
    if not given.data.is_dir():
        parser.error(f"--data {given.data}: no such folder; it holds {', '.join(FOLDERS.values())}")
    rates = tune(given.data, given.work, given.jobs)
    partitions = ["sst2-dirichlet-0.5", "banking77-dirichlet-0.5"] if given.quick else given.only
    for partition in partitions:
        chosen = rates[family_of(partition)]["methods"]
        own = {m: {"training": {"learning_rate": chosen[m]["chosen"]}} for m in METHODS}
        run = settings(given.data, partition)
        values = {
            "name": f"quick-{partition}" if given.quick else partition,
            "methods": METHODS,
            "seeds": [0] if given.quick else [0, 1],
            "references": ["local", "fedavg-lora"],
            "run": {**run, "rounds": 4} if given.quick else run,
            "method_settings": layer(own, FRAMES),
        }
        found = carry_out(values, given.work, given.jobs)
        if not given.quick:
            given.out.mkdir(exist_ok=True)
            found["configuration"]["run"]["data"]["source"] = (
                f"DIR/{FOLDERS[partition.split('-')[0]]}/train.parquet"
            )
            (given.out / f"{partition}.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
