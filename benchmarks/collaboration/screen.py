"""Which exchange carries what clients can learn from each other, and for how many bytes?

    python benchmarks/collaboration/screen.py --data DIR [--settings NAME ...] [--variants NAME ...] [--seeds N]

Every variant of `VARIANTS` on clients in planted groups (`groups.py`), so that what sharing can give is known: the
oracle averages A, B and head within the true groups. Each variant has a small grid of learning rates, and the one
with the best mean on validation data over the seeds --tune-on is used; where it lies at an end, up to --beyond
rates further are tried. Other seeds are run at that rate alone. Runs are kept under --work and go on where they
were broken off; what is finished goes to the file --out (`digest.py` says what is in it).
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import pandas as pd

sys.path.insert(0, str(Path(__file__).parent))
from digest import chosen, conditions, digest, tried
from groups import SETTINGS, plant
from variants import OwnPrior, Variant, grouping, register

from trifed.common.dict_merge import deep_merge

HERE = Path(__file__).parent
Json = dict[str, Any]
Job = tuple[Path, Json]

ABH = ("A", "B", "head")
SHARED_PROJECTIONS: Json = {"adapter": {"rank": 32, "alpha": 32}}


def bits(number: int, own: Json | None = None) -> Json:
    return {**(own or {}), "wire": {"bits": number}}


VARIANTS: dict[str, Variant | OwnPrior] = {
    "local-lora": Variant("lora", (), "alone"),
    "local-tri-matrix": Variant("tri-matrix", (), "alone"),
    "local-frames": Variant("public-frames", (), "alone", SHARED_PROJECTIONS),
    "oracle": Variant("lora", ABH),
    "everybody": Variant("lora", ABH, "all"),
    "lora-1-bit": Variant("lora", ABH, own=bits(1)),
    "lora-2-bits": Variant("lora", ABH, own=bits(2)),
    "frames": Variant("public-frames", ("C", "head"), own=SHARED_PROJECTIONS),
    "frames-4-bits": Variant("public-frames", ("C", "head"), own=bits(4, SHARED_PROJECTIONS)),
    "frames-1-bit": Variant("public-frames", ("C", "head"), own=bits(1, SHARED_PROJECTIONS)),
    "core": Variant("tri-matrix", ("C",)),
    "core-head": Variant("tri-matrix", ("C", "head")),
    "head": Variant("lora", ("head",)),
    "own-prior": OwnPrior(),
    "own-prior-32-bits": OwnPrior(own={"wire": {"bits": 32}}),
    "own-prior-everybody": OwnPrior(own={"aggregation": {"agreement": 1e9}}),
    "own-prior-no-prior": OwnPrior(own={"personalization": {"label_prior": False}}),
    "own-prior-no-rows": OwnPrior(own={"aggregation": {"weights": "examples"}}),
    "own-prior-no-temper": OwnPrior(own={"personalization": {"calibrate": False}}),
    "own-prior-lora": OwnPrior("own-prior-lora"),
    "own-prior-lora-2": OwnPrior("own-prior-lora", own={"adapter": {"rank": 2, "alpha": 4}}),
}
FINALISTS = ["local-lora", "local-frames", "oracle", "everybody", "own-prior"]
GRID = {"lora": (3e-3, 1e-2), "tri-matrix": (3e-3, 1e-2), "public-frames": (1e-2, 3e-2), "none": (1e-3,)}
GRID_ALONE = {"lora": (1e-3, 3e-3), "tri-matrix": (1e-3, 3e-3), "public-frames": (3e-3, 1e-2)}
"""Who trains alone learns few examples by heart, the sooner the higher the rate."""
LADDER = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
CURVES_OF = 0
"""The seed that is evaluated four times on its way."""

EXAMPLES = {"tasks": (160, 40, 100), "named-tasks": (160, 40, 100), "topics": (32, 20, 100)}
"""To train on, to validate, to test, for each client."""
OTHERS = (64, 24, 100)
ROUNDS = {"tasks": 24, "named-tasks": 24}
"""How two texts relate is learned slowly."""
FEWER = 16


def table(setting: str, seed: int, data: Path | None, work: Path) -> tuple[Path, list[int]]:
    """The table that a setting's runs read, written where it is missing, and each client's group."""
    path = work / "data" / f"{setting}-{seed}.parquet"
    if not path.is_file():
        if data is None:
            raise SystemExit(f"{path} is not there yet, and without --data it cannot be made")
        path.parent.mkdir(parents=True, exist_ok=True)
        plant(setting, data, sum(EXAMPLES.get(setting, OTHERS)), seed).to_parquet(path)
    groups = pd.read_parquet(path, columns=["client", "group"]).groupby("client")["group"].first()
    return path, [int(group) for group in groups.sort_index()]


def configuration(setting: str, variant: str, rate: float, seed: int, source: Path, groups: list[int]) -> Json:
    """A run's settings."""
    train, valid, test = EXAMPLES.get(setting, OTHERS)
    total, rounds = train + valid + test, ROUNDS.get(setting, FEWER)
    values: Json = {
        "name": "run",
        "seed": seed,
        "rounds": rounds,
        "evaluate_every": rounds // 4 if seed == CURVES_OF else rounds,
        "controls": VARIANTS[variant].groups == "alone",
        "baselines": [],
        "method": {"name": variant, **grouping(VARIANTS[variant].groups, groups)},
        "model": {"name": "demo", "max_length": 64},
        "data": {
            "source": str(source),
            "valid_fraction": valid / total,
            "test_fraction": test / total,
            "allow_single_class": True,
            "clients": {"split": "column", "column": "client"},
        },
        "training": {
            "steps": 8,
            "batch_size": 8,
            "eval_batch_size": 32,
            "learning_rate": rate,
            "precision": "fp32",
        },
    }
    return deep_merge(values, VARIANTS[variant].own)


def jobs(setting: str, seed: int, variants: list[str], given: argparse.Namespace) -> list[Job]:
    """A setting's runs of one seed: all rates where they are chosen, elsewhere the chosen one."""
    source, groups = table(setting, seed, given.data, given.work)
    rates = {} if seed in given.tune_on else chosen(given.work, setting, given.tune_on)
    found: list[Job] = []
    for variant in variants:
        if seed not in given.tune_on and variant not in rates:
            raise SystemExit(f"{setting}: the rate of {variant} is chosen with seeds {given.tune_on} first")
        for rate in grid(setting, variant, given) if seed in given.tune_on else [rates[variant]]:
            values = configuration(setting, variant, rate, seed, source, groups)
            values["training"]["device"] = given.device
            found.append((given.work / f"{setting}-{seed}" / f"{variant}@{rate:g}", values))
    return found


def grid(setting: str, variant: str, given: argparse.Namespace) -> list[float]:
    """The rates of a variant: its grid, what was tried beyond, and one further where the best is at an end."""
    if given.rate is not None:
        return [given.rate]
    least = (GRID_ALONE if VARIANTS[variant].groups == "alone" else GRID)[VARIANTS[variant].adapter]
    found = {*least, *tried(given.work, setting, variant, given.tune_on)}
    best = chosen(given.work, setting, given.tune_on).get(variant)
    if best in (min(found), max(found)) and len(found) < len(least) + given.beyond:
        found.add(LADDER[LADDER.index(best) + (1 if best == max(found) else -1)])
    return sorted(found)


def one(job: Job) -> str:
    """Carry out or continue one run in this process; a line about it."""
    from trifed import make_config, resume, run

    register(VARIANTS)
    folder, values = job
    done = resume(folder) if (folder / "config.toml").is_file() else run(make_config(values), folder)
    accuracy, seconds = done.summary["accuracy"]["mean"], done.summary["seconds_total"]
    return f"{folder.parent.name} {folder.name}: {accuracy:.3f}, {seconds:.0f} s"


def carry_out(found: list[Job], parallel: int) -> None:
    """All runs that are not finished, a line each."""
    waiting = [job for job in found if not (job[0] / "summary.json").is_file()]
    os.environ["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // parallel))
    with ProcessPoolExecutor(parallel, multiprocessing.get_context("spawn")) as pool:
        for place, future in enumerate(as_completed([pool.submit(one, job) for job in waiting]), 1):
            print(f"{place}/{len(waiting)}  {future.result()}", flush=True)


def keep(given: argparse.Namespace, setting: str, seed: int) -> None:
    """What is finished of a setting, into the file of results and onto the terminal."""
    results = json.loads(given.out.read_text()) if given.out.is_file() else {}
    found = digest(given.work, setting, seed, given.tune_on)
    if not found:
        return
    kept = results.setdefault(setting, {"an example": conditions(given.work, setting, seed), "seeds": {}})
    kept["tuned on"] = given.tune_on
    kept["groups"] = table(setting, seed, given.data, given.work)[1]
    kept["seeds"][str(seed)] = found
    given.out.write_text(json.dumps(results, indent=1) + "\n")
    for variant, facts in found.items():
        means = {stage: 100 * sum(got) / len(got) for stage, got in facts["clients"].items()}
        shown = "  ".join(f"{stage} {mean:.1f}" for stage, mean in means.items())
        print(f"{setting} {seed} {variant:20} {facts['bytes_up']:8,} B  {shown}  rate {facts['learning_rate']:g}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of the data sets")
    parser.add_argument("--work", type=Path, default=Path("runs/collaboration"))
    parser.add_argument("--out", type=Path, default=HERE / "screen.json")
    parser.add_argument("--settings", nargs="+", choices=list(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=FINALISTS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--tune-on", nargs="+", type=int, default=[0, 1, 2, 3, 4], metavar="SEED")
    parser.add_argument("--beyond", type=int, default=0, help="rates tried beyond an end of the grid at most")
    parser.add_argument("--rate", type=float, help="this one only, as an ablation at the rate of the whole does")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--device", default="auto")
    given = parser.parse_args()
    if given.data is not None and not given.data.is_dir():
        parser.error(f"--data {given.data}: no such folder; it holds the public data sets")
    tuning = set(given.tune_on)
    for seeds in ([s for s in given.seeds if s in tuning], [s for s in given.seeds if s not in tuning]):
        wanted = [(setting, seed) for setting in given.settings for seed in seeds]
        for _ in range(given.beyond + 1):
            carry_out([job for pair in wanted for job in jobs(*pair, given.variants, given)], given.jobs)
        for setting, seed in wanted:
            keep(given, setting, seed)


if __name__ == "__main__":
    main()
