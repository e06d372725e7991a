"""Which exchange carries what clients can learn from each other, and for how many bytes? A screen, one seed.

    python benchmarks/collaboration/screen.py --data DIR [--settings NAME ...] [--variants NAME ...] [--jobs 2]

Every variant of `VARIANTS` on clients in planted groups (`groups.py`), so that what sharing can give is known: the
oracle averages A, B and head within the true groups. Each variant has a small grid of learning rates, and its best
on validation data is shown. Runs are kept under --work and go on where they were broken off; what is finished goes
to screen.json beside this file, with the share of the headroom that each variant closes, (variant − local) /
(oracle − local), local being the best variant that sends nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from groups import SETTINGS, plant
from variants import OwnPrior, Variant, grouping, register

from trifed.nested import layer

HERE = Path(__file__).parent
Json = dict[str, Any]

ABH = ("A", "B", "head")
FRAMES: Json = {"adapter": {"rank": 32, "alpha": 32}}


def bits(number: int, own: Json | None = None) -> Json:
    return {**(own or {}), "wire": {"bits": number}}


VARIANTS: dict[str, Variant | OwnPrior] = {
    "local-lora": Variant("lora", (), "alone"),
    "local-frames": Variant("public-frames", (), "alone", FRAMES),
    "oracle": Variant("lora", ABH),
    "everybody": Variant("lora", ABH, "all"),
    "lora-1-bit": Variant("lora", ABH, own=bits(1)),
    "lora-2-bits": Variant("lora", ABH, own=bits(2)),
    "frames": Variant("public-frames", ("C", "head"), own=FRAMES),
    "frames-4-bits": Variant("public-frames", ("C", "head"), own=bits(4, FRAMES)),
    "frames-1-bit": Variant("public-frames", ("C", "head"), own=bits(1, FRAMES)),
    "core": Variant("tri-matrix", ("C",)),
    "core-head": Variant("tri-matrix", ("C", "head")),
    "head": Variant("lora", ("head",)),
    "own-prior": OwnPrior(),
    "own-prior-32-bits": OwnPrior(own={"wire": {"bits": 32}}),
    "own-prior-everybody": OwnPrior(own={"method": {"apart": 1e9}}),
    "own-prior-no-prior": OwnPrior(prior=False),
    "own-prior-no-rows": OwnPrior(rows=False),
}
GRID = {"lora": (3e-3, 1e-2), "tri-matrix": (3e-3, 1e-2), "public-frames": (1e-2, 3e-2), "none": (1e-3,)}

EXAMPLES = {"tasks": (160, 40, 100), "named-tasks": (160, 40, 100), "topics": (32, 20, 100)}
"""To train on, to validate, to test, for each client."""
OTHERS = (64, 24, 100)


def configuration(setting: str, variant: str, rate: float, data: Path, work: Path, seed: int) -> Json:
    """A run's settings; the table that it reads is written where it is missing."""
    train, valid, test = EXAMPLES.get(setting, OTHERS)
    total = train + valid + test
    planted = plant(setting, data, total, seed)
    table = work / "data" / f"{setting}-{seed}.parquet"
    if not table.is_file():
        table.parent.mkdir(parents=True, exist_ok=True)
        planted.table.to_parquet(table)
    values: Json = {
        "name": "run",
        "seed": seed,
        "rounds": 12,
        "evaluate_every": 4,
        "controls": VARIANTS[variant].groups == "alone",
        "method": {"name": variant, **grouping(VARIANTS[variant].groups, planted.groups.tolist())},
        "model": {"name": "demo", "max_length": 64},
        "data": {
            "source": str(table),
            "valid_fraction": valid / total,
            "test_fraction": test / total,
            "allow_single_class": True,
            "clients": {"split": "column", "column": "client"},
        },
        "training": {"steps": 8, "batch_size": 8, "eval_batch_size": 16, "learning_rate": rate},
    }
    return layer(values, VARIANTS[variant].own)


def one(values: Json, folder: Path) -> None:
    """Carry out or continue one run in this process."""
    from trifed import make_config, resume, run

    register(VARIANTS)
    resume(folder) if (folder / "config.toml").is_file() else run(make_config(values), folder)


def carry_out(jobs: list[tuple[Path, Json]], parallel: int) -> None:
    """All jobs that are not finished, one line each."""
    waiting = [(folder, values) for folder, values in jobs if not (folder / "summary.json").is_file()]
    environment = {**os.environ, "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // parallel))}
    running: list[tuple[Path, subprocess.Popen[bytes], float]] = []
    while waiting or running:
        while waiting and len(running) < parallel:
            folder, values = waiting.pop(0)
            command = [sys.executable, __file__, "--one", json.dumps(values), "--work", str(folder)]
            running.append((folder, subprocess.Popen(command, env=environment), time.time()))
        time.sleep(0.5)
        for item in [item for item in running if item[1].poll() is not None]:
            running.remove(item)
            folder, process, began = item
            if process.returncode:
                raise SystemExit(f"{folder} failed with exit code {process.returncode}; start again to resume")
            mean = json.loads((folder / "summary.json").read_text())["accuracy"]["mean"]
            print(f"{folder.parent.name} {folder.name}: {mean:.3f}, {time.time() - began:.0f} s", flush=True)


def digest(work: Path, setting: str, seed: int) -> Json:
    """Each variant's best rate on validation data, and the share of the headroom that it closes."""
    found: Json = {}
    for variant in VARIANTS:
        runs = [folder for folder in (work / f"{setting}-{seed}").glob(f"{variant} *") if _done(folder)]
        if runs:
            summaries = [json.loads((folder / "summary.json").read_text()) for folder in runs]
            best = max(range(len(runs)), key=lambda place: summaries[place]["curve"][-1]["valid_mean"])
            found[variant] = _facts(summaries[best], runs[best])
    local = max(
        (v for name, v in found.items() if name.startswith("local")), key=lambda v: v["valid"], default=None
    )
    if local and "oracle" in found:
        for key in ("mean", "worst"):
            headroom = found["oracle"][key] - local[key]
            for facts in found.values():
                facts[f"closed_{key}"] = round((facts[key] - local[key]) / headroom, 3) if headroom > 0 else None
    return found


def conditions(work: Path, setting: str, seed: int) -> Json:
    """Configuration, versions and hardware, from one of the setting's runs."""
    folder = next(folder for folder in (work / f"{setting}-{seed}").iterdir() if _done(folder))
    with (folder / "config.toml").open("rb") as file:
        values = tomllib.load(file)
    values["data"]["source"] = f"groups.plant({setting!r}, …)"
    return {"configuration": values, "environment": json.loads((folder / "environment.json").read_text())}


def _done(folder: Path) -> bool:
    return (folder / "summary.json").is_file()


def _facts(summary: Json, folder: Path) -> Json:
    clients = [client["now"]["accuracy"] for client in summary["clients"]]
    return {
        "learning_rate": float(folder.name.split(" ")[1]),
        "mean": summary["accuracy"]["mean"],
        "worst": summary["accuracy"]["worst"],
        "valid": summary["curve"][-1]["valid_mean"],
        "bytes_up": summary["bytes"]["per_upload"],
        "clients": clients,
        "curve": [[point["round"], point["mean"]] for point in summary["curve"]],
        "controls": {name: control["mean"] for name, control in summary["controls"].items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of the data sets")
    parser.add_argument("--work", type=Path, default=Path("runs/collaboration"))
    parser.add_argument("--settings", nargs="+", choices=list(SETTINGS), default=["intents", "domains", "tasks"])
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        return one(json.loads(given.one), given.work)
    if given.data is None or not given.data.is_dir():
        parser.error(f"--data {given.data}: no such folder; it holds the public data sets")
    for setting in given.settings:
        root = given.work / f"{setting}-{given.seed}"
        jobs = [
            (
                root / f"{variant} {rate:g}",
                configuration(setting, variant, rate, given.data, given.work, given.seed),
            )
            for variant in given.variants
            for rate in GRID[VARIANTS[variant].adapter]
        ]
        carry_out(jobs, given.jobs)
        path = HERE / "screen.json"
        results = json.loads(path.read_text()) if path.is_file() else {}
        found = digest(given.work, setting, given.seed)
        results[f"{setting}, seed {given.seed}"] = {
            "an example": conditions(given.work, setting, given.seed),
            "variants": found,
        }
        path.write_text(json.dumps(results, indent=1) + "\n")
        for variant, facts in found.items():
            closed = facts.get("closed_mean")
            print(
                f"{setting} {variant:14} {facts['bytes_up']:8,} B  mean {100 * facts['mean']:.1f} worst "
                f"{100 * facts['worst']:.1f}  closes {'-' if closed is None else f'{100 * closed:.0f} %'}"
            )


if __name__ == "__main__":
    main()
