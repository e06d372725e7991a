"""All methods and controls on six data sets under equal conditions: the yardstick for work on accuracy.

    python benchmarks/methods/bench.py --data DIR [--work DIR] [--jobs 2] [--only PARTITION ...] [--quick]

DIR holds the public data sets, each a folder with a train.parquet (columns text, label; QNLI and MRPC also
text_pair, CLINC150 also domain). First the learning rates: every method has the same grid, on SST-2 for sentences
and on BANKING77 for intents, on validation data of a seed that no reported run uses. Then one comparison for each
partition. Runs are kept under --work and go on where they were broken off; what is finished goes into
results/comparison.json, rates and partitions alike, and is taken from there the next time, so remove from it what
is to be measured anew. `trifed report benchmarks/methods/results` makes the page.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from rich.console import Console

from trifed.common.dict_merge import deep_merge
from trifed.experiments.compare import compare
from trifed.experiments.compare_config import make_comparison
from trifed.reports.comparison.report import render_comparison
from trifed.reports.progress_bar import CompareWatch

Json = dict[str, Any]

HERE = Path(__file__).parent
METHODS = [
    "local", "ce-lora", "fedavg-tri", "fedavg-lora", "ffa-lora", "fedsa-lora", "fed-xs", "fed-sb", "fedprox-lora",
    "pfedme-lora", "fedavg-full",
]  # fmt: skip
SHARED_PROJECTIONS = {method: {"adapter": {"rank": 32}} for method in ("fed-xs", "fed-sb")}
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
    "training": {"batch_size": 8, "eval_batch_size": 16},
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
TUNING_SEED = 100
TUNING: Json = {"learning_rates": [1e-3, 3e-3, 1e-2], "seed": TUNING_SEED, "extend": 2}
TUNING_ROUNDS = {"sst2-dirichlet-0.5": 4, "banking77-dirichlet-0.5": 7}
"""Sentiment settles at once, 77 intents do not."""

SEEDS = [0, 1]
QUICK = ["sst2-dirichlet-0.5", "banking77-dirichlet-0.5"]


def tuned_on(partition: str) -> str:
    """The partition on which a partition's learning rates are chosen."""
    return TUNED_ON["intents" if partition.startswith(("banking77", "clinc150")) else "sentences"]


def settings(data: Path | str, partition: str) -> Json:
    """[run] of one partition's comparison."""
    name = partition.split("-")[0]
    source: Json = {"source": f"{data}/{FOLDERS[name]}/train.parquet"}
    if name in PAIRS:
        source["text_pair"] = "text_pair"
    conditions = deep_merge(RUN, PAIR_RUN) if name in PAIRS else RUN
    return deep_merge(conditions, {"data": {**source, "clients": PARTITIONS[partition]}})


def carry_out(values: Json, work: Path, jobs: int) -> Json:
    console = Console()
    with CompareWatch(console) as watch:
        result = compare(make_comparison(values), work / values["name"], jobs=jobs, listener=watch)
    console.print(render_comparison(result.data))
    return result.data


def known(path: Path) -> Json:
    """What was measured so far, in the form of a comparison that a report can be made of."""
    if path.is_file():
        found: Json = json.loads(path.read_text())
        return found
    return {"name": "methods", "methods": METHODS, "partitions": list(PARTITIONS), "seeds": SEEDS} | {
        key: {} for key in ("configuration", "environment", "tuning", "results")
    }


def keep(path: Path, state: Json) -> None:
    """Write it, with what is missing."""
    waiting = [p for p in PARTITIONS if p not in state["results"]]
    state["finished"] = not waiting
    state["missing"] = [
        {"partition": p, "method": m, "seed": s, "state": "not started"}
        for p in waiting
        for m in METHODS
        for s in SEEDS
    ]
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(state, indent=1) + "\n")


def measure(
    state: Json,
    partition: str,
    data: Path,
    work: Path,
    jobs: int,
    *,
    quick: bool = False,
    methods: Sequence[str] = METHODS,
    own: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """The methods on one partition, each with its own rate; where the rates are chosen, they are chosen first.

    `own`: settings laid over those of every method.
    """
    shared_projections = {method: deep_merge(SHARED_PROJECTIONS.get(method, {}), own) for method in methods}
    values: Json = {
        "name": f"quick-{partition}" if quick else partition,
        "methods": list(methods),
        "seeds": SEEDS[:1] if quick else SEEDS,
        "references": [name for name in ("local", "fedavg-lora") if name in methods],
        "run": settings(data, partition) | ({"rounds": 4} if quick else {}),
        "method_settings": shared_projections,
    }
    if tuned_on(partition) in state["tuning"]:
        tuned = state["tuning"][tuned_on(partition)]["methods"]
        rates = {method: {"training": {"learning_rate": tuned[method]["chosen"]}} for method in methods}
        values["method_settings"] = deep_merge(rates, shared_projections)
    elif tuned_on(partition) == partition:
        values["tuning"] = {**TUNING, "rounds": TUNING_ROUNDS[partition]}
    else:
        raise SystemExit(f"{partition} takes its learning rates from {tuned_on(partition)}: that one first")
    found = carry_out(values, work, jobs)
    if found["tuning"]:
        state["tuning"][partition] = found["tuning"]["all"]
    state["results"][partition] = {**found["results"]["all"], "tuned_on": tuned_on(partition)}
    state["configuration"][partition] = {**values, "run": settings("DIR", partition)}
    state["environment"][partition] = found["environment"]


def arguments(doc: str | None, work: str) -> argparse.ArgumentParser:
    """What all scripts of this folder that run something are told: where the data is, where runs go, how many."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--work", type=Path, default=Path(work))
    parser.add_argument("--jobs", type=int, default=2)
    return parser


def main() -> None:
    parser = arguments(__doc__, "runs/methods")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "comparison.json")
    parser.add_argument("--only", nargs="+", choices=list(PARTITIONS), default=list(PARTITIONS))
    parser.add_argument("--quick", action="store_true", help="two partitions, one seed, 4 rounds: no result")
    given = parser.parse_args()
    if not given.data.is_dir():
        parser.error(f"--data {given.data}: no such folder; it holds {', '.join(FOLDERS.values())}")
    state = known(given.out)
    for partition in QUICK if given.quick else given.only:
        if given.quick:
            measure(state, partition, given.data, given.work, given.jobs, quick=True)
        elif partition not in state["results"]:
            measure(state, partition, given.data, given.work, given.jobs)
            keep(given.out, state)


if __name__ == "__main__":
    main()
