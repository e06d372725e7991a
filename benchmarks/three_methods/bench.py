"""`local`, `fedavg-lora`, `ce-lora` and the controls on real data under equal conditions.

    python benchmarks/three_methods/bench.py --data DIR [--work DIR] [--jobs 2] [--quick]

DIR holds banking77/, clinc150/ and glue_sst2/, each with a train.parquet (columns text, label; CLINC150 also
domain): the public data sets of those names. Every run is a folder under --work; what is finished is kept and what
was broken off is resumed, so the command can be stopped and started again. Results go to results.json beside this
file; `plot.py` draws them.

Equal conditions: same split, same start of every parameter that two methods share, same batches, same rounds; the
learning rate is chosen for each method from one grid on validation data, on SST-2 for SST-2 and on BANKING77 for
the intents of BANKING77 and CLINC150, with a seed that no reported run uses.

Intervals: bootstrap over clients, and within a client over its test rows, paired across methods.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
METHODS = ("local", "fedavg-lora", "ce-lora")
GRID = (1e-3, 3e-3, 1e-2)
SEEDS = (0, 1)
TUNING_SEED = 100
TUNING = {"sst2-dirichlet-0.5": 4, "banking77-dirichlet-0.5": 15}
"""Where the rates are chosen, and after how many rounds: sentiment settles at once, 77 intents do not."""
ROUNDS, EVERY = 40, 4
CLIENT_EXAMPLES, TUNING_EXAMPLES = 200, 280
RESAMPLES = 4000


def _dirichlet(alpha: float) -> dict[str, Any]:
    return {"split": "dirichlet", "count": 10, "alpha": alpha}


SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    # Two labels at 0.1 leave some client of nearly every draw almost empty: five examples have to do there.
    "sst2-dirichlet-0.1": ("glue_sst2", {**_dirichlet(0.1), "min_examples": 5}),
    "sst2-dirichlet-0.5": ("glue_sst2", _dirichlet(0.5)),
    "banking77-dirichlet-0.1": ("banking77", _dirichlet(0.1)),
    "banking77-dirichlet-0.5": ("banking77", _dirichlet(0.5)),
    "clinc150-domain": ("clinc150", {"split": "column", "column": "domain"}),
}


def configuration(data: Path, setting: str, method: str, seed: int, rate: float, rounds: int) -> dict[str, Any]:
    folder, clients = SETTINGS[setting]
    return {
        "name": "run",
        "seed": seed,
        "rounds": rounds,
        "evaluate_every": EVERY,
        "controls": method == "local",
        "baselines": [],
        "method": method,
        "model": {"name": "demo", "max_length": 64},
        "data": {
            "source": str(data / folder / "train.parquet"),
            "valid_fraction": 0.1,
            "test_fraction": 0.4,
            "allow_single_class": True,
            "clients": {
                "min_examples": 40,
                **clients,
                "max_examples": TUNING_EXAMPLES if seed == TUNING_SEED else CLIENT_EXAMPLES,
            },
        },
        "training": {"batch_size": 16, "learning_rate": rate, "precision": "auto"},
    }


def one(config: dict[str, Any], folder: Path) -> None:
    """Carry out or continue one run in this process."""
    from trifed import make_config, resume, run

    resume(folder) if (folder / "config.toml").is_file() else run(make_config(config), folder)


def carry_out(jobs: list[tuple[Path, dict[str, Any]]], parallel: int) -> None:
    """All jobs that are not finished, `parallel` at a time, one line each."""
    waiting = [(folder, config) for folder, config in jobs if not (folder / "summary.json").is_file()]
    threads = str(max(1, (os.cpu_count() or 1) // parallel))
    environment = {**os.environ, "OMP_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": "false"}
    running: list[tuple[Path, subprocess.Popen[bytes], float]] = []
    done = len(jobs) - len(waiting)
    while waiting or running:
        while waiting and len(running) < parallel:
            folder, config = waiting.pop(0)
            command = [sys.executable, __file__, "--one", json.dumps(config), "--work", str(folder)]
            running.append((folder, subprocess.Popen(command, env=environment), time.time()))
        time.sleep(0.5)
        for item in [item for item in running if item[1].poll() is not None]:
            running.remove(item)
            folder, process, began = item
            if process.returncode:
                raise SystemExit(f"{folder} failed with exit code {process.returncode}; start again to resume")
            done += 1
            mean = json.loads((folder / "summary.json").read_text())["accuracy"]["mean"]
            print(f"{done}/{len(jobs)} {folder.name}: mean {mean:.3f}, {time.time() - began:.0f} s", flush=True)


def tuned_on(setting: str) -> str:
    """The setting on which a setting's rates are chosen."""
    return "sst2-dirichlet-0.5" if setting.startswith("sst2") else "banking77-dirichlet-0.5"


def tune(setting: str, data: Path, work: Path, parallel: int, rounds: int) -> dict[str, dict[str, float]]:
    """Mean validation accuracy after the tuning rounds, for each method and rate.

    A method that does best at the upper end of the grid gets the next rate too, until it does not.
    """
    rates = {method: list(GRID) for method in METHODS}
    while True:
        jobs = {
            (method, rate): (
                work / f"tune-{setting}-{method}-{rate}",
                {
                    **configuration(data, setting, method, TUNING_SEED, rate, rounds),
                    "controls": False,
                    "baselines": [],
                },
            )
            for method in METHODS
            for rate in rates[method]
        }
        carry_out(list(jobs.values()), parallel)
        found = {
            method: {str(rate): valid_after(rounds, jobs[method, rate][0]) for rate in rates[method]}
            for method in METHODS
        }
        at_the_end = [method for method in METHODS if best_rate(found[method]) == rates[method][-1]]
        if not at_the_end:
            return found
        for method in at_the_end:
            rates[method].append(round(3 * rates[method][-1], 6))


def valid_after(rounds: int, folder: Path) -> float:
    """Mean validation accuracy after so many rounds."""
    return next(float(p["valid_mean"]) for p in summary(folder)["curve"] if p["round"] == rounds)


def best_rate(tried: dict[str, float]) -> float:
    """The rate with the best validation accuracy."""
    return float(max(tried, key=lambda rate: tried[rate]))


def summary(folder: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return result


def right_or_wrong(folders: list[Path], part: str | None) -> list[np.ndarray]:
    """For each client of each seed, which test rows are right: (n_test,) bool. `part`: a control, or the model."""
    found = []
    for folder in folders:
        kept = json.loads((folder / "predictions.json").read_text())
        predicted = kept["model"] if part is None else kept["controls"][part]
        found += [np.array(predicted[name]) == np.array(labels) for name, labels in kept["labels"].items()]
    return found


def interval(values: list[np.ndarray], against: list[np.ndarray] | None, rng: np.random.Generator) -> list[float]:
    """95 % of the mean over clients, or of the paired difference: clients drawn anew, and their rows within."""
    draws = np.zeros(RESAMPLES)
    for draw in range(RESAMPLES):
        means = []
        for client in rng.integers(len(values), size=len(values)):
            rows = rng.integers(len(values[client]), size=len(values[client]))
            mean = values[client][rows].mean()
            means.append(mean if against is None else mean - against[client][rows].mean())
        draws[draw] = np.mean(means)
    return [round(float(q), 4) for q in np.quantile(draws, (0.025, 0.975))]


def spread(values: list[np.ndarray], seeds: int, rng: np.random.Generator) -> dict[str, Any]:
    """Mean with its interval, and worst and best client, averaged over seeds."""
    means = np.array([v.mean() for v in values]).reshape(seeds, -1)
    return {
        "mean": round(float(means.mean()), 4),
        "interval": interval(values, None, rng),
        "worst": round(float(means.min(1).mean()), 4),
        "best": round(float(means.max(1).mean()), 4),
    }


def common_rounds(curves: list[list[dict[str, Any]]]) -> list[list[dict[str, Any]]]:
    """The points that all seeds have."""
    rounds = set.intersection(*({point["round"] for point in curve} for curve in curves))
    return [[point for point in curve if point["round"] in rounds] for curve in curves]


def plateau(curves: list[list[dict[str, Any]]]) -> dict[str, Any]:
    """Rise of the mean test accuracy from the third to the last quarter of the rounds; a plateau is under .01."""
    points = np.array([[p["mean"] for p in curve if p["round"]] for curve in curves]).mean(0)
    quarter = len(points) // 4
    rise = float(points[-quarter:].mean() - points[-2 * quarter : -quarter].mean())
    return {"rise_in_last_quarter": round(rise, 4), "reached": rise < 0.01}


def digest(work: Path, setting: str, rates: dict[str, float], seeds: tuple[int, ...]) -> dict[str, Any]:
    """Everything reported about one setting, from those seeds that every method has finished."""
    rng = np.random.default_rng(0)
    seeds = tuple(
        seed
        for seed in seeds
        if all((work / f"{setting}-{m}-seed{seed}" / "summary.json").is_file() for m in METHODS)
    )
    folders = {m: [work / f"{setting}-{m}-seed{seed}" for seed in seeds] for m in METHODS}
    correct = {m: right_or_wrong(folders[m], None) for m in METHODS}
    result: dict[str, Any] = {"seeds": seeds, "methods": {}, "controls": {}, "differences": {}}
    for method in METHODS:
        summaries = [summary(folder) for folder in folders[method]]
        curves = common_rounds([s["curve"] for s in summaries])
        result["methods"][method] = {
            **spread(correct[method], len(seeds), rng),
            "learning_rate": rates[method],
            "after_a_local_round": float(np.mean([s["accuracy_trained"]["mean"] for s in summaries])),
            "plateau": plateau(curves),
            "curve": [
                {
                    "round": points[0]["round"],
                    **{k: float(np.mean([p[k] for p in points])) for k in ("mean", "worst", "best", "valid_mean")},
                }
                for points in zip(*curves, strict=True)
            ],
            "bytes": {
                k: float(np.mean([s["bytes"][k] for s in summaries])) for k in ("up", "down", "total", "summaries")
            },
        }
    for control in summary(folders["local"][0])["controls"]:
        result["controls"][control] = spread(right_or_wrong(folders["local"], control), len(seeds), rng)
    for method, other in (("ce-lora", "local"), ("ce-lora", "fedavg-lora"), ("fedavg-lora", "local")):
        means = [c.mean() - o.mean() for c, o in zip(correct[method], correct[other], strict=True)]
        result["differences"][f"{method} minus {other}"] = {
            "mean": round(float(np.mean(means)), 4),
            "interval": interval(correct[method], correct[other], rng),
        }
    sent = {m: result["methods"][m]["bytes"]["total"] for m in METHODS}
    result["fedavg_lora_bytes_over_ce_lora_bytes"] = round(sent["fedavg-lora"] / sent["ce-lora"], 1)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of the data sets")
    parser.add_argument("--work", type=Path, default=Path("runs/three_methods"))
    parser.add_argument("--out", type=Path, default=HERE / "results.json")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument(
        "--quick", action="store_true", help="one seed, 6 rounds: a check of the script, no result"
    )
    parser.add_argument("--report", action="store_true", help="write the results of what is finished")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        one(json.loads(given.one), given.work)
        return
    if given.data is None or not given.data.is_dir():
        parser.error("--data DIR: the folder that holds banking77/, clinc150/ and glue_sst2/")
    rounds, seeds = (6, SEEDS[:1]) if given.quick else (ROUNDS, SEEDS)
    grid = {
        setting: tune(setting, given.data, given.work, given.jobs, 3 if given.quick else after)
        for setting, after in TUNING.items()
    }
    rates = {s: {method: best_rate(tried) for method, tried in grid[s].items()} for s in grid}
    print("learning rates:", rates, flush=True)
    jobs = [
        (
            given.work / f"{setting}-{method}-seed{seed}",
            configuration(given.data, setting, method, seed, rates[tuned_on(setting)][method], rounds),
        )
        for seed in seeds
        for setting in SETTINGS
        for method in METHODS
    ]
    if not given.report:
        carry_out(jobs, given.jobs)
    first = json.loads((jobs[0][0] / "environment.json").read_text())
    example = configuration(Path("DATA"), "banking77-dirichlet-0.5", "ce-lora", 0, 3e-3, rounds)
    result = {
        "environment": {k: v for k, v in first.items() if k not in ("run_id", "trained_values", "sent_values")},
        "configuration": {"example": example, "seeds": seeds, "quick": given.quick},
        "tuning": {
            "seed": TUNING_SEED,
            "examples_a_client": TUNING_EXAMPLES,
            "rounds": TUNING,
            "validation_accuracy": grid,
            "chosen": rates,
        },
        "settings": {
            setting: digest(given.work, setting, rates[tuned_on(setting)], seeds) for setting in SETTINGS
        },
    }
    given.out.write_text(json.dumps(result, indent=1) + "\n")
    print(f"written to {given.out}")


if __name__ == "__main__":
    main()
