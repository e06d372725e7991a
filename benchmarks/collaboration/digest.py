"""What a setting's runs say: for each variant its best learning rate, its clients' accuracy and its bytes.

Accuracy is given for the model that a client has just trained (`trained`), for the one that comes back after the
last exchange (`received`), and for what `own-prior` makes of both (`between`); all are test accuracies of the last
round, by client. Bytes are all that a client sends in a run, the one-time summary included, by round.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Json = dict[str, Any]
STAGES = ("trained", "received", "between")


def chosen(work: Path, setting: str, seeds: Sequence[int]) -> dict[str, float]:
    """By variant, the learning rate whose mean validation accuracy is best, the better stage counting.

    The mean is over the seeds; a rate that was not run on all of them is not compared.
    """
    runs = [_runs(work, setting, seed) for seed in seeds]
    best: dict[str, tuple[float, float]] = {}
    for variant, rate in sorted(set.intersection(*(set(found) for found in runs))):
        facts = [found[variant, rate]["valid"] for found in runs]
        reached = max(sum(valid[stage] for valid in facts) / len(facts) for stage in facts[0])
        best[variant] = max(best.get(variant, (0.0, 0.0)), (reached, -rate))
    return {variant: -rate for variant, (_, rate) in best.items()}


def tried(work: Path, setting: str, variant: str, seeds: Sequence[int]) -> set[float]:
    """The rates at which a variant was run on all of these seeds."""
    runs = [_runs(work, setting, seed) for seed in seeds]
    return {rate for name, rate in set.intersection(*(set(found) for found in runs)) if name == variant}


def digest(work: Path, setting: str, seed: int, tune_on: Sequence[int]) -> Json:
    """By variant, a seed's run at the chosen rate, and what each rate had on validation data."""
    runs = _runs(work, setting, seed)
    found: Json = {}
    for variant, rate in chosen(work, setting, tune_on).items():
        if (variant, rate) in runs:
            tried = {f"{r:g}": facts["valid"] for (name, r), facts in runs.items() if name == variant}
            found[variant] = runs[variant, rate] | {"valid of all rates": tried}
    return found


def _runs(work: Path, setting: str, seed: int) -> dict[tuple[str, float], Json]:
    folders = sorted((work / f"{setting}-{seed}").glob("*@*"))
    done = [_facts(folder) for folder in folders if (folder / "summary.json").is_file()]
    return {(facts["variant"], facts["learning_rate"]): facts for facts in done}


def conditions(work: Path, setting: str, seed: int) -> Json:
    """Configuration, versions and hardware, from one of the setting's runs."""
    folder = next(f for f in sorted((work / f"{setting}-{seed}").iterdir()) if (f / "summary.json").is_file())
    with (folder / "config.toml").open("rb") as file:
        values = tomllib.load(file)
    values["data"]["source"] = f"groups.plant({setting!r}, …)"
    return {"configuration": values, "environment": json.loads((folder / "environment.json").read_text())}


def _facts(folder: Path) -> Json:
    summary = json.loads((folder / "summary.json").read_text())
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    last = [e for e in events if e["event"] == "scores" and e["round"] == summary["rounds"]]
    by_stage = {stage: [e for e in last if e["stage"] == stage] for stage in STAGES}
    by_stage = {stage: scores for stage, scores in by_stage.items() if scores}
    return {
        "variant": folder.name.split("@")[0],
        "learning_rate": float(folder.name.split("@")[1]),
        "valid": {s: sum(e["valid"]["accuracy"] for e in found) / len(found) for s, found in by_stage.items()},
        "clients": {stage: [e["test"]["accuracy"] for e in found] for stage, found in by_stage.items()},
        "bytes_up": round(summary["bytes"]["up"] / summary["rounds"] / len(summary["clients"])),
        "curve": [[point["round"], point["mean"]] for point in summary["curve"]],
        "controls": {name: list(control["clients"].values()) for name, control in summary["controls"].items()},
    }
