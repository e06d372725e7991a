"""The file `against.json`: its runs, medians and ratios.

::

    environments   id → versions, hardware, hash of the code, and why a contestant was left out
    jobs           name → configuration and seed
    runs           one entry for each run of a contestant, in order
    summary        environment → job → medians, all values, and trifed's ratios to each other contestant
"""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median
from typing import Any

Json = dict[str, Any]
MEASURES = ("seconds", "cpu_seconds", "peak_mib")
LOSS_TOLERANCE = 0.03
"""Largest difference of the contestants' training losses of the last round, nats. Dropout draws differ."""
OTHER_METHOD = "trifed-defaults"


def load(path: Path | None) -> Json:
    """Return the content of a file, or that of an empty one where there is none."""
    if path and path.is_file():
        return dict(json.loads(path.read_text()))
    return {"environments": {}, "jobs": {}, "runs": [], "summary": {}}


def save(held: Json, path: Path) -> None:
    """Write the file in one piece, with a new summary."""
    held["summary"] = summarise(held)
    part = path.with_name(f".{path.name}.partial")
    part.write_text(json.dumps(held, indent=1) + "\n")
    part.replace(path)


def runs_of(held: Json, environment: str, job: str) -> dict[str, dict[int, Json]]:
    """Return the runs of a job by contestant and repetition."""
    found: dict[str, dict[int, Json]] = {}
    for run in held["runs"]:
        if run["environment"] == environment and run["job"] == job:
            found.setdefault(run["contestant"], {})[run["repetition"]] = run
    return found


def summarise(held: Json) -> Json:
    """Return medians and all values of each environment and job, and trifed's paired ratios."""
    pairs = dict.fromkeys((run["environment"], run["job"]) for run in held["runs"])
    summary: Json = {}
    for environment, job in pairs:
        runs = runs_of(held, environment, job)
        contestants = {name: _of_one(list(repetitions.values())) for name, repetitions in runs.items()}
        ratios = {
            name: _ratios(runs["trifed"], repetitions)
            for name, repetitions in runs.items()
            if name not in ("trifed", OTHER_METHOD) and set(runs.get("trifed", {})) & set(repetitions)
        }
        problems = same_work(held, environment, job)
        summary.setdefault(environment, {})[job] = {
            "contestants": contestants,
            "trifed_to": ratios,
            "same_work": not problems,
        }
    return summary


def _of_one(runs: list[Json]) -> Json:
    medians = {name: median(run[name] for run in runs) for name in MEASURES}
    values = {f"all_{name}": [run[name] for run in runs] for name in MEASURES}
    return {**medians, **values, "last_loss": round(median(run["losses"][-1] for run in runs), 4)}


def _ratios(ours: dict[int, Json], theirs: dict[int, Json]) -> Json:
    """Return the median over repetitions of trifed's value to the other's of the same repetition."""
    both = sorted(set(ours) & set(theirs))
    return {name: round(median(ours[n][name] / theirs[n][name] for n in both), 3) for name in MEASURES}


def same_work(held: Json, environment: str, job: str) -> list[str]:
    """Return a sentence for each run that did not do the job's work, or that learned something else."""
    about, problems = held["jobs"][job], []
    runs = runs_of(held, environment, job)
    compared = [run for name, found in runs.items() if name != OTHER_METHOD for run in found.values()]
    expected = {"steps": about["rounds"] * about["clients"] * about["steps"]}
    expected |= {name: about[name] for name in ("examples", "padded_tokens")}
    for run in compared:
        problems += [
            f"{run['contestant']}: got {run[name]} {name}, expected {count}"
            for name, count in expected.items()
            if name in run and run[name] != count
        ]
    losses = {run["contestant"]: run["losses"][-1] for run in compared}
    if losses and max(losses.values()) - min(losses.values()) > LOSS_TOLERANCE:
        listed = ", ".join(f"{name} {loss:.4f}" for name, loss in losses.items())
        problems.append(f"training losses of the last round differ by more than {LOSS_TOLERANCE}: {listed}")
    return problems
