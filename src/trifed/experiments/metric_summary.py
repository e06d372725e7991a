"""Metrics and kept rounds of a method in a comparison: means over the runs of its seeds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

Json = dict[str, Any]
ENDS = ("mean", "worst", "best")


def metric_summary(summaries: Sequence[Json]) -> Json:
    """Return the metrics of a method, and the rounds whose models were kept.

    Args:
        summaries: Content of summary.json of each seed's run; all have the same clients.

    Returns:
        `metrics`: for each metric that every run has, mean, worst and best, and the value of each client;
        `kept_round` and `kept_rounds`, if rounds were chosen.
    """
    names = [name for name in summaries[0].get("metrics", {}) if all(name in s["metrics"] for s in summaries)]
    by_client = list(zip(*([c["now"] or {} for c in s["clients"]] for s in summaries), strict=True))
    metrics = {
        name: {
            **{end: _mean(s["metrics"][name][end] for s in summaries) for end in ENDS},
            "client_accuracy": [_mean(scores.get(name) for scores in seeds) for seeds in by_client],
        }
        for name in names
    }
    kept = [s["kept_round"]["round"] for s in summaries if "kept_round" in s]
    return {"metrics": metrics, **({"kept_round": _mean(kept), "kept_rounds": kept} if kept else {})}


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
