"""Who was trained on, by what an attacker sees: one upload, a sum of ten clients, or the sum less one's own part.

    python benchmarks/privacy/views.py --data DIR [--models DIR] [--sets SET ...] [--arms ARM ...] [--seeds N ...]
        [--sealed] [--hours H] [--list]
    python benchmarks/privacy/views.py --tables

DIR holds the public data sets, each a folder with a train.parquet; --models the folder `vit` for CIFAR-10
(benchmarks/models/small_vision.py makes it). Ten clients train three rounds at default work (one epoch, batches
of 16); then rounds 4 to 6 are attacked. For each client and view: the AUC of telling 64 of its training examples
from 64 of its held-out ones, by the cosine between an example's gradient and what is seen. *round* is round 4
alone, *mean* and *highest* use the scores of three rounds, *difference* is the change from round 4 to 5.

Without --sealed sums are means of what clients of an open run send; with it runs have `[sealing]`, so that the
attacked numbers are those of opened sums. Each measurement is a line in results/views/SET.jsonl, with versions and
hardware; those that are there are not made again. --tables prints means with 95 % intervals, for which seeds are
resampled, and clients within each seed.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from trifed import make_config
from trifed.attacks.plan import Plan
from trifed.common.dict_merge import deep_merge

sys.path.insert(0, str(Path(__file__).parents[1] / "evidence"))
from evidence import environment

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "views"
Json = dict[str, Any]
CLIENTS, EXAMPLES, AFTER, SEEDS = 10, 200, 3, (0, 1, 2)
PLAN = Plan(clients=CLIENTS, members=64, observed=3)
RUN: Json = {
    "name": "views", "rounds": 10, "controls": False, "baselines": [],
    "data": {
        "test_fraction": 0.4, "valid_fraction": 0.1, "allow_single_class": True,
        "clients": {
            "split": "dirichlet", "alpha": 0.5, "count": CLIENTS, "min_examples": 60, "max_examples": EXAMPLES,
        },
    },
    "training": {"precision": "fp32", "device": "cpu"},
    "privacy": {"few_tokens": "allow"},
}  # fmt: skip
TEXT: Json = {"model": {"name": "demo", "max_length": 64}}
SETS: dict[str, tuple[str, Json]] = {
    "banking77": ("banking77", TEXT),
    "sst2": ("glue_sst2", TEXT),
    "cifar10": ("cifar10", {"task": "image-classification"}),
}
"""Folder under --data, and settings."""
ARMS: dict[str, Json] = {
    "own-prior": {"method": "own-prior"},
    "own-prior, rank 16": {"method": "own-prior", "adapter": {"rank": 16}},
    "own-prior, rank 8": {"method": "own-prior", "adapter": {"rank": 8}},
    "own-prior-lora": {"method": "own-prior-lora"},
    "fedavg-lora": {"method": "fedavg-lora"},
}
SEALED: Json = {"sealing": {"on": True}}
MOST, FEWEST = 0.58, 0.65
"""Goals: the upper end of a sum's interval, and the mean of single uploads, which shows that the attack works."""


def configuration(
    name: str, arm: str, seed: int, sealed: bool, table: Path | str, vit: Path | str = "vit"
) -> Json:
    """Return the nested settings of one run."""
    values = RUN
    for part in (SETS[name][1], ARMS[arm], SEALED if sealed else {}):
        values = deep_merge(values, part)
    model = {"model": {"name": str(vit)}} if name == "cifar10" else {}
    return deep_merge(values, {"seed": seed, "data": {"source": str(table)}, **model})


def results(name: str, folder: Path = RESULTS) -> list[Json]:
    """Return the records of a set."""
    path = folder / f"{name}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def measure(name: str, arm: str, seed: int, sealed: bool, data: Path, models: Path | None) -> Json:
    """Train, attack, and return the record."""
    from trifed.attacks.membership import OVER, score_rounds
    from trifed.attacks.scores import area
    from trifed.attacks.target import train_target

    began = time.monotonic()
    table = data / SETS[name][0] / "train.parquet"
    values = configuration(name, arm, seed, sealed, table, "vit" if models is None else models / "vit")
    target = train_target(make_config(values), AFTER, None)
    scores = score_rounds(target, PLAN, lambda text: None)
    views: Json = {}
    for view, clients in scores.clients.items():
        each = {over: scores.over(over, "factors", view) for over in OVER}
        auc = {o: [round(area(one, other), 4) for one, other in found.values()] for o, found in each.items()}
        views[view] = {"clients": clients, "examples": round(scores.examples[view], 1), "auc": auc}
    return {
        "set": name, "arm": arm, "seed": seed, "sealed": sealed, "after": AFTER,
        "ended": datetime.now(UTC).isoformat(timespec="seconds"), "seconds": round(time.monotonic() - began, 1),
        "views": views, "attacked": {"members": PLAN.members, "observed": PLAN.observed, "seed": PLAN.seed},
        "settings": configuration(name, arm, seed, sealed, f"DIR/{SETS[name][0]}/train.parquet"),
        "environment": environment(),
    }  # fmt: skip


def interval(by_seed: Sequence[Sequence[float]], draws: int = 2000) -> tuple[float, float, float]:
    """Return the mean over clients and seeds, and its 95 % interval: seeds are resampled, and clients within each.

    Args:
        by_seed: For each seed, one value a client.
        draws: Number of resamples.
    """
    rng, means = np.random.default_rng(0), []
    for _ in range(draws):
        seeds = rng.integers(len(by_seed), size=len(by_seed))
        means.append(np.mean([np.mean(rng.choice(by_seed[seed], len(by_seed[seed]))) for seed in seeds]))
    low, high = np.percentile(means, [2.5, 97.5])
    return float(np.mean([np.mean(each) for each in by_seed])), float(low), float(high)


def rows(records: Sequence[Json]) -> Iterator[Json]:
    """Yield for each set, arm, form and view the AUC of each way to use rounds: mean, low, high."""
    places = dict.fromkeys((r["set"], r["arm"], r["sealed"]) for r in records)
    for name, arm, sealed in places:
        found = [r for r in records if (r["set"], r["arm"], r["sealed"]) == (name, arm, sealed)]
        for view in found[0]["views"]:
            auc = [r["views"][view]["auc"] for r in found]
            yield {
                "set": name, "arm": arm, "sealed": sealed, "view": view, "seeds": len(found),
                **{over: interval([one[over] for one in auc]) for over in auc[0]},
            }  # fmt: skip


def tables(records: Sequence[Json]) -> Iterator[str]:
    """Yield the lines of a Markdown table."""
    yield "| set | method | run | view | seeds | one round | mean of 3 | highest of 3 | difference | goal |"
    yield "|---|---|---|---|---|---|---|---|---|---|"
    for row in rows(records):
        shown = [f"{m:.3f} ({low:.3f}–{high:.3f})" for m, low, high in map(row.get, ways(row))]
        single = row["view"] == "single"
        met = row["round"][0] >= FEWEST if single else max(row[way][2] for way in ways(row)) <= MOST
        goal = f"{'≥' if single else '≤'} {FEWEST if single else MOST}: {'yes' if met else 'no'}"
        form = "sealed" if row["sealed"] else "open"
        about = [row["set"], row["arm"], form, row["view"], str(row["seeds"])]
        yield f"| {' | '.join([*about, *shown, goal])} |"


def ways(row: Json) -> list[str]:
    """Return the ways to use rounds that a row has."""
    return [way for way in ("round", "mean", "highest", "difference") if way in row]


def plan(sets: Iterable[str], arms: Iterable[str], seeds: Iterable[int]) -> Iterator[tuple[str, str, int]]:
    """Yield sets, arms and seeds in order: everything for a seed, then the next one."""
    yield from ((name, arm, seed) for seed in seeds for arm in arms for name in sets)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of the data sets")
    parser.add_argument("--models", type=Path, help="folder with `vit`, for cifar10")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--sets", nargs="+", choices=list(SETS), default=list(SETS))
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--sealed", action="store_true", help="runs with [sealing]")
    parser.add_argument("--hours", type=float, default=math.inf, help="start no measurement after this time")
    parser.add_argument("--list", action="store_true", help="print which results are there, and stop")
    parser.add_argument("--tables", action="store_true", help="print the tables of what is there, and stop")
    given = parser.parse_args()
    if given.tables:
        print(*tables([record for name in given.sets for record in results(name, given.out)]), sep="\n")
        return
    if not given.list and (given.data is None or not given.data.is_dir()):
        parser.error(f"--data {given.data}: no such folder; it holds banking77/train.parquet and others")
    if not given.list and "cifar10" in given.sets and given.models is None:
        parser.error("cifar10 needs --models, the folder with `vit`; or choose other --sets")
    end = time.monotonic() + 3600 * given.hours
    for name, arm, seed in plan(given.sets, given.arms, given.seeds):
        wanted = {"arm": arm, "seed": seed, "sealed": given.sealed}
        there = any(all(r[key] == value for key, value in wanted.items()) for r in results(name, given.out))
        if given.list:
            print(f"{name:10} {arm:20} seed {seed}: {'there' if there else 'missing'}")
        elif not there:
            if time.monotonic() > end:
                print("time is up; the same command goes on from here")
                return
            record = measure(name, arm, seed, given.sealed, given.data, given.models)
            given.out.mkdir(parents=True, exist_ok=True)
            with (given.out / f"{name}.jsonl").open("a") as file:
                file.write(json.dumps(record) + "\n")
            found = {view: float(np.mean(about["auc"]["round"])) for view, about in record["views"].items()}
            shown = ", ".join(f"{view} {auc:.3f}" for view, auc in found.items())
            print(f"{name} · {arm} · seed {seed}: {shown}; {record['seconds']:.0f} s", flush=True)


if __name__ == "__main__":
    main()
