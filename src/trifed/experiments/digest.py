"""From the folders of a comparison's runs to one dictionary: means, intervals, bytes, what is missing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trifed.common.errors import RunError
from trifed.experiments.compare_config import CompareConfig, Job
from trifed.experiments.pool import is_finished
from trifed.experiments.statistics import Right, interval, mean_over_clients
from trifed.experiments.tuning import best_rate, read_grid
from trifed.federation.run_folder import RunFolder
from trifed.methods import METHODS
from trifed.methods.base import logged_stage

Json = dict[str, Any]
PLATEAU = 0.01
"""A curve that rises by less over its last quarter is flat."""


def digest(config: CompareConfig, jobs: Sequence[Job], root: Path) -> Json:
    """Everything that a comparison's finished runs say.

    A partition is reported from those seeds that all its methods have finished: paired, or not at all.

    Raises:
        RunError: two runs of one partition and seed stand on different splits.
    """
    finished = [job for job in jobs if is_finished(root / job.folder)]
    _check_splits(finished, root)
    environments = [_read(root / job.folder, "environment.json") for job in finished[:1]]
    own = ("run_id", "trained_values", "sent_values")
    return {
        "name": config.name,
        "methods": config.methods,
        "partitions": config.partition_names(),
        "seeds": config.seeds,
        "finished": len(finished) == len(jobs),
        "configuration": config.model_dump(mode="json"),
        "environment": {k: v for e in environments for k, v in e.items() if k not in own},
        "missing": [_missing(job, root) for job in jobs if job not in finished],
        "tuning": _tuning(config, root),
        "results": {
            partition: found
            for partition in config.partition_names()
            if (found := _partition(config, partition, [j for j in finished if j.partition == partition], root))
        },
    }


def _check_splits(jobs: Sequence[Job], root: Path) -> None:
    known: dict[tuple[str, int], tuple[str, Job]] = {}
    for job in jobs:
        found = _read(root / job.folder, "split.json")["content_hash"]
        first, other = known.setdefault((job.partition, job.config.seed), (found, job))
        if found != first:
            raise RunError(
                f"{root}: '{job}' and '{other}' stand on different splits, because the data changed in between; "
                f"remove the folders of one of them ({job.folder}) and run the comparison again"
            )


def _read(folder: Path, name: str) -> Any:
    return json.loads((folder / name).read_text(encoding="utf-8"))


def _missing(job: Job, root: Path) -> Json:
    folder = root / job.folder
    state = "not started"
    if (folder / "config.toml").is_file():
        rounds = [e["round"] for e in RunFolder(folder).events() if e["event"] == "trained"]
        state = f"broken off in round {max(rounds, default=0)} of {job.config.rounds}"
    return {"partition": job.partition, "method": job.method, "seed": job.config.seed, "state": state}


def _tuning(config: CompareConfig, root: Path) -> Json:
    if config.tuning is None:
        return {}
    rounds = config.tuning.rounds or config.run.get("rounds")
    return {
        partition: {
            "seed": config.tuning.seed,
            "rounds": rounds,
            "methods": {
                method: {
                    "grid": {f"{rate:g}": reached for rate, reached in tried.items()},
                    "chosen": best_rate(tried),
                }
                for method, tried in methods.items()
                if tried
            },
        }
        for partition, methods in read_grid(config, root).items()
    }


def _partition(config: CompareConfig, partition: str, jobs: Sequence[Job], root: Path) -> Json | None:
    seeds = [s for s in config.seeds if {j.method for j in jobs if j.config.seed == s} == set(config.methods)]
    if not seeds:
        return None
    folders = {
        method: [root / j.folder for s in seeds for j in jobs if j.method == method and j.config.seed == s]
        for method in config.methods
    }
    rates = {j.method: j.config.training.learning_rate for j in jobs}
    right = {method: _right(folders[method], None) for method in config.methods}
    target = config.target if config.target is not None else mean_over_clients(right[config.methods[0]])
    references = config.references or config.methods[:1]
    controls = _controls([folder for method in config.methods for folder in folders[method]], len(seeds))
    return {
        "seeds": seeds,
        "metric": _read(folders[config.methods[0]][0], "summary.json").get("metric", "accuracy"),
        "clients": [client["name"] for client in _read(folders[config.methods[0]][0], "summary.json")["clients"]],
        "target": target,
        "tuned_on": config.tuned_on(partition),
        "methods": {
            method: {"learning_rate": rates[method], **_method(method, folders[method], right[method], target)}
            for method in config.methods
        },
        "controls": controls,
        "differences": {
            f"{method} minus {other}": {
                "mean": mean_over_clients(right[method]) - mean_over_clients(right[other]),
                "interval": interval(right[method], right[other]),
            }
            for place, other in enumerate(references)
            for method in config.methods
            if method not in references[: place + 1]  # two references are set against each other once
        },
    }


def _right(folders: Sequence[Path], control: str | None) -> Right:
    found = []
    for folder in folders:
        kept = _read(folder, "predictions.json")
        if control is None and "right" in kept:
            found += [np.array(shares) for shares in kept["right"].values()]
            continue
        predicted = kept["model"] if control is None else kept["controls"][control]
        found += [np.array(predicted[name]) == np.array(labels) for name, labels in kept["labels"].items()]
    return found


def _controls(folders: Sequence[Path], seeds: int) -> Json:
    """The controls of those runs that measured them, one a seed."""
    measured = [folder for folder in folders if _read(folder, "predictions.json")["controls"]][:seeds]
    names = list(_read(measured[0], "predictions.json")["controls"]) if measured else []
    result = {}
    for name in names:
        right = _right(measured, name)
        spreads = [_read(folder, "summary.json")["controls"][name] for folder in measured]
        result[name] = {
            "mean": mean_over_clients(right),
            "interval": interval(right),
            **{key: float(np.mean([s[key] for s in spreads])) for key in ("worst", "best")},
        }
    return result


def _method(name: str, folders: Sequence[Path], right: Right, target: float) -> Json:
    summaries = [_read(folder, "summary.json") for folder in folders]
    means = [s["accuracy"]["mean"] for s in summaries]
    curves = [s["curve"] for s in summaries]
    received = [s["accuracy_received"] for s in summaries]
    curve = _mean_curve(curves)
    # The first method's own mean may be the target: rounding must not keep it from reaching that.
    reached = next((p for p in curve if p["mean"] >= target - 1e-9), {"round": None, "bytes": None})
    return {
        "citation": METHODS[name].citation,
        "scored": logged_stage(METHODS[name].evaluated_model),
        "mean": float(np.mean(means)),
        "sd": float(np.std(means, ddof=1)) if len(means) > 1 else None,
        "interval": interval(right),
        **{key: _over(summaries, key) for key in ("worst", "best", "weighted_mean")},
        "perplexity": _perplexity(summaries),
        "mean_trained": float(np.mean([s["accuracy_trained"]["mean"] for s in summaries])),
        "mean_received": float(np.mean([a["mean"] for a in received])) if all(received) else None,
        "bytes": _bytes(folders, summaries),
        "rounds_to_target": reached["round"],
        "bytes_to_target": reached["bytes"],
        "seconds": float(np.mean([s["seconds_total"] for s in summaries])),
        "curve": curve,
        "plateau": plateau([p["mean"] for p in curve if p["round"]]),
        "client_accuracy": _client_means(summaries),
    }


def _perplexity(summaries: Sequence[Json]) -> float | None:
    known = [s["perplexity"]["mean"] for s in summaries if s.get("perplexity")]
    return float(np.mean(known)) if known else None


def _over(summaries: Sequence[Json], key: str) -> float:
    return float(np.mean([s["accuracy"][key] for s in summaries]))


def _client_means(summaries: Sequence[Json]) -> list[float | None]:
    found = []
    for clients in zip(*(s["clients"] for s in summaries), strict=True):
        values = [c["now"]["accuracy"] for c in clients if c["now"] and c["now"]["accuracy"] is not None]
        found.append(float(np.mean(values)) if values else None)
    return found


def _mean_curve(curves: Sequence[Sequence[Json]]) -> list[Json]:
    """The points that all seeds have, averaged."""
    keys = ("mean", "worst", "best", "valid_mean", "training_loss", "bytes")
    points = []
    for number in sorted(set.intersection(*({p["round"] for p in curve} for curve in curves))):
        here = [next(p for p in curve if p["round"] == number) for curve in curves]
        known = {key: [p[key] for p in here if p[key] is not None] for key in keys}
        points.append({"round": number} | {k: float(np.mean(v)) if v else None for k, v in known.items()})
    return points


def plateau(means: Sequence[float]) -> Json:
    """Rise of the mean accuracy from the third to the last quarter of the evaluated rounds.

    Fewer than four points have no quarters: then nothing is said.
    """
    quarter = len(means) // 4
    if not quarter:
        return {"rise_in_last_quarter": None, "reached": None}
    rise = float(np.mean(means[-quarter:]) - np.mean(means[-2 * quarter : -quarter]))
    return {"rise_in_last_quarter": rise, "reached": rise < PLATEAU}


def _bytes(folders: Sequence[Path], summaries: Sequence[Json]) -> Json:
    """Per client: of one round up and down, and once before round 1; and all bytes of a run. Means over seeds."""
    clients = len(summaries[0]["clients"])
    exchanged = [e for folder in folders for e in RunFolder(folder).events() if e["event"] == "trained"]
    messages = {way: [sum(e[way].values()) for e in exchanged if e[way]] for way in ("up", "down")}
    once_up = [s["bytes"]["summaries"] + s["bytes"]["opening_up"] for s in summaries]
    return {
        "up_per_round": float(np.mean(messages["up"])) if messages["up"] else 0.0,
        "down_per_round": float(np.mean(messages["down"])) if messages["down"] else 0.0,
        "once_up": float(np.mean(once_up)) / clients,
        "once_down": float(np.mean([s["bytes"]["opening_down"] for s in summaries])) / clients,
        "total": float(np.mean([s["bytes"]["total"] for s in summaries])),
    }
