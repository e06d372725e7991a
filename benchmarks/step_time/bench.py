"""What the core costs: one training step with tri-matrix adapters against plain PEFT LoRA on the same model.

    python benchmarks/step_time/bench.py [--model demo] [--steps 60]

Both models are trained in turn in one process, step by step on the same batches, so that drift of the machine
falls on both. A step is forward, backward, clipping and AdamW. Reported: the median of the paired ratios with a
bootstrap interval, and the ratio of the medians. Run it with nothing else on the machine.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trifed import make_config
from trifed.data import demo_corpus_path, make_clients
from trifed.federation.preparation import environment
from trifed.federation.training.batches import seeded
from trifed.federation.training.device_placement import autocast, choose_device, choose_precision
from trifed.federation.training.evaluation import length_order
from trifed.federation.training.shared_model import SharedModel, build_shared_model
from trifed.methods import METHODS
from trifed.tasks.text_classification import load_encoder

HERE = Path(__file__).parent
WARM_UP = 6


class Contender:
    """One workbench with its optimiser."""

    def __init__(self, bench: SharedModel, settings: Any) -> None:
        self.bench, self.settings = bench, settings
        self.params = list(bench.parameters.values())
        self.optimizer = torch.optim.AdamW(self.params, lr=1e-3, foreach=True)
        self.device = choose_device(settings)
        self.precision = choose_precision(settings, self.device)
        bench.model.train()

    def step(self, batch: Any) -> float:
        """Seconds of one training step."""
        began = time.perf_counter()
        with autocast(self.device, self.precision):
            loss = self.bench.model.loss(batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.params, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--out", type=Path, default=HERE / "results.json")
    given = parser.parse_args()
    config = make_config(
        {
            "model": {"name": given.model, "max_length": 64},
            "data": {"source": str(demo_corpus_path()), "clients": {"split": "column", "column": "site"}},
            "training": {"batch_size": 16},
        }
    )
    data = make_clients(config.data, 0)
    contenders = {}
    for method in ("local", "ce-lora"):
        base = load_encoder(config.model.name)
        settings = (config.model, config.adapter, config.training)
        bench = build_shared_model(base, METHODS[method], len(data.label_names), 0, settings)
        contenders[method] = Contender(bench, config.training)
    encoded = contenders["local"].bench.encode(data.clients[0].train)
    batches = [encoded.batch(rows, contenders["local"].device) for rows in length_order(encoded, 16)]
    seconds: dict[str, list[float]] = {method: [] for method in contenders}
    for step in range(WARM_UP + given.steps):
        order = list(contenders) if step % 2 else list(reversed(contenders))
        for method in order:
            spent = contenders[method].step(batches[step % len(batches)])
            if step >= WARM_UP:
                seconds[method].append(spent)
    ratios = np.array(seconds["ce-lora"]) / np.array(seconds["local"])
    rng = seeded(0, 99)
    medians = [np.median(rng.choice(ratios, len(ratios))) for _ in range(4000)]
    result = {
        "environment": environment(config, base, contenders["ce-lora"].bench),
        "steps": given.steps,
        "batch_size": 16,
        "rank": config.adapter.rank,
        "median_of_paired_ratios": round(float(np.median(ratios)), 4),
        "interval": [round(float(q), 4) for q in np.quantile(medians, (0.025, 0.975))],
        "ratio_of_medians": round(float(np.median(seconds["ce-lora"]) / np.median(seconds["local"])), 4),
        "median_milliseconds": {m: round(1000 * float(np.median(s)), 2) for m, s in seconds.items()},
    }
    given.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({k: v for k, v in result.items() if k != "environment"}, indent=1))


if __name__ == "__main__":
    main()
