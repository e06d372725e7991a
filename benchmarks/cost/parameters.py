"""Counts the numbers that each method sends in one round, from the shapes of models; nothing is downloaded.

    python benchmarks/cost/parameters.py

Writes parameters.json, as `trifed cost` counts: adapters on queries and values, each method's own rank,
one linear layer as head. `make figures` draws docs/numbers-sent.png from it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from trifed.federation.cost import estimate_cost

TARGET = Path(__file__).parent / "parameters.json"
MODELS = {"roberta-base": 40, "llama-7b": 20}
"""By model, a client's examples for which its summary has one component for each label."""
METHODS = ("fedavg-full", "fedavg-lora", "ffa-lora", "fedsa-lora", "fed-xs", "own-prior", "ce-lora")


def counted(model: str) -> dict[str, Any]:
    """Return one model's counts, by method."""
    whole, single = (estimate_cost(model, bits=bits, examples=MODELS[model]) for bits in (32, 1))
    one_bit = {item.method: item.bytes_up for item in single.methods}
    known = {item.method: item for item in whole.methods}
    factors = known["fedavg-lora"].sent_values - known["fedavg-lora"].head_values
    rows = []
    for name in METHODS:
        item = known[name]
        rows.append(
            {
                "method": name,
                "rank": item.rank,
                "sends": list(item.sends),
                "numbers": item.sent_values,
                "head": item.head_values,
                "times fewer than A and B of plain LoRA": round(factors / item.sent_values, 4),
                "bytes at 32 bits": item.bytes_up,
                "bytes at 1 bit": one_bit[name],
                "bytes once": sum(message.up for message in item.once),
            }
        )
    two_layers = whole.features * (whole.features + 1) + (whole.features + 1) * whole.labels
    return {
        "model": model,
        "layers": whole.layers,
        "targets": list(whole.targets),
        "labels": whole.labels,
        "A and B of plain LoRA": factors,
        # RoBERTa's own classifier in transformers: a dense layer of the hidden size before the output.
        "A, B and a head of two layers": factors + two_layers if whole.labels else None,
        "methods": rows,
    }


def main() -> None:
    found = {"rank": 8, "models": [counted(model) for model in MODELS]}
    TARGET.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    for model in found["models"]:
        print(model["model"], {row["method"]: row["numbers"] for row in model["methods"]})


if __name__ == "__main__":
    main()
