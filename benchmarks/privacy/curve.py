"""What does [privacy] cost? On planted groups, so that it is known who should learn from whom.

    python benchmarks/privacy/curve.py --data DIR [--work runs/privacy] [--seeds 3] [--rounds 16]

Two questions, for settings of `benchmarks/collaboration/groups.py`:

1. Are the groups still found? A client's summary with and without noise, at ε of --epsilons: how well the
   two-sample ratio and the shared-label ratio part pairs inside a group from pairs across (AUC; .5 is guessing),
   and the mean ratio inside and across, where 1 is what noise explains. Noise is drawn --draws times.
2. What is left of the accuracy? `own-prior` without [privacy], with noise on the summary (ε = 4), and beside it
   with noise on the updates, at each ε of --epsilons and each of --clips, or on the training steps; and `local`.

Features and runs are kept under --work, and what is there is not made again: broken off, the same line goes on.
Results are added to curve.json beside this file (--out), with all arguments the script was called with and
the machine.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from trifed import make_config, resume, run, similarity
from trifed.methods.summaries import NOISED_DIM, SUMMARY_DIM
from trifed.privacy import noise_multiplier, noised_summary, seeded_noise

sys.path.insert(0, str(Path(__file__).parents[1] / "collaboration"))
sys.path.insert(0, str(Path(__file__).parents[1] / "similarity"))
from bench import Clients, features, shared_model
from groups import plant

from trifed.federation.preparation import environment

HERE = Path(__file__).parent
DELTA = 1e-5
SUMMARY_EPSILON = 4.0
SIZES = (48, 200)
RATE = 0.25
"""Chance of an example to be in a noised step."""


def summaries_of(clients: Clients, epsilon: float | None, seed: int) -> list[similarity.Summary]:
    """What clients tell: without noise as `own-prior` does, or noised at ε."""
    dim = SUMMARY_DIM if epsilon is None else NOISED_DIM
    projected = [similarity.project(x, dim=dim, seed=1) for x, _ in clients]
    if epsilon is None:
        pairs = enumerate(zip(projected, clients, strict=True))
        return [similarity.summarise(x, y, max_components=1, seed=place) for place, (x, (_, y)) in pairs]
    labels = 1 + max(int(y.max()) for _, y in clients)
    z, rng = noise_multiplier(epsilon, DELTA), np.random.default_rng([seed, 11])
    pairs = zip(projected, clients, strict=True)
    return [noised_summary(x, y, labels, z, seeded_noise(rng)) for x, (_, y) in pairs]


def judged(summaries: list[similarity.Summary], groups: NDArray[np.int64]) -> dict[str, Any]:
    """AUC of both ratios, the mean ratio inside groups, and how many labels have moments."""
    one, other = np.triu_indices(len(groups), 1)
    same = groups[one] == groups[other]
    found: dict[str, Any] = {"labels_with_moments": float(np.mean([len(s.labels) for s in summaries]))}
    ratios = {
        "two-sample": similarity.two_sample_ratio(*similarity.pooled_moments(summaries)),
        "shared-label": similarity.shared_label_ratio(summaries),
    }
    for name, ratio in ratios.items():
        # Where nothing is known nothing speaks against the two: 1, what noise explains.
        values = np.nan_to_num(ratio, nan=1.0)[one, other]
        found[name] = {
            "auc": float(roc_auc_score(same, -values)) if 0 < same.sum() < len(same) else None,
            "inside": float(values[same].mean()) if same.any() else None,
            "outside": float(values[~same].mean()) if not same.all() else None,
        }
    return found


def find(given: argparse.Namespace) -> dict[str, Any]:
    """Question 1: setting → examples → ε → one entry a seed and draw."""
    found: dict[str, Any] = {}
    for setting in given.settings:
        for seed in range(given.seeds):
            clients, groups = features(given.data, given.work / "features", setting, seed)
            for size in SIZES:
                cut = [(x[:size], y[:size]) for x, y in clients]
                here = found.setdefault(setting, {}).setdefault(str(size), {})
                here.setdefault("none", []).append(judged(summaries_of(cut, None, seed), groups))
                for epsilon in given.epsilons:
                    for draw in range(given.draws):
                        told = summaries_of(cut, epsilon, 1000 * seed + draw)
                        here.setdefault(f"{epsilon:g}", []).append(judged(told, groups))
        for size, by_epsilon in found[setting].items():
            aucs = {e: np.mean([f["two-sample"]["auc"] for f in entries]) for e, entries in by_epsilon.items()}
            print(setting, size, {e: round(float(auc), 3) for e, auc in aucs.items()}, flush=True)
    return found


def variants(given: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Question 2: name → method and [privacy]."""
    summary = {"summary": {"epsilon": SUMMARY_EPSILON, "delta": DELTA}}
    found: dict[str, dict[str, Any]] = {
        "local": {"method": "local"},
        "own-prior": {"method": "own-prior"},
        f"summary {SUMMARY_EPSILON:g}": {"method": "own-prior", "privacy": summary},
    }
    for epsilon in [] if given.summary_only else given.epsilons:
        for clip in given.clips:
            update = {"update": {"epsilon": epsilon, "delta": DELTA, "clip": clip}}
            name = f"summary {SUMMARY_EPSILON:g}, updates {epsilon:g}, clip {clip:g}"
            found[name] = {"method": "own-prior", "privacy": {**summary, **update}}
        steps = {"training": {"epsilon": epsilon, "delta": DELTA, "rate": RATE}}
        name = f"summary {SUMMARY_EPSILON:g}, training {epsilon:g}"
        found[name] = {"method": "own-prior", "privacy": {**summary, **steps}}
    return found


def values_of(given: argparse.Namespace, source: Path, seed: int) -> dict[str, Any]:
    """A run's settings but for method and privacy."""
    return {
        "name": "run", "seed": seed, "rounds": given.rounds, "evaluate_every": given.rounds,
        "controls": False, "baselines": [],
        "model": {"name": "demo", "max_length": 64},
        "data": {
            "source": str(source), "clients": {"split": "column", "column": "client"},
        },
        "training": {"steps": 6, "device": given.device, "precision": "fp32"},
    }  # fmt: skip


def one(values: dict[str, Any], work: Path, setting: str) -> dict[str, Any]:
    """Carry out or continue one run: accuracies over clients, and what was spent."""
    config = make_config(values)
    folder = work / "runs" / f"{setting}-{config.run_id()}"
    done = resume(folder) if (folder / "config.toml").is_file() else run(config, folder)
    clients = {client["name"]: client["now"]["accuracy"] for client in done.summary["clients"]}
    spent = done.summary.get("privacy", {}).get("spent")
    return {**done.accuracy, "clients": clients, "spent": spent}


def accuracy(given: argparse.Namespace, found: dict[str, Any], keep: Callable[[], None]) -> None:
    """Into `found`, setting → variant → seed: accuracies over clients, and what was spent; kept one by one."""
    jobs: dict[Future[dict[str, Any]], tuple[str, str, int]] = {}
    os.environ["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // given.jobs))
    with ProcessPoolExecutor(given.jobs, multiprocessing.get_context("spawn")) as pool:
        for setting in given.settings:
            for seed in range(given.first_seed, given.first_seed + given.seeds):
                source = given.work / "tables" / f"{setting}-{given.examples}-{seed}.parquet"
                if not source.is_file():
                    source.parent.mkdir(parents=True, exist_ok=True)
                    plant(setting, given.data, given.examples, seed).to_parquet(source)
                for name, chosen in variants(given).items():
                    values = {**values_of(given, source, seed), **chosen}
                    jobs[pool.submit(one, values, given.work, setting)] = setting, name, seed
        for future in as_completed(jobs):
            setting, name, seed = jobs[future]
            entry = future.result()
            found.setdefault(setting, {}).setdefault(name, {})[str(seed)] = entry
            keep()
            print(setting, seed, f"{name}: {100 * entry['mean']:.1f} %", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--work", type=Path, default=Path("runs/privacy"))
    parser.add_argument("--out", type=Path, default=HERE / "curve.json")
    parser.add_argument("--settings", nargs="+", default=["tasks", "domains", "intents", "topics"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0, help="of runs")
    parser.add_argument("--device", default="cpu", help="of runs")
    parser.add_argument("--draws", type=int, default=5, help="of the noise on summaries")
    parser.add_argument("--rounds", type=int, default=16)
    parser.add_argument("--examples", type=int, default=96, help="rows a client in runs")
    parser.add_argument("--epsilons", type=float, nargs="+", default=[2.0, 4.0, 8.0])
    parser.add_argument("--clips", type=float, nargs="+", default=[0.1, 1.0], help="of updates; a public choice")
    parser.add_argument("--only", choices=["find", "accuracy"], help="one of both questions")
    parser.add_argument("--summary-only", action="store_true", help="no noise on updates or steps; for more seeds")
    parser.add_argument("--jobs", type=int, default=2)
    given = parser.parse_args()
    result: dict[str, Any] = json.loads(given.out.read_text()) if given.out.is_file() else {}
    bench, base, config = shared_model()
    paths = ("data", "work", "out", "jobs")
    asked = {name: value for name, value in vars(given).items() if name not in paths}
    result["arguments"] = [*(known for known in result.get("arguments", []) if known != asked), asked]
    result["environment"] = environment(config, base, bench)

    def keep() -> None:
        given.out.write_text(json.dumps(result, indent=1) + "\n")

    if given.only != "accuracy":
        result["find"] = find(given)
    if given.only != "find":
        accuracy(given, result.setdefault("accuracy", {}), keep)
    keep()


if __name__ == "__main__":
    main()
