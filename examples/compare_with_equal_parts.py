"""Compare own-prior with plain LoRA that has the same personalization, aggregation and compression.

If two methods differ in five parts, a comparison says little about any of them. Here both have the same parts, so
that the difference comes from what remains: a core between shared projections, or the factors A and B.
"""

import sys
from typing import Any

from trifed import make_config, run
from trifed.data import demo_corpus_path

PARTS = {
    # The head's bias is each client's own label prior; the head is calibrated on validation data; the model that a
    # client uses is three quarters of the way from the trained to the received one.
    "personalization": {"label_prior": True, "calibrate": True, "interpolate": 0.75},
    # Each row of the head is averaged by examples of its label, over clients that agree on what the labels mean.
    "aggregation": {"weights": "label-rows", "groups": "agreement"},
    "wire": {"bits": 1},
}
METHODS: dict[str, dict[str, Any]] = {
    "own-prior": {},  # it has these parts by default
    "fedavg-lora": {},
    "fedavg-lora-equal-parts": {"method": "fedavg-lora", **PARTS},
}


def main(table: str = str(demo_corpus_path()), model: str = "demo", rounds: int = 5) -> dict[str, float]:
    """Run each method on the same split of a table; return the mean test accuracy of each."""
    accuracy = {}
    for name, settings in METHODS.items():
        common = {
            "name": f"equal-parts-{name}",
            "method": name,
            "rounds": rounds,
            "model": {"name": model, "max_length": 48},
            "data": {"source": table, "clients": {"split": "column", "column": "site"}},
        }
        result = run(make_config({**common, **settings}))
        sent = result.summary["bytes"]["up"]
        accuracy[name] = result.accuracy["mean"]
        print(f"{name}: mean test accuracy {accuracy[name]:.3f}, {sent / 1000:.1f} KB sent")
    return accuracy


if __name__ == "__main__":
    main(*sys.argv[1:])
