"""Does a long run need more memory the longer it goes on?

    python benchmarks/security/long_run.py [--rounds 500] [--clients 20] [--engines simulator sites]

A run of many rounds on a tiny random encoder, in the simulator and between sites whose processes are all in this
one. After every tenth round the resident memory of the process is read. Reported is how far it rises above its
median in the first fifth of the rounds, which count as warm-up. Writes long_run.json beside this file.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from importlib import resources
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from replay import ROWS, Sites
from transformers import AutoTokenizer, BertConfig, BertModel

from trifed import make_config
from trifed.data import demo_corpus_path
from trifed.deployment.site_process import SiteProcess
from trifed.deployment.site_settings import SiteSettings
from trifed.deployment.site_transport import SiteTransport
from trifed.federation.preparation import environment, prepare, quiet
from trifed.federation.round import FederatedRun
from trifed.federation.run_folder import RunFolder
from trifed.federation.simulation import Simulation
from trifed.tasks.base_model import DEMO_PACKAGE

HERE = Path(__file__).parent
EVERY = 10
"""Rounds between two readings."""


def tiny_base(folder: Path) -> Path:
    """Write a random encoder with the demo model's tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(str(resources.files(DEMO_PACKAGE) / "model"))
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    BertModel(BertConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(folder)
    return folder


def configured(base: Path, clients: int, rounds: int) -> dict[str, Any]:
    return {
        "name": "long", "rounds": rounds, "evaluate_every": rounds,
        "controls": False, "baselines": [], "method": "own-prior",
        "model": {"name": str(base), "max_length": 16}, "adapter": {"rank": 8},
        "training": {"steps": 1, "batch_size": 2, "device": "cpu"},
        "privacy": {"few_tokens": "allow", "small_components": "allow"},
        "deployment": {"clients": clients, "quorum": clients, "join_seconds": 5},
    }  # fmt: skip


def resident() -> int:
    """Return the process's resident memory, bytes."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def simulated(values: dict[str, Any], clients: int, folder: Path) -> Any:
    split = {"split": "dirichlet", "count": clients, "alpha": 10.0}
    config = make_config({**values, "data": {"source": str(demo_corpus_path()), "clients": split}})
    data, shared_model, datasets = prepare(config)
    store = RunFolder.create(folder / "run")
    Simulation(config, data, datasets, shared_model, store, quiet).run()
    return environment(config, shared_model.base, shared_model)


def between_sites(values: dict[str, Any], clients: int, folder: Path) -> Any:
    labels = sorted({row["label"] for row in ROWS})
    config = make_config({**values, "data": {"source": "-", "labels": labels}})
    sites = []
    for place in range(clients):
        path = folder / f"site-{place}.jsonl"
        path.write_text("\n".join(json.dumps(row) for row in ROWS[place::clients]), encoding="utf-8")
        settings = {
            "name": f"site-{place}", "data": {"source": str(path)}, "folder": folder / f"site-{place}",
            "privacy": values["privacy"],
        }  # fmt: skip
        sites.append(SiteProcess(SiteSettings(**settings)))
    store = RunFolder.create(folder / "run")
    store.write_text("config.toml", "")
    channel = Sites(lambda node, request: sites[node].answer(request), clients)
    SiteTransport(config, channel, store, quiet, sleep=lambda seconds: None).run()
    model = sites[0].run.shared_model  # type: ignore[union-attr]
    return environment(config, model.base, model)


ENGINES = {"simulator": simulated, "sites": between_sites}


def measure(engine: str, clients: int, rounds: int) -> dict[str, Any]:
    """Run once in this process; return the readings and how far they rose."""
    readings: list[int] = []
    play = FederatedRun.round

    def read(run: FederatedRun, number: int) -> None:
        play(run, number)
        if number % EVERY == 0:
            readings.append(resident())
            if number % 100 == 0:
                print(engine, number, round(readings[-1] / 2**20, 1), "MiB", flush=True)

    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, patch.object(FederatedRun, "round", read):
        base = tiny_base(Path(folder) / "base")
        facts = ENGINES[engine](configured(base, clients, rounds), clients, Path(folder))
    warm = len(readings) // 5
    start = float(np.median(readings[:warm]))
    last = float(np.median(readings[-warm:]))
    return {
        "clients": clients, "rounds": rounds, "seconds": round(time.perf_counter() - began, 1),
        "mib": [round(reading / 2**20, 2) for reading in readings],
        "highest_after_warm_up_percent": round(100 * (max(readings[warm:]) / start - 1), 3),
        "last_fifth_percent": round(100 * (last / start - 1), 3),
        "environment": {k: v for k, v in facts.items() if k not in ("run_id", "base_model", "base_fingerprint")},
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=500)
    parser.add_argument("--clients", type=int, default=20)
    parser.add_argument("--engines", nargs="+", default=list(ENGINES), choices=ENGINES)
    parser.add_argument("--alone", action="store_true", help="run the one engine in this process, and print")
    parser.add_argument("--out", type=Path, default=HERE / "long_run.json")
    given = parser.parse_args()
    logging.disable(logging.WARNING)
    if given.alone:
        given.out.write_text(json.dumps(measure(given.engines[0], given.clients, given.rounds)), encoding="utf-8")
        return
    result = {}
    for engine in given.engines:
        with tempfile.NamedTemporaryFile() as told:
            numbers = ["--rounds", str(given.rounds), "--clients", str(given.clients)]
            words = [sys.executable, __file__, "--alone", "--engines", engine, "--out", told.name, *numbers]
            subprocess.run(words, check=True)
            result[engine] = json.loads(Path(told.name).read_text(encoding="utf-8"))
        given.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
