"""The job that all contestants of `against.py` do, as files: clients' texts, and the rows of every training step.

The rows come from trifed's own order, which puts texts of similar length together. So nobody pads more than
another, and every contestant takes the same steps on the same examples.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import tomli_w

from trifed import make_config
from trifed.config.run import RunConfig
from trifed.data import FederatedData, make_clients
from trifed.federation.training.batches import RoundRandom, round_batches
from trifed.federation.training.device_placement import choose_device, choose_precision
from trifed.tasks import TASKS

Json = dict[str, Any]
SIZES = {"short": (5, 5), "long": (20, 20)}
"""Rounds, and steps of each client in a round."""
CLIENTS = 10
EXAMPLES = 300
"""Training examples of each client."""
TABLE, SETTINGS = "rows.parquet", "job.json"


@dataclass(frozen=True)
class Job:
    """One job. With `evaluated` every client has 200 more examples, which are evaluated after each round."""

    size: str = "short"
    batch: int = 16
    evaluated: bool = False
    seed: int = 0
    clients: int = CLIENTS
    examples: int = EXAMPLES

    @property
    def rounds(self) -> int:
        return SIZES[self.size][0]

    @property
    def steps(self) -> int:
        return SIZES[self.size][1]

    @property
    def name(self) -> str:
        return f"{self.size}, batch {self.batch}{', evaluated' if self.evaluated else ''}"

    @property
    def rows(self) -> int:
        """Examples of each client; trifed's default holds back 0.15 + 0.25 of them."""
        return round(self.examples / 0.6) if self.evaluated else self.examples


def trifed_values(job: Job, table: Path, *, model: str = "demo", defaults: bool = False) -> Json:
    """Return the settings of `trifed run`: the contestants' common method, or all that can be at its default."""
    data: Json = {"source": str(table), "clients": {"split": "column", "column": "client"}}
    values: Json = {
        "name": "speed",
        "seed": job.seed,
        "rounds": job.rounds,
        "model": {"name": model},
        "data": data if job.evaluated else data | {"valid_fraction": 0.0, "test_fraction": 0.0},
        "training": {"steps": job.steps, "batch_size": job.batch},
    }
    if defaults:
        return values
    values["training"]["optimizer_state"] = "reset"  # as the others, who keep nothing at a client
    return values | {
        "method": "fedavg-lora",
        "controls": False,
        "baselines": [],
        "adapter": {"target_modules": ["query", "value"]},
    }


def prepare(job: Job, source: Path, folder: Path, model: str = "demo") -> None:
    """Write the job's table, the settings of both runs of trifed, and the files of the other contestants.

    Args:
        job: The job.
        source: A Parquet file with the columns `text` and `label`.
        folder: An existing folder.
        model: The base model, as in `model.name`.
    """
    _write_table(job, source, folder / TABLE)
    for name, defaults in (("trifed", False), ("trifed-defaults", True)):
        values = trifed_values(job, folder / TABLE, model=model, defaults=defaults)
        (folder / f"{name}.toml").write_text(tomli_w.dumps(values))
    config = make_config(trifed_values(job, folder / TABLE, model=model))
    data = make_clients(config.data, job.seed)
    _write_clients(config, data, folder)


def _write_table(job: Job, source: Path, table: Path) -> None:
    """Write the same number of rows for each client, at random and without a text that occurs twice."""
    rows = parquet.read_table(source, columns=["text", "label"]).to_pylist()
    texts = {row["text"]: row["label"] for row in rows}
    needed = job.clients * job.rows
    if len(texts) < needed:
        raise SystemExit(f"{source}: got {len(texts)} different texts, expected at least {needed}")
    order = np.random.default_rng(job.seed).permutation(len(texts))[:needed]
    known = list(texts)
    chosen = [known[row] for row in order]
    clients = [f"client-{number:02d}" for number in range(job.clients) for _ in range(job.rows)]
    columns = {"text": chosen, "label": [texts[text] for text in chosen], "client": clients}
    parquet.write_table(pa.table(columns), table)


def _write_clients(config: RunConfig, data: FederatedData, folder: Path) -> None:
    training, task = config.training, TASKS[config.task]
    base = task.load(config.model.name, config.model.dtype)
    precision = choose_precision(training, choose_device(training))
    settings = {
        "model": base.source,
        "seed": config.seed,
        "rounds": config.rounds,
        "steps": training.steps,
        "clients": len(data.clients),
        "labels": len(data.label_names),
        "max_length": config.model.max_length,
        "rank": config.adapter.rank,
        "alpha": config.adapter.alpha,
        "target_modules": config.adapter.target_modules,
        "learning_rate": training.learning_rate,
        "weight_decay": training.weight_decay,
        "clip_norm": training.clip_norm,
        "bf16": str(precision) == "torch.bfloat16",
        "evaluated": any(len(client.test) for client in data.clients),
        "examples": 0,
        "padded_tokens": 0,
    }
    for number, client in enumerate(data.clients):
        lengths = task.encode(base, client.train, config.model).lengths
        rounds = range(1, config.rounds + 1)
        batches = [
            [rows.tolist() for rows in round_batches(lengths, training, RoundRandom.of(config.seed, r, number))]
            for r in rounds
        ]
        settings["examples"] += sum(len(rows) for steps in batches for rows in steps)
        settings["padded_tokens"] += sum(int(lengths[r].max()) * len(r) for steps in batches for r in steps)
        parts = {"train": client.train, "test": client.test}
        held: Json = {name: {"texts": p.texts, "labels": p.labels.tolist()} for name, p in parts.items()}
        (folder / client_file(number)).write_text(json.dumps(held | {"batches": batches}))
    (folder / SETTINGS).write_text(json.dumps(settings, indent=1))


def client_file(number: int) -> str:
    """Return the name of a client's file."""
    return f"client-{number:02d}.json"
