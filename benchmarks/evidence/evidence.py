"""What does each method reach at equal bits, with equal parts, at tuned rates? Runs that are missing, in order.

    python benchmarks/evidence/evidence.py --data DIR [--work DIR] [--hours H] [--sets SET ...] [--arms ARM ...]
        [--tier TIER] [--list]

DIR holds the public data sets, each a folder with a train.parquet. `design.py` says what is compared. For a set
and an arm, first the learning rate is chosen: three rates for a quarter of the rounds, the better two for half of
them, by accuracy on validation data of that set under the first seed. The best one goes on to the last round, and
is used with the further seeds. Each run that ends is a line in results/SET.jsonl, with what is needed to compare
it in pairs: which test rows it got right. A stopped script goes on where it was; with --hours it starts no run
after that time. Make the tables with `tables.py`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import platform
import shutil
import subprocess
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from design import ALL_ARMS, RATE_FACTOR, ROUNDS, RUN, SEEDS, SETS, TIERS, Arm, write_table

from trifed import make_config
from trifed.common.dict_merge import deep_merge
from trifed.experiments.runner import resume, run
from trifed.federation.results import valid_value

HERE = Path(__file__).resolve().parent
Json = dict[str, Any]
PACKAGES = ("torch", "transformers", "peft", "numpy", "scikit-learn")


def results(name: str, folder: Path = HERE / "results") -> list[Json]:
    """Return the records of a set."""
    path = folder / f"{name}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def rates(arm: Arm) -> list[float]:
    """Return the learning rates that are tried, in rising order."""
    return [float(f"{rate:.3g}") for rate in (arm.rate / RATE_FACTOR, arm.rate, arm.rate * RATE_FACTOR)]


def configuration(name: str, arm: Arm, seed: int, rate: float, table: Path | str) -> Json:
    """Return the nested settings of one run."""
    own = {"data": {"source": str(table), "clients": SETS[name].clients}, "training": {"learning_rate": rate}}
    changes: Json = {}
    for part in (SETS[name].settings, own, arm.settings, {"seed": seed, "name": "evidence"}):
        changes = deep_merge(changes, part)
    return deep_merge(RUN, changes)


class Measured:
    """Runs of the comparison: those that are kept, and how to make one more."""

    def __init__(self, data: Path, work: Path, out: Path) -> None:
        self.data, self.work, self.out = data, work, out
        self.about = environment()

    def find(self, name: str, **wanted: Any) -> Json | None:
        """Return the record with these values, if there is one."""
        kept = (r for r in results(name, self.out) if all(r[key] == value for key, value in wanted.items()))
        return next(kept, None)

    def chosen_rate(self, name: str, arm: str) -> Iterator[float | None]:
        """Yield None before each tuning run that is needed, and at the end the rate that was chosen."""
        tuned = ALL_ARMS[arm].tuned_as or arm
        left = rates(ALL_ARMS[tuned])
        for keep, rounds in ((2, ROUNDS // 4), (1, ROUNDS // 2)):
            scores = {}
            for rate in left:
                wanted = {"arm": tuned, "seed": SEEDS[0], "rate": rate, "rounds": rounds}
                if self.find(name, **wanted) is None:
                    yield None
                    self.measure(name, tuned, SEEDS[0], rate, rounds)
                found = self.find(name, **wanted)
                scores[rate] = found["valid"] if found else -math.inf
            left = sorted(sorted(left, key=lambda rate: (-scores[rate], rate))[:keep])
        yield left[0]

    def measure(self, name: str, arm: str, seed: int, rate: float, rounds: int) -> Json:
        """Make one run, or go on with it, and keep its record."""
        table = write_table(name, self.data, seed, self.work / "tables")
        values = configuration(name, ALL_ARMS[arm], seed, rate, table) | {"rounds": rounds}
        known = hashlib.sha256(json.dumps([name, ALL_ARMS[arm].settings, seed, rate]).encode()).hexdigest()[:12]
        folder = self.work / f"{name}-{known}"
        began = time.monotonic()
        config = make_config(values)
        there = (folder / "config.toml").is_file()
        result = resume(folder, rounds=rounds) if there else run(config, folder)
        record = {
            "set": name,
            "arm": arm,
            "seed": seed,
            "rate": rate,
            "rounds": rounds,
            "ended": datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds": round(time.monotonic() - began, 1),
            **facts(result.path, result.summary, with_answers=rounds == ROUNDS),
            "settings": configuration(name, ALL_ARMS[arm], seed, rate, f"DIR/{SETS[name].folder}/train.parquet"),
            "environment": self.about,
        }
        self.out.mkdir(parents=True, exist_ok=True)
        with (self.out / f"{name}.jsonl").open("a") as file:
            file.write(json.dumps(record) + "\n")
        if rounds == ROUNDS:
            shutil.rmtree(folder)
        return record


def facts(path: Path, summary: Json, *, with_answers: bool) -> Json:
    """Return what a record keeps of a run.

    Answers are the number of a client's test rows, and a bit for each that is right, as hexadecimal digits.
    """
    split = json.loads((path / "split.json").read_text())
    curve = [{key: point[key] for key in ("round", "mean", "valid_mean", "bytes")} for point in summary["curve"]]
    found: Json = {
        "valid": valid_value(summary, "accuracy"),
        **{key: summary["accuracy"][key] for key in ("mean", "worst", "best")},
        "trained": (summary["accuracy_trained"] or {}).get("mean"),
        "received": (summary["accuracy_received"] or {}).get("mean"),
        "bytes": summary["bytes"],
        "curve": curve,
        "split": split["content_hash"],
        "train_examples": [client["train"] for client in split["clients"]],
    }
    if with_answers:
        kept = json.loads((path / "predictions.json").read_text())
        found["answers"] = {
            client: f"{len(labels)}:"
            + np.packbits(np.array(kept["model"][client]) == np.array(labels)).tobytes().hex()
            for client, labels in kept["labels"].items()
        }
    return found


def environment() -> Json:
    """Return versions, hardware and the commit of the code."""
    git = ["git", "-C", str(HERE), "rev-parse", "--short", "HEAD"]
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if "model name" in line] if info.is_file() else []
    return {
        "commit": subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip(),
        "packages": {package: version(package) for package in PACKAGES},
        "python": platform.python_version(),
        "processor": names[0].split(":")[1].strip() if names else platform.processor(),
    }


def plan(tier: str, sets: list[str], arms: list[str]) -> Iterator[tuple[str, str, int]]:
    """Yield sets, arms and seeds in order: all sets for an arm, then the next arm; all arms for a seed."""
    usual_sets, usual_arms = TIERS[tier]
    for seed in SEEDS:
        for arm in arms or usual_arms:
            for name in sets or usual_sets:
                if fits(name, arm):
                    yield name, arm, seed


def fits(name: str, arm: str) -> bool:
    """Return whether an arm's settings have a meaning on a set: groups of domains need domains."""
    return "members" not in ALL_ARMS[arm].settings.get("aggregation", {}) or SETS[name].table == "by_domain"


def missing(measured: Measured, name: str, arm: str, seed: int) -> Iterator[None]:
    """Make the missing runs of an arm on a set with a seed; yield before each."""
    rate: float | None = None
    for rate in measured.chosen_rate(name, arm):
        if rate is None:
            yield
    assert rate is not None  # the last value of chosen_rate
    if measured.find(name, arm=arm, seed=seed, rate=rate, rounds=ROUNDS) is None:
        yield
        record = measured.measure(name, arm, seed, rate, ROUNDS)
        print(f"{name} · {arm} · seed {seed} · rate {rate}: {100 * record['mean']:.1f} %, "
              f"{record['seconds']:.0f} s", flush=True)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--work", type=Path, default=Path("runs/evidence"), help="folder of runs under way")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    parser.add_argument("--hours", type=float, default=math.inf, help="start no run after this time")
    parser.add_argument("--sets", nargs="+", choices=list(SETS), default=[])
    parser.add_argument("--arms", nargs="+", choices=list(ALL_ARMS), default=[])
    parser.add_argument("--tier", choices=list(TIERS), default="first")
    parser.add_argument("--list", action="store_true", help="print which results are there, and stop")
    given = parser.parse_args()
    if not given.data.is_dir():
        parser.error(f"--data {given.data}: no such folder; it holds glue_sst2/train.parquet and others")
    measured = Measured(given.data, given.work, given.out)
    end = time.monotonic() + 3600 * given.hours
    for name, arm, seed in plan(given.tier, given.sets, given.arms):
        if given.list:
            there = any(r["arm"] == arm and r["seed"] == seed and "answers" in r for r in results(name, given.out))
            print(f"{name:20} {arm:24} seed {seed}: {'there' if there else 'missing'}")
            continue
        for _ in missing(measured, name, arm, seed):
            if time.monotonic() > end:
                print("time is up; the same command goes on from here")
                return


if __name__ == "__main__":
    main()
