"""What a user may expect of each kind of model: one comparison a family, under equal conditions.

    python benchmarks/models/families.py --data DIR --models DIR [--work DIR] [--jobs 2] [--only PARTITION ...]

--data holds the public data sets, --models the folders `stories260K` (`llama2c.py` makes it), `vit` and `towers`
(`small_vision.py`). Learning rates are chosen for each method on validation data of a seed that no reported run
uses. Runs are kept under --work and go on where they were broken off; what is finished goes into
results/families.json and is taken from there the next time. `tables.py` prints it.

Of language models the accuracy is that of the next token, which is coarse: beside it stand bits per byte, what a
client's test text costs per byte of UTF-8, whatever the tokenizer.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console

from trifed.common.dict_merge import deep_merge
from trifed.config.run import make_config
from trifed.data import make_clients
from trifed.experiments.compare import compare
from trifed.experiments.compare_config import make_comparison
from trifed.experiments.comparison_summary import interval
from trifed.reports.comparison.report import render_comparison
from trifed.reports.progress_bar import CompareWatch
from trifed.tasks import TASKS

Json = dict[str, Any]
Table = Callable[[Path], pd.DataFrame]

HERE = Path(__file__).parent
OUT = HERE / "results" / "families.json"
METHODS = ["local", "fedavg-lora", "fedsa-lora", "ce-lora", "own-prior"]
SEEDS = [0, 1]
SPEAKERS = 8
A_TASK, EACH = 2, 120
"""Clients a task of questions, and their rows."""
CLASSES = (
    ("airplane", "automobile", "ship", "truck"), ("cat", "deer", "horse"), ("bird", "dog", "frog"),
)  # fmt: skip
"""The three tasks that CIFAR-10 is divided into in the literature of federated LoRA."""
A_GROUP = 3


def speakers(data: Path) -> pd.DataFrame:
    """The speakers of Shakespeare with most to say, a client each."""
    rows = pd.read_parquet(data / "shakespeare" / "train.parquet").rename(columns={"speaker": "client"})
    most = rows["text"].str.len().groupby(rows["client"]).sum().nlargest(SPEAKERS).index
    return rows[rows["client"].isin(most)]


def questions(data: Path) -> pd.DataFrame:
    """Questions of four kinds, two clients a kind."""
    rows = pd.read_parquet(data / "instruct_reasoning" / "train.parquet")
    drawn = rows.groupby("task").sample(A_TASK * EACH, random_state=0)
    place = drawn.groupby("task").cumcount() // EACH + 1
    return drawn.assign(client=drawn["task"] + "-" + place.astype(str))


def pictures(data: Path) -> pd.DataFrame:
    """CIFAR-10: of each image a client among those of its group of classes, and a caption that names its class."""
    rows = pd.read_parquet(data / "cifar10" / "train.parquet")
    group = {name: place for place, names in enumerate(CLASSES) for name in names}
    number = np.random.default_rng(0).integers(A_GROUP, size=len(rows)) + 1
    return rows.assign(
        client=[f"group-{group[label] + 1}-{n}" for label, n in zip(rows["label"], number, strict=True)],
        caption=[f"a photo of a {label}." for label in rows["label"]],
    )


@dataclass(frozen=True)
class Partition:
    """`tuned_on`: the partition whose learning rates it takes; itself where that is empty."""

    table: Table
    settings: Json
    tuned_on: str = ""


LANGUAGE: Json = {
    "task": "causal-lm",
    "rounds": 12,
    "evaluate_every": 3,
    "data": {"valid_fraction": 0.1, "test_fraction": 0.3, "clients": {"split": "column", "column": "client"}},
    "training": {"batch_size": 8, "steps": 6, "precision": "fp32"},
}
IMAGES: Json = {
    "rounds": 12,
    "evaluate_every": 3,
    "data": {"valid_fraction": 0.125, "test_fraction": 0.5, "allow_single_class": True},
    "training": {"batch_size": 16, "steps": 8, "precision": "fp32"},
}
DIRICHLET: Json = {
    "data": {"clients": {"split": "dirichlet", "alpha": 0.5, "min_examples": 40, "max_examples": 192}}
}
GROUPS: Json = {"data": {"clients": {"split": "column", "column": "client", "max_examples": 192}}}
VIT: Json = deep_merge(IMAGES, {"task": "image-classification", "model": {"name": "vit"}})
TOWERS: Json = deep_merge(
    IMAGES, {"task": "image-text", "model": {"name": "towers"}, "adapter": {"towers": "vision"}}
)

PARTITIONS = {
    "shakespeare": Partition(
        speakers, deep_merge(LANGUAGE, {"model": {"name": "stories260K", "max_length": 128}})
    ),
    "questions": Partition(
        questions,
        deep_merge(
            LANGUAGE,
            {
                "model": {"name": "stories260K", "max_length": 256},
                "data": {"prompt": "instruction", "answer": "output", "test_fraction": 0.4},
            },
        ),
    ),
    "vit-groups": Partition(pictures, deep_merge(VIT, GROUPS)),
    "vit-dirichlet-0.5": Partition(pictures, deep_merge(VIT, DIRICHLET), "vit-groups"),
    "towers-groups": Partition(pictures, deep_merge(TOWERS, GROUPS)),
    "captions-groups": Partition(
        pictures, deep_merge(deep_merge(TOWERS, GROUPS), {"task": "image-text-pairs", "data": {"text": "caption"}})
    ),
    "towers-dirichlet-0.5": Partition(pictures, deep_merge(TOWERS, DIRICHLET), "towers-groups"),
}
TUNING: Json = {"learning_rates": [3e-3, 1e-2], "seed": 100, "rounds": 4, "extend": 1}


def settings(name: str, source: str, models: str) -> Json:
    """[run] of a partition's comparison."""
    own = PARTITIONS[name].settings
    return deep_merge(own, {"data": {"source": source}, "model": {"name": f"{models}/{own['model']['name']}"}})


def bits_per_byte(root: Path, values: Json) -> Json | None:
    """By method, mean, worst and best client, interval, and the gap to `local` in pairs of clients; of texts."""
    if values["run"]["task"] != "causal-lm":
        return None
    by_method = {
        method: [_bits(root / "runs" / "all" / method / f"seed-{seed}", values, seed) for seed in values["seeds"]]
        for method in values["methods"]
    }
    local = [np.array([bits]) for seed in by_method["local"] for bits in seed["now"]]
    found: Json = {}
    for method, seeds in by_method.items():
        mine = [np.array([bits]) for seed in seeds for bits in seed["now"]]
        found[method] = {
            "mean": float(np.mean(mine)),
            "interval": interval(mine),
            "worst": float(np.mean([max(seed["now"]) for seed in seeds])),
            "best": float(np.mean([min(seed["now"]) for seed in seeds])),
            "less local": {"mean": float(np.mean(mine) - np.mean(local)), "interval": interval(mine, local)},
            "before": float(np.mean([seed["before"] for seed in seeds])),
        }
    return found


def _bits(folder: Path, values: Json, seed: int) -> dict[str, list[float]]:
    """Of a run's clients, before the first round and after the last."""
    config = make_config({**values["run"], "seed": seed, "method": {"name": "local"}})
    task = TASKS[config.task]
    base = task.load(config.model.name, config.model.dtype)
    clients = make_clients(config.data, config.seed, task.roles).clients
    summary = json.loads((folder / "summary.json").read_text())["clients"]
    found: dict[str, list[float]] = {"before": [], "now": []}
    for client, facts in zip(clients, summary, strict=True):
        encoded: Any = task.encode(base, client.test, config.model)
        tokens = sum(sum(learned[1:]) for learned in encoded.more["learned"])
        written = client.test.inputs["answer" if "answer" in client.test.inputs else "text"]
        size = sum(len(text.encode()) for text in written)
        for when, bits in found.items():
            bits.append(facts[when]["loss"] * tokens / size / math.log(2))
    return found


def measure(name: str, given: argparse.Namespace, kept: Json) -> Json:
    """One partition's comparison, and what is kept of it."""
    source = given.work / "data" / f"{PARTITIONS[name].table.__name__}.parquet"
    if not source.is_file():
        source.parent.mkdir(parents=True, exist_ok=True)
        PARTITIONS[name].table(given.data).to_parquet(source)
    values: Json = {
        "name": name,
        "methods": METHODS,
        "seeds": SEEDS,
        "references": ["local", "fedavg-lora"],
        "run": settings(name, str(source.resolve()), str(given.models.resolve())),
    }
    tuned_on = PARTITIONS[name].tuned_on
    if tuned_on:
        if tuned_on not in kept:
            raise SystemExit(f"{name} takes its learning rates from {tuned_on}: that one first")
        tried = kept[tuned_on]["tuning"]["methods"]
        values["method_settings"] = {
            method: {"training": {"learning_rate": tried[method]["chosen"]}} for method in METHODS
        }
    else:
        values["tuning"] = TUNING
    console = Console()
    with CompareWatch(console) as watch:
        made = compare(make_comparison(values), given.work / name, jobs=given.jobs, listener=watch).data
    console.print(render_comparison(made))
    return {
        "configuration": {
            **values,
            "run": settings(name, f"families.{PARTITIONS[name].table.__name__}(DIR)", "DIR"),
        },
        "environment": {**made["environment"], "base_model": PARTITIONS[name].settings["model"]["name"]},
        "tuning": (made["tuning"] or {}).get("all"),
        "results": made["results"]["all"],
        "bits_per_byte": bits_per_byte(given.work / name, values),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--models", type=Path, required=True, help="folder of the models")
    parser.add_argument("--work", type=Path, default=Path("runs/families"))
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only", nargs="+", choices=list(PARTITIONS), default=list(PARTITIONS))
    given = parser.parse_args()
    for name, folder in (("--data", given.data), ("--models", given.models)):
        if not folder.is_dir():
            parser.error(f"{name} {folder}: no such folder")
    kept: Json = json.loads(given.out.read_text()) if given.out.is_file() else {}
    for name in given.only:
        if name not in kept:
            kept[name] = measure(name, given, kept)
            given.out.parent.mkdir(exist_ok=True)
            given.out.write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main()
