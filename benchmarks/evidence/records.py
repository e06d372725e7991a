"""What is kept of each run of the comparison: a line of results/SET.jsonl.

A record holds the settings, versions, hardware and commit of the run, its bytes, the curve, and what is needed to
compare it in pairs with another: which test rows it got right, or the loss of each client.
"""

from __future__ import annotations

import json
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from trifed.federation.results import perplexity, valid_value

HERE = Path(__file__).resolve().parent
Json = dict[str, Any]
PACKAGES = ("torch", "transformers", "peft", "numpy", "scikit-learn")


def results(name: str, folder: Path = HERE / "results") -> list[Json]:
    """Return the records of a set."""
    path = folder / f"{name}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def reported(record: Json) -> Json | None:
    """Return what a record keeps of each client, by name, for comparisons in pairs; None if it is of tuning."""
    found: Json | None = record.get("answers") or record.get("losses")
    return found


def facts(path: Path, summary: Json, metric: str = "accuracy", *, with_answers: bool) -> Json:
    """Return what a record keeps of a run.

    `valid`, `mean`, `worst`, `best` and the curve are of the set's metric. Answers are the number of a client's
    test rows, and a bit for each that is right, as hexadecimal digits. Of language models the loss of each client
    is kept instead, in nats a token.
    """
    split = json.loads((path / "split.json").read_text())
    by_accuracy = metric == "accuracy"
    spread = summary["accuracy"] if by_accuracy else summary["metrics"][metric]
    found: Json = {
        "valid": valid_value(summary, metric),
        **{key: spread[key] for key in ("mean", "worst", "best")},
        "trained": (summary["accuracy_trained"] or {}).get("mean"),
        "received": (summary["accuracy_received"] or {}).get("mean"),
        "bytes": summary["bytes"],
        "curve": [point_of(point, metric) for point in summary["curve"]],
        "split": split["content_hash"],
        "train_examples": [client["train"] for client in split["clients"]],
    }
    if not by_accuracy:
        found |= {
            "metric": metric,
            "accuracy": summary["accuracy"]["mean"],
            "perplexity": perplexity(summary["clients"])["mean"],
        }
        if with_answers:
            found["losses"] = {client["name"]: client["now"]["loss"] for client in summary["clients"]}
    elif with_answers:
        kept = json.loads((path / "predictions.json").read_text())
        found["answers"] = {
            client: f"{len(labels)}:"
            + np.packbits(np.array(kept["model"][client]) == np.array(labels)).tobytes().hex()
            for client, labels in kept["labels"].items()
        }
    return found


def point_of(point: Json, metric: str) -> Json:
    """Return what a record keeps of a point of the curve: round, bytes, means of the metric over the clients."""
    if metric == "accuracy":
        return {key: point[key] for key in ("round", "mean", "valid_mean", "bytes")}
    return {
        "round": point["round"],
        "mean": point["metrics"][metric],
        "valid_mean": point["valid_metrics"][metric],
        "bytes": point["bytes"],
    }


def environment() -> Json:
    """Return versions, hardware and the commit of the code."""
    git = ["git", "-C", str(HERE), "rev-parse", "--short", "HEAD"]
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if "model name" in line] if info.is_file() else []
    return {
        "commit": subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip(),
        "packages": {package: version(package) for package in PACKAGES},
        "python": platform.python_version(),
        "processor": names[0].split(":")[1].strip() if names else platform.processor(),
    }
