"""Summary of a comparison's finished runs: means, intervals, bytes, and what is missing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trifed.common.errors import RunError
from trifed.common.lock import is_held
from trifed.experiments.compare_config import CompareConfig, Job
from trifed.experiments.metric_summary import metric_summary
from trifed.experiments.pool import is_finished
from trifed.experiments.tuning import best_rate, deciding_metric, read_grid
from trifed.federation.run_folder import RunFolder
from trifed.methods import METHODS, ORIGINS
from trifed.methods.base import logged_stage
from trifed.reports.results import Deciding, Plateau

Json = dict[str, Any]
Right = Sequence[NDArray[np.bool_ | np.float64]]
"""For each client of each seed, which test rows are right, (n_rows,) bool, or which share of each is, float."""
RESAMPLES = 4000
"""Bootstrap samples of an interval."""
PLAIN_LORA = ("fedavg_lora_would_send", "times_fewer")
"""Fields of a run's bytes that compare it with plain federated LoRA."""


def summarise_comparison(config: CompareConfig, jobs: Sequence[Job], root: Path, under_way: bool = False) -> Json:
    """Summarise a comparison's finished runs.

    A method's numbers are those of the seeds that it has finished; a difference of two methods is that of the
    seeds that both have finished, so that it is paired.

    Args:
        config: The comparison's settings.
        jobs: All its runs.
        root: Its folder.
        under_way: True if a process works on it, which will start the runs that are missing.

    Raises:
        RunError: Two runs of one partition and seed have different splits.
    """
    finished = [job for job in jobs if is_finished(root / job.folder)]
    _check_splits(finished, root)
    environment = RunFolder(root / finished[0].folder).read_json("environment.json") if finished else {}
    results = {
        p: _partition(config, p, [j for j in finished if j.partition == p], root) for p in config.partition_names()
    }
    return {
        "name": config.name,
        "methods": config.methods,
        "partitions": config.partition_names(),
        "seeds": config.seeds,
        "finished": len(finished) == len(jobs),
        "configuration": config.model_dump(mode="json"),
        "environment": {
            key: value
            for key, value in environment.items()
            if key not in ("run_id", "trained_values", "sent_values")
        },
        "missing": [_missing(job, root, under_way) for job in jobs if job not in finished],
        "tuning": {
            partition: {
                "seed": config.tuning.seed,
                "deciding": Deciding.of(metric).model_dump(),
                "rounds": config.tuning.rounds or config.run.get("rounds"),
                "methods": {
                    method: {
                        "grid": {f"{rate:g}": value for rate, value in tried.items()},
                        "chosen": best_rate(tried, metric),
                    }
                    for method, tried in methods.items()
                    if tried
                },
            }
            for partition, methods in read_grid(config, root).items()
            for metric in [deciding_metric(config, partition)]
            if config.tuning
        },
        "results": {partition: summary for partition, summary in results.items() if summary},
    }


def _check_splits(jobs: Sequence[Job], root: Path) -> None:
    known: dict[tuple[str, int], tuple[str, Job]] = {}
    for job in jobs:
        split = RunFolder(root / job.folder).read_json("split.json")["content_hash"]
        first, other = known.setdefault((job.partition, job.config.seed), (split, job))
        if split != first:
            raise RunError(
                f"{root}: '{job}' and '{other}' have different splits, because the data changed in between; "
                f"remove the folders of one of them ({job.folder}) and run the comparison again"
            )


def _missing(job: Job, root: Path, under_way: bool) -> Json:
    """Return a run that is not finished, and its state: running, stopped, waiting for its turn, or not started."""
    folder, state = RunFolder(root / job.folder), "waiting" if under_way else "not started"
    if (folder.path / "config.toml").is_file():
        rounds = [e["round"] for e in folder.events() if e["event"] == "trained"]
        what = "running" if is_held(folder.path) else "stopped"
        state = f"{what} in round {max(rounds, default=0)} of {job.config.rounds}"
    return {"partition": job.partition, "method": job.method, "seed": job.config.seed, "state": state}


def _partition(config: CompareConfig, partition: str, jobs: Sequence[Job], root: Path) -> Json | None:
    """Summarise one partition; None if no run is finished.

    Every method has the seeds that it has finished. A method without any is left out.
    """
    folders = {
        method: {
            s: RunFolder(root / j.folder)
            for s in config.seeds
            for j in jobs
            if j.method == method and j.config.seed == s
        }
        for method in config.methods
    }
    folders = {method: by_seed for method, by_seed in folders.items() if by_seed}
    if not folders:
        return None
    rates = {j.method: j.config.training.learning_rate for j in jobs}
    right = {method: _right(list(by_seed.values())) for method, by_seed in folders.items()}
    target = config.target
    if target is None and config.methods[0] in right:
        target = mean_over_clients(right[config.methods[0]])
    first = next(iter(next(iter(folders.values())).values())).read_json("summary.json")
    seeds = [s for s in config.seeds if any(s in by_seed for by_seed in folders.values())]
    everything = [folder for by_seed in folders.values() for folder in by_seed.values()]
    return {
        "seeds": seeds,
        "metric": first.get("metric", "accuracy"),
        "deciding": Deciding.of(deciding_metric(config, partition)).model_dump(),
        "clients": [client["name"] for client in first["clients"]],
        "target": target,
        "tuned_on": config.tuned_on(partition),
        "methods": {
            method: {
                "learning_rate": rates[method],
                "seeds": list(by_seed),
                **_method(method, list(by_seed.values()), right[method], target),
            }
            for method, by_seed in folders.items()
        },
        "controls": _controls(everything, len(seeds)),
        "differences": _differences(config, folders),
    }


def _differences(config: CompareConfig, folders: Mapping[str, Mapping[int, RunFolder]]) -> Json:
    """Return each method's paired difference from each reference, over the seeds that both have."""
    references = config.references or config.methods[:1]
    found = {}
    for place, other in enumerate(references):
        for method in config.methods:
            if method in references[: place + 1]:  # two references are compared with each other once
                continue
            seeds = [s for s in folders.get(method, {}) if s in folders.get(other, {})]
            if seeds:
                mine, theirs = (_right([folders[name][s] for s in seeds]) for name in (method, other))
                found[f"{method} minus {other}"] = {
                    "mean": mean_over_clients(mine) - mean_over_clients(theirs),
                    "interval": interval(mine, theirs),
                    "seeds": seeds,
                }
    return found


def _right(folders: Sequence[RunFolder], control: str | None = None) -> Right:
    """Return which test rows of each run's clients are right, by its method or by a control."""
    right = []
    for kept in (folder.read_json("predictions.json") for folder in folders):
        if control is None and "right" in kept:
            right += [np.array(shares) for shares in kept["right"].values()]
        else:
            predicted = kept["model"] if control is None else kept["controls"][control]
            right += [np.array(predicted[name]) == np.array(labels) for name, labels in kept["labels"].items()]
    return right


def _controls(folders: Sequence[RunFolder], seeds: int) -> Json:
    """Summarise the controls, which were measured in one run of each seed."""
    measured = [folder for folder in folders if folder.read_json("predictions.json")["controls"]][:seeds]
    result = {}
    for name in measured[0].read_json("predictions.json")["controls"] if measured else []:
        right = _right(measured, name)
        spreads = [folder.read_json("summary.json")["controls"][name] for folder in measured]
        extremes = {key: _mean(spread[key] for spread in spreads) for key in ("worst", "best")}
        result[name] = {"mean": mean_over_clients(right), "interval": interval(right), **extremes}
    return result


def _method(name: str, folders: Sequence[RunFolder], right: Right, target: float | None) -> Json:
    """Summarise a method's runs, one of each seed."""
    summaries = [folder.read_json("summary.json") for folder in folders]
    accuracies, received = ([s[key] for s in summaries] for key in ("accuracy", "accuracy_received"))
    means = [accuracy["mean"] for accuracy in accuracies]
    curve = _mean_curve([s["curve"] for s in summaries])
    by_client = zip(*([c["now"] for c in s["clients"]] for s in summaries), strict=True)
    # The target may be the first method's own mean, which it must reach in spite of rounding.
    passed = (p for p in curve if target is not None and p["mean"] >= target - 1e-9)
    reached = next(passed, {"round": None, "bytes": None})
    return {
        "citation": METHODS[name].citation,
        **({"origin": str(ORIGINS[name])} if name in ORIGINS else {}),
        "scored": logged_stage(METHODS[name].evaluated_model),
        "mean": float(np.mean(means)),
        "sd": float(np.std(means, ddof=1)) if len(means) > 1 else None,
        "interval": interval(right),
        **{key: _mean(accuracy[key] for accuracy in accuracies) for key in ("worst", "best", "weighted_mean")},
        "perplexity": _mean(s["perplexity"]["mean"] for s in summaries if s.get("perplexity")),
        **metric_summary(summaries),
        "mean_trained": _mean((s["accuracy_trained"] or {}).get("mean") for s in summaries),
        "mean_received": _mean(accuracy["mean"] for accuracy in received) if all(received) else None,
        "bytes": _bytes(folders, summaries),
        "rounds_to_target": reached["round"],
        "bytes_to_target": reached["bytes"],
        "seconds": _mean(s["seconds_total"] for s in summaries),
        "curve": curve,
        "plateau": Plateau.of([p["mean"] for p in curve if p["round"]]).model_dump(),
        "client_accuracy": [_mean(scores["accuracy"] for scores in seeds if scores) for seeds in by_client],
    }


def _mean(values: Iterable[float | None]) -> float | None:
    """Return the mean of the values that are known."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _mean_curve(curves: Sequence[Sequence[Json]]) -> list[Json]:
    """Return the means of the points that all seeds have."""
    keys = ("mean", "worst", "best", "valid_mean", "training_loss", "bytes")
    points = [{point["round"]: point for point in curve} for curve in curves]
    shared = sorted(set.intersection(*map(set, points)))
    return [{"round": n} | {key: _mean(point[n][key] for point in points) for key in keys} for n in shared]


def _bytes(folders: Sequence[RunFolder], summaries: Sequence[Json]) -> Json:
    """Return a client's bytes in one round and once before round 1, and those of a whole run; means over seeds.

    Those of plain federated LoRA beside the whole run have the names that they have in summary.json.
    """
    clients, sizes = len(summaries[0]["clients"]), [s["bytes"] for s in summaries]
    trained = [e for folder in folders for e in folder.events() if e["event"] == "trained"]
    up, down = (_mean(sum(e[way].values()) for e in trained if e[way]) or 0.0 for way in ("up", "down"))
    return {
        "up_per_round": up,
        "down_per_round": down,
        "once_up": float(np.mean([size["summaries"] + size["opening_up"] for size in sizes])) / clients,
        "once_down": float(np.mean([size["opening_down"] for size in sizes])) / clients,
        "total": _mean(size["total"] for size in sizes),
        **_plain_lora(sizes),
    }


def _plain_lora(sizes: Sequence[Json]) -> Json:
    """Return the bits of a method's messages and the bytes of plain LoRA beside its runs; means over seeds.

    Args:
        sizes: The bytes in summary.json of each seed's run. Version 0.1.0 wrote no `bits`, and counted plain LoRA
            at 32 bits only.
    """
    names, wide = (tuple(f"{name}{end}" for name in PLAIN_LORA) for end in ("", "_at_32_bits"))
    if all("bits" in size for size in sizes):
        return {"bits": sizes[0]["bits"], **{key: _mean(size[key] for size in sizes) for key in (*names, *wide)}}
    return {
        key: _mean(size[key if "bits" in size else name] for size in sizes)
        for name, key in zip(names, wide, strict=True)
    }


def interval(right: Right, against: Right | None = None, *, seed: int = 0) -> tuple[float, float]:
    """Return a 95 % bootstrap interval of the mean accuracy over clients, or of its paired gain over `against`.

    Clients are drawn with replacement, and test rows within each drawn client; a row keeps the results of both
    methods. Clients without test rows are left out; the result is NaN if there are no others.
    """
    other = right if against is None else against
    gains = [
        mine.astype(np.float64) - (0.0 if against is None else theirs)
        for mine, theirs in zip(right, other, strict=True)
        if len(mine)
    ]
    if not gains:
        return float("nan"), float("nan")
    rng = np.random.default_rng(seed)
    outcomes = [np.unique(gain, return_counts=True) for gain in gains]
    total = np.zeros(RESAMPLES)
    for _ in gains:  # one position of the resampled clients at a time
        client = rng.integers(len(gains), size=RESAMPLES)
        for place, (values, counts) in enumerate(outcomes):
            here = client == place
            # Drawing rows with replacement is drawing how often each outcome occurs.
            drawn = rng.multinomial(counts.sum(), counts / counts.sum(), size=int(here.sum()))
            total[here] += drawn @ values / counts.sum()
    low, high = np.quantile(total / len(gains), (0.025, 0.975))
    return float(low), float(high)


def mean_over_clients(right: Right) -> float:
    """Return the mean accuracy over the clients that have test rows."""
    return float(np.mean([rows.mean() for rows in right if len(rows)]))
