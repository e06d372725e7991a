"""Who was trained on, by what an attacker sees: one upload, a sum of ten clients, or the sum less one's own part.

    python benchmarks/privacy/views.py --data DIR [--models DIR] [--sets SET ...] [--arms ARM ...] [--seeds N ...]
        [--sealed] [--hours H] [--list]
    python benchmarks/privacy/views.py --tables

DIR holds the public data sets, each a folder with a train.parquet; --models the folder `vit` for CIFAR-10
(benchmarks/models/small_vision.py makes it). Ten clients train three rounds at default work (one epoch, batches
of 16); then rounds 4 to 6 are attacked. For each client and view: the AUC of telling 64 of its training examples
from 64 of its held-out ones, by the cosine between an example's gradient and what is seen. *round* is round 4
alone, *mean* and *highest* use the scores of three rounds, *difference* is the change from round 4 to 5, and
*departure* the sum of round 4 less that of round 5 without the attacked client, as if it had left. The view
*colluding* is the sum of two clients, what is left if all others work together.

Without --sealed sums are means of what clients of an open run send; with it runs have `[sealing]`, so that the
attacked numbers are those of opened sums. What an arm costs is its test accuracy after ten rounds, of a run of its
own. Each of the two measurements is a line in results/views/SET.jsonl, with settings, versions and hardware; those
that are there are not made again. --tables prints means with 95 % intervals, for which seeds are resampled, and
clients within each seed: first every view, then for each arm the way to use rounds that finds most, with the
accuracy, and its difference to `own-prior` in pairs of clients.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from trifed import make_config
from trifed.attacks.plan import Plan
from trifed.common.dict_merge import deep_merge

sys.path.insert(0, str(Path(__file__).parents[1] / "evidence"))
from records import environment

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
    "own-prior, rank 4": {"method": "own-prior", "adapter": {"rank": 4}},
    "own-prior, three steps": {"method": "own-prior", "training": {"steps": 3}},
    "own-prior, half the rate": {"method": "own-prior", "training": {"learning_rate": 0.01}},
    "own-prior, dropout 0.2": {"method": "own-prior", "adapter": {"dropout": 0.2}},
    "own-prior, pull 0.1": {"method": "own-prior", "personalization": {"proximal": 0.1}},
    "own-prior, pull 1": {"method": "own-prior", "personalization": {"proximal": 1.0}},
    "own-prior, rank 8, three steps": {
        "method": "own-prior", "adapter": {"rank": 8}, "training": {"steps": 3},
    },
    "own-prior-lora": {"method": "own-prior-lora"},
    "fedavg-lora": {"method": "fedavg-lora"},
}  # fmt: skip
"""Settings by name. Three steps are about half a pass over 100 examples; a pull is a proximal term of that
strength, towards the values that training starts from; dropout is that of the adapter's inputs."""
PAGE_NAMES = {
    "banking77": "BANKING77", "sst2": "SST-2", "cifar10": "CIFAR-10",
    "own-prior": "default", "own-prior, rank 16": "rank 16", "own-prior, rank 8": "rank 8",
    "own-prior, rank 4": "rank 4",
    "own-prior, three steps": "three steps a round", "own-prior, half the rate": "half the rate",
    "own-prior, dropout 0.2": "dropout 0.2", "own-prior, pull 0.1": "proximal term 0.1",
    "own-prior, pull 1": "proximal term 1", "own-prior, rank 8, three steps": "rank 8, three steps a round",
}  # fmt: skip
"""Names of sets and arms in the tables of pages; those that are missing here keep their own name."""
PLAIN = "own-prior"
"""The arm with which the accuracy of others is compared."""
SEALED: Json = {"sealing": {"on": True}}
WAYS = ("round", "mean", "highest", "difference")
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
        auc = {o: [round(area(*pair), 4) for pair in found.values()] for o, found in each.items() if found}
        views[view] = {"clients": clients, "examples": round(scores.examples[view], 1), "auc": auc}
    return {
        "set": name, "arm": arm, "seed": seed, "sealed": sealed, "after": AFTER,
        "ended": datetime.now(UTC).isoformat(timespec="seconds"), "seconds": round(time.monotonic() - began, 1),
        "views": views, "attacked": {"members": PLAN.members, "observed": PLAN.observed, "seed": PLAN.seed},
        "settings": configuration(name, arm, seed, sealed, f"DIR/{SETS[name][0]}/train.parquet"),
        "environment": environment(),
    }  # fmt: skip


def accuracy(name: str, arm: str, seed: int, sealed: bool, data: Path, models: Path | None) -> Json:
    """Make an arm's run, and return the record of its clients' test accuracy after the last round."""
    from trifed.experiments.runner import run

    began = time.monotonic()
    table = data / SETS[name][0] / "train.parquet"
    values = configuration(name, arm, seed, sealed, table, "vit" if models is None else models / "vit")
    with tempfile.TemporaryDirectory() as scratch:
        summary = run(make_config(values | {"evaluate_every": values["rounds"]}), Path(scratch) / "run").summary
    return {
        "set": name, "arm": arm, "seed": seed, "sealed": sealed, "rounds": values["rounds"],
        "ended": datetime.now(UTC).isoformat(timespec="seconds"), "seconds": round(time.monotonic() - began, 1),
        "accuracy": {client["name"]: round(client["now"]["accuracy"], 4) for client in summary["clients"]},
        "settings": configuration(name, arm, seed, sealed, f"DIR/{SETS[name][0]}/train.parquet"),
        "environment": environment(),
    }  # fmt: skip


MEASURED: dict[str, Callable[[str, str, int, bool, Path, Path | None], Json]] = {
    "views": measure,
    "accuracy": accuracy,
}
"""What a record holds, and how it is measured."""


def interval(by_seed: Sequence[Sequence[float]], draws: int = 2000) -> tuple[float, float, float]:
    """Return the mean over clients and seeds, and its 95 % interval: seeds are resampled, and clients within each.

    Args:
        by_seed: For each seed, one value a client.
        draws: Number of resamples.
    """
    counts = np.array([len(each) for each in by_seed])
    seeds, most, common = len(counts), int(counts.max()), int(np.lcm.reduce(counts))
    values = np.array([np.resize(each, common) for each in by_seed])  # each seed's clients equally often
    upper = [seeds] * seeds + [common] * (seeds * most)
    drawn = np.random.default_rng(0).integers(upper, size=(draws, len(upper)))
    chosen, clients = drawn[:, :seeds], drawn[:, seeds:].reshape(draws, seeds, most)
    kept = np.arange(most) < counts[chosen][..., None]  # as many draws as the chosen seed has clients
    means = values[chosen[..., None], clients].mean(axis=2, where=kept).mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(np.mean([np.mean(each) for each in by_seed])), float(low), float(high)


def by_arm(records: Sequence[Json], holds: str) -> dict[tuple[str, str, bool], list[Json]]:
    """Return the records that hold something, "views" or "accuracy", by set, arm, and whether they are sealed."""
    found: dict[tuple[str, str, bool], list[Json]] = {}
    for record in records:
        if holds in record:
            found.setdefault((record["set"], record["arm"], record["sealed"]), []).append(record)
    return found


def rows(records: Sequence[Json]) -> Iterator[Json]:
    """Yield for each set, arm, form and view the AUC of each way to use rounds: mean, low, high."""
    for (name, arm, sealed), found in by_arm(records, "views").items():
        for view in dict.fromkeys(view for r in found for view in r["views"]):
            auc = [r["views"][view]["auc"] for r in found if view in r["views"]]
            kept = [over for over in auc[0] if all(over in one for one in auc)]
            yield {
                "set": name, "arm": arm, "sealed": sealed, "view": view, "seeds": len(auc),
                **{over: interval([one[over] for one in auc]) for over in kept},
            }  # fmt: skip


def tables(records: Sequence[Json]) -> Iterator[str]:
    """Yield the lines of a Markdown table."""
    columns = ("one round", "mean of 3", "highest of 3", "difference", "when it leaves", "goal")
    yield f"| set | method | run | view | seeds | {' | '.join(columns)} |"
    yield "|---|---|---|---|---|---|---|---|---|---|---|"
    for row in rows(records):
        shown = [auc_in_words(row.get(way)) for way in (*WAYS, "departure")]
        single = row["view"] == "single"
        met = row["round"][0] >= FEWEST if single else max(row[way][2] for way in ways(row)) <= MOST
        goal = f"{'≥' if single else '≤'} {FEWEST if single else MOST}: {'yes' if met else 'no'}"
        goal = "–" if row["view"] == "colluding" else goal
        form = "sealed" if row["sealed"] else "open"
        about = [row["set"], row["arm"], form, row["view"], str(row["seeds"])]
        yield f"| {' | '.join([*about, *shown, goal])} |"


def prices(records: Sequence[Json]) -> Iterator[str]:
    """Yield the lines of a Markdown table: for each arm what the views show at most, and its accuracy."""
    seen = {(row["set"], row["arm"], row["sealed"], row["view"]): row for row in rows(records)}
    accuracies = by_arm(records, "accuracy")
    yield "| set | method | run | one upload | sum | sum less one's own part | accuracy | less own-prior | seeds |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for place in dict.fromkeys([*by_arm(records, "views"), *accuracies]):
        name, arm, sealed = place
        shown = [most(seen.get((*place, view))) for view in ("single", "sum", "others")]
        own, plain = accuracies.get(place, []), accuracies.get((name, PLAIN, sealed), [])
        reached = interval([list(one["accuracy"].values()) for one in own]) if own else None
        pairs = list(differences(own, plain)) if arm != PLAIN else []
        less = interval(pairs) if pairs else None
        counts = f"{seen[*place, 'single']['seeds'] if (*place, 'single') in seen else 0} and {len(own)}"
        about = [name, arm, "sealed" if sealed else "open"]
        yield f"| {' | '.join([*about, *shown, points(reached), points(less, '+'), counts])} |"


def differences(own: Sequence[Json], plain: Sequence[Json]) -> Iterator[list[float]]:
    """Yield for each seed that both have each client's accuracy less that of the same client in the plain arm."""
    by_seed = {record["seed"]: record["accuracy"] for record in plain}
    for record in own:
        if record["seed"] in by_seed:
            yield [value - by_seed[record["seed"]][name] for name, value in record["accuracy"].items()]


def most(row: Json | None) -> str:
    """Return the largest AUC of the ways to use rounds, with its interval, as text."""
    if row is None:
        return "–"
    return auc_in_words(max(row[way] for way in ways(row)))


def auc_in_words(found: tuple[float, float, float] | None) -> str:
    """Return an AUC and its interval as text."""
    return "–" if found is None else "{:.3f} ({:.3f}–{:.3f})".format(*found)


def points(found: tuple[float, float, float] | None, sign: str = "") -> str:
    """Return a mean and its interval in percent as text; with `sign` "+" as a difference."""
    if found is None:
        return "–"
    mean, low, high = (format(100 * value, f"{sign}.1f") for value in found)
    return f"{mean} ({low} to {high})"


def ways(row: Json) -> list[str]:
    """Return the ways to use rounds that a row has, and that anybody can use who sees sums."""
    return [way for way in WAYS if way in row]


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
        records = [record for name in given.sets for record in results(name, given.out)]
        print(*tables(records), "", *prices(records), sep="\n")
        return
    if not given.list and (given.data is None or not given.data.is_dir()):
        parser.error(f"--data {given.data}: no such folder; it holds banking77/train.parquet and others")
    if not given.list and "cifar10" in given.sets and given.models is None:
        parser.error("cifar10 needs --models, the folder with `vit`; or choose other --sets")
    end = time.monotonic() + 3600 * given.hours
    for name, arm, seed in plan(given.sets, given.arms, given.seeds):
        wanted = {"arm": arm, "seed": seed, "sealed": given.sealed}
        kept = [r for r in results(name, given.out) if all(r[key] == value for key, value in wanted.items())]
        missing = [what for what in MEASURED if not any(what in record for record in kept)]
        if given.list:
            state = f"{' and '.join(missing)} missing" if missing else "there"
            print(f"{name:10} {arm:30} seed {seed}: {state}")
            continue
        for what in missing:
            if time.monotonic() > end:
                print("time is up; the same command goes on from here")
                return
            record = MEASURED[what](name, arm, seed, given.sealed, given.data, given.models)
            given.out.mkdir(parents=True, exist_ok=True)
            with (given.out / f"{name}.jsonl").open("a") as file:
                file.write(json.dumps(record) + "\n")
            print(f"{name} · {arm} · seed {seed}: {in_words(record)}; {record['seconds']:.0f} s", flush=True)


def in_words(record: Json) -> str:
    """Return what a record holds as text."""
    if "accuracy" in record:
        return f"accuracy {100 * np.mean(list(record['accuracy'].values())):.1f} %"
    found = {view: float(np.mean(about["auc"]["round"])) for view, about in record["views"].items()}
    return ", ".join(f"{view} {auc:.3f}" for view, auc in found.items())


if __name__ == "__main__":
    main()
