"""Learning rates: one grid for all methods, the best mean validation accuracy, on a seed that is not reported."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from trifed.common.dict_merge import deep_merge
from trifed.config.run import make_config
from trifed.experiments.compare_config import CompareConfig, Job, Tuning

Grid = dict[str, dict[str, dict[float, float]]]
"""Partition → method → rate → mean validation accuracy after the tuning rounds."""

STEP = 3.0
"""A method that does best at an end of the grid gets a rate three times beyond it."""


def tune(config: CompareConfig, tuning: Tuning, root: Path, carry_out: Callable[[Sequence[Job]], None]) -> None:
    """Run the grid, and beyond its ends where a method does best there.

    `carry_out` runs the jobs that are not finished.
    """
    wanted = {(p, m): list(tuning.learning_rates) for p in tuned_partitions(config) for m in config.methods}
    for extension in range(tuning.extend + 1):
        carry_out([_job(config, tuning, p, m, rate) for (p, m), rates in wanted.items() for rate in rates])
        if extension == tuning.extend:
            return
        grid = read_grid(config, root)
        beyond = {
            key: list(_beyond({rate: grid[key[0]][key[1]][rate] for rate in rates}))
            for key, rates in wanted.items()
        }
        if not any(beyond.values()):
            return
        for key, rates in beyond.items():
            wanted[key] += rates


def tuned_partitions(config: CompareConfig) -> list[str]:
    """The partitions on which rates are chosen, in order."""
    return list(dict.fromkeys(p for p in map(config.tuned_on, config.partition_names()) if p is not None))


def best_rate(tried: dict[float, float]) -> float:
    """The rate with the best validation accuracy, the smaller one of equals."""
    return max(sorted(tried), key=lambda rate: tried[rate])


def read_grid(config: CompareConfig, root: Path) -> Grid:
    """What the finished tuning runs reached."""
    grid: Grid = {}
    for partition in tuned_partitions(config):
        grid[partition] = {}
        for method in config.methods:
            folders = sorted((root / "tuning" / partition / method).glob("rate-*"))
            grid[partition][method] = dict(sorted(_reached(folders)))
    return grid


def _reached(folders: Sequence[Path]) -> Iterator[tuple[float, float]]:
    for folder in folders:
        if (folder / "summary.json").is_file():
            curve: list[dict[str, Any]] = json.loads((folder / "summary.json").read_text(encoding="utf-8"))[
                "curve"
            ]
            yield float(folder.name.removeprefix("rate-")), float(curve[-1]["valid_mean"])


def _beyond(tried: dict[float, float]) -> Iterator[float]:
    best, rates = best_rate(tried), sorted(tried)
    if best == rates[-1]:
        yield float(f"{best * STEP:.3g}")
    elif best == rates[0]:
        yield float(f"{best / STEP:.3g}")


def _job(config: CompareConfig, tuning: Tuning, partition: str, method: str, rate: float) -> Job:
    values = deep_merge(
        config.run_values(partition, method),
        {
            "name": f"rate-{rate:g}",
            "seed": tuning.seed,
            "controls": False,
            "training": {"learning_rate": rate},
            **({"rounds": tuning.rounds} if tuning.rounds else {}),
        },
    )
    return Job(partition, method, make_config(values), Path("tuning") / partition / method / f"rate-{rate:g}")
