"""What a setting's runs say: for each variant its best learning rate, its clients' accuracy and its bytes.

Accuracy is given for the model that a client has just trained (`trained`), for the one that comes back after the
last exchange (`received`), and for what `own-prior` makes of both (`between`); all are test accuracies of the last
round, by client. Bytes are all that a client sends in a run, the one-time summary included, by round.
"""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

Json = dict[str, Any]
STAGES = ("trained", "received", "between")


def digest(work: Path, setting: str, seed: int) -> Json:
    """By variant, the run whose mean validation accuracy is best, the better stage counting."""
    found: dict[str, Json] = {}
    for folder in sorted((work / f"{setting}-{seed}").glob("*")):
        if not (folder / "summary.json").is_file():
            continue
        variant, facts = folder.name.split("@")[0], _facts(folder)
        if variant not in found or max(facts["valid"].values()) > max(found[variant]["valid"].values()):
            found[variant] = facts
    return found


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
        "learning_rate": float(folder.name.split("@")[1]),
        "valid": {s: sum(e["valid"]["accuracy"] for e in found) / len(found) for s, found in by_stage.items()},
        "clients": {stage: [e["test"]["accuracy"] for e in found] for stage, found in by_stage.items()},
        "bytes_up": round(summary["bytes"]["up"] / summary["rounds"] / len(summary["clients"])),
        "curve": [[point["round"], point["mean"]] for point in summary["curve"]],
        "controls": {name: list(control["clients"].values()) for name, control in summary["controls"].items()},
    }
