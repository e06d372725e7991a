"""Choice of learning rates: one grid for all methods, on a seed that is not reported."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from trifed.common.dict_merge import deep_merge
from trifed.experiments.compare_config import CompareConfig, Job, Tuning
from trifed.experiments.pool import is_finished
from trifed.federation.results import valid_value
from trifed.federation.run_folder import RunFolder
from trifed.federation.training.metrics import best_of

Tried = dict[float, float | None]
"""Rate → mean over clients of the deciding metric on validation data, after the tuning rounds."""
Grid = dict[str, dict[str, Tried]]
"""Partition → method → what was tried."""

STEP = 3.0
"""Factor from an end of the grid to the next rate beyond it."""


def tune(config: CompareConfig, tuning: Tuning, root: Path, run_jobs: Callable[[list[Job]], None]) -> None:
    """Run the grid, and further rates for methods that are best at one of its ends.

    Args:
        config: The comparison.
        tuning: Its settings of this choice.
        root: The comparison's folder.
        run_jobs: Runs the jobs that are not finished.
    """
    planned = {(p, m): list(tuning.learning_rates) for p in tuned_partitions(config) for m in config.methods}
    for _ in range(tuning.extend + 1):
        run_jobs([_job(config, tuning, p, m, rate) for (p, m), rates in planned.items() for rate in rates])
        grid = read_grid(config, root)
        beyond = {
            (p, m): _beyond({rate: grid[p][m][rate] for rate in rates}, deciding_metric(config, p))
            for (p, m), rates in planned.items()
        }
        if not any(beyond.values()):
            return
        planned = {key: rates + beyond[key] for key, rates in planned.items()}


def tuned_partitions(config: CompareConfig) -> list[str]:
    """Return the partitions on which rates are chosen, in order."""
    return list(dict.fromkeys(p for p in map(config.tuned_on, config.partition_names()) if p is not None))


def deciding_metric(config: CompareConfig, partition: str) -> str:
    """Return the metric that decides on a partition."""
    return str(deep_merge(config.run, config.partitions.get(partition, {})).get("metric", "accuracy"))


def best_rate(tried: Tried, metric: str = "accuracy") -> float:
    """Return the rate with the best value of a metric, the smallest of equal ones, and if none has a value."""
    best = best_of(metric, dict(sorted(tried.items())))
    return min(tried) if best is None else best


def read_grid(config: CompareConfig, root: Path) -> Grid:
    """Read the deciding metric of every finished tuning run, on validation data."""
    partitions, folder = tuned_partitions(config), root / "tuning"
    return {
        p: {method: _tried(folder / p / method, deciding_metric(config, p)) for method in config.methods}
        for p in partitions
    }


def _tried(folder: Path, metric: str) -> Tried:
    """Read a metric of a method's finished tuning runs on validation data, by rate."""
    finished = {float(run.name.removeprefix("rate-")): run for run in folder.glob("rate-*") if is_finished(run)}
    return {
        rate: valid_value(RunFolder(run).read_json("summary.json"), metric)
        for rate, run in sorted(finished.items())
    }


def _beyond(tried: Tried, metric: str) -> list[float]:
    """Return the next rate beyond the end of the grid at which the best one is, if it is at an end."""
    best = best_rate(tried, metric)
    if best == max(tried):
        return [float(f"{best * STEP:.3g}")]
    return [float(f"{best / STEP:.3g}")] if best == min(tried) else []


def _job(config: CompareConfig, tuning: Tuning, partition: str, method: str, rate: float) -> Job:
    rounds = {"rounds": tuning.rounds} if tuning.rounds else {}
    changes = {"seed": tuning.seed, "controls": False, "training": {"learning_rate": rate}, **rounds}
    return config.job("tuning", partition, method, f"rate-{rate:g}", {"name": f"rate-{rate:g}", **changes})
