"""Made-up comparisons of the shape that `trifed` writes, as large as a test needs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

SENT = {"local": 0, "ce-lora": 3_272, "fedavg-lora": 313_592}
MEANS = {"local": 0.74, "ce-lora": 0.74, "fedavg-lora": 0.85}
CONTROLS = {"probe-alone": 0.72, "probe-all": 0.85, "class-means": 0.75, "majority": 0.1}


def make_comparison(
    partitions: tuple[str, ...] = ("intents-0.5",),
    means: dict[str, float] | None = None,
    clients: int = 5,
    seeds: tuple[int, ...] = (0, 1),
) -> dict[str, Any]:
    """What comparison.json holds. `means`: each method's mean test accuracy."""
    means = MEANS if means is None else means
    return {
        "name": "three methods",
        "methods": list(means),
        "partitions": list(partitions),
        "seeds": list(seeds),
        "finished": True,
        "configuration": {"rounds": 16, "seeds": list(seeds), "adapter": {"rank": 8}},
        "environment": {"python": "3.11.7", "packages": {"trifed": "0.1.0"}, "device": "cpu"},
        "missing": [],
        "tuning": {partitions[0]: {"seed": 100, "rounds": 8, "methods": {method: _rates() for method in means}}},
        "results": {name: _partition(name, partitions[0], means, clients, seeds) for name in partitions},
    }


def write_comparison(folder: Path, comparison: dict[str, Any]) -> Path:
    """The folder of a comparison, without its runs."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "comparison.json").write_text(json.dumps(comparison), encoding="utf-8")
    return folder


def _rates() -> dict[str, Any]:
    return {"grid": {"0.001": 0.7, "0.003": 0.78, "0.01": 0.75, "0.03": None}, "chosen": 0.003}


def _partition(
    name: str, tuned_on: str, means: dict[str, float], clients: int, seeds: tuple[int, ...]
) -> dict[str, Any]:
    pairs = [(a, b) for place, a in enumerate(means) for b in list(means)[place + 1 :]]
    return {
        "seeds": list(seeds),
        "clients": [f"client-{number:02d}" for number in range(clients)],
        "target": 0.7,
        "tuned_on": tuned_on,
        "methods": {method: _method(method, mean, clients) for method, mean in means.items()},
        "controls": {control: _spread(mean) for control, mean in CONTROLS.items()},
        "differences": {
            f"{a} minus {b}": {"mean": means[a] - means[b], "interval": _around(means[a] - means[b], 0.03)}
            for a, b in pairs
        },
    }


def _around(middle: float, reach: float) -> list[float]:
    return [round(middle - reach, 4), round(middle + reach, 4)]


def _spread(mean: float) -> dict[str, Any]:
    return {"mean": mean, "interval": _around(mean, 0.03), "worst": mean - 0.1, "best": min(1.0, mean + 0.1)}


def _method(method: str, mean: float, clients: int) -> dict[str, Any]:
    sent = SENT.get(method, 20_000)
    once = 1_896 if method == "ce-lora" else 0
    received = method == "fedavg-lora"
    shape = np.tanh(np.linspace(0, 3, 9)) / np.tanh(3)
    curve = [
        {
            "round": 2 * place, "mean": mean * part, "worst": 0.8 * mean * part, "best": min(1, 1.2 * mean * part),
            "valid_mean": mean * part, "training_loss": 2 - part, "bytes": clients * (4 * place * sent + once),
        }
        for place, part in enumerate(shape)
    ]  # fmt: skip
    total = clients * (32 * sent + once)
    return {
        **_spread(mean),
        "citation": f"Somebody et al., {method}, 2023",
        "learning_rate": 0.003,
        "scored": "received" if received else "trained",
        "sd": 0.012,
        "weighted_mean": mean + 0.004,
        "mean_trained": mean + (0.02 if received else 0.0),
        "mean_received": mean if sent else None,
        "bytes": {
            "up_per_round": sent, "down_per_round": sent, "once_up": once, "once_down": 0, "total": total,
        },
        "rounds_to_target": 6,
        "bytes_to_target": 12 * clients * sent,
        "seconds": 120.5,
        "curve": curve,
        "plateau": {"rise_in_last_quarter": 0.013 if received else 0.002, "reached": not received},
        "client_accuracy": [mean + 0.1 * shift for shift in np.linspace(-1, 1, clients)],
    }  # fmt: skip
