"""Many simulated clients on one base: memory, and the share of a round that is not training.

    python benchmarks/speed/many_clients.py [--data DIR] [--clients 100 1000] [--steps 5] [--out many_clients.json]

Each client has 20 examples of SST-2, drawn with replacement. MiniLM, LoRA on queries and values (r = 8), batch 4,
kept AdamW moments, three rounds, evaluation after the last, checkpoints on the disk after each. The share is the
part of the second round's time, from its first download to its checkpoint, that is spent outside training.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from against import environment, surroundings
from pyarrow import parquet

HERE = Path(__file__).resolve().parent
Json = dict[str, Any]
EXAMPLES, ROUNDS = 20, 2


def write_table(source: Path, clients: int, table: Path) -> None:
    """Write the examples of all clients, with the client's name in each row."""
    rows = parquet.read_table(source, columns=["text", "label"]).to_pydict()
    drawn = np.random.default_rng(0).integers(0, len(rows["text"]), clients * EXAMPLES)
    columns = {name: [values[row] for row in drawn] for name, values in rows.items()}
    names = [f"client-{number:05d}" for number in range(clients) for _ in range(EXAMPLES)]
    parquet.write_table(pa.table(columns | {"client": names}), table)


def run_here(table: Path, steps: int, folder: Path) -> None:
    """Make the run in this process, and print what it took."""
    from trifed import make_config, run
    from trifed.federation import simulation
    from trifed.federation.round import FederatedRun

    training: list[float] = []
    rounds: list[tuple[float, float]] = []
    train, play, save = simulation.train_rounds, FederatedRun.round, simulation.Simulation.save_checkpoint

    def timed_training(*given: Any) -> Any:
        began = time.perf_counter()
        try:
            return train(*given)
        finally:
            training.append(time.perf_counter() - began)

    def timed_round(self: Any, number: int) -> None:
        training.clear()
        began = time.perf_counter()
        play(self, number)
        rounds.append((time.perf_counter() - began, sum(training)))

    def timed_save(self: Any, *given: Any) -> None:
        began = time.perf_counter()
        save(self, *given)
        saving.append(time.perf_counter() - began)

    saving: list[float] = []
    simulation.train_rounds = timed_training
    FederatedRun.round = timed_round  # type: ignore[method-assign]
    simulation.Simulation.save_checkpoint = timed_save  # type: ignore[method-assign]
    began = time.perf_counter()
    config = make_config(
        {
            "name": "many",
            "rounds": ROUNDS + 1,
            "evaluate_every": ROUNDS + 1,
            "controls": False,
            "baselines": [],
            "method": "fedavg-lora",
            "model": {"name": "demo"},
            "adapter": {"target_modules": ["query", "value"]},
            "data": {
                "source": str(table),
                "drop_duplicates": False,
                "clients": {"split": "column", "column": "client"},
            },
            "training": {"steps": steps, "batch_size": 4},
            "privacy": {"few_tokens": "allow"},
        }
    )
    run(config, folder / "run")
    wall, trained = rounds[ROUNDS - 1]
    found = {
        "seconds_in_all": round(time.perf_counter() - began, 1),
        "round_seconds": round(wall + saving[ROUNDS], 2),
        "training_seconds": round(trained, 2),
        "checkpoint_seconds": round(saving[ROUNDS], 2),
        "outside_training": round(1 - trained / (wall + saving[ROUNDS]), 4),
        "peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }
    print(json.dumps(found))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--clients", type=int, nargs="+", default=[100, 1000])
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--out", type=Path, default=HERE / "many_clients.json")
    parser.add_argument("--here", nargs=2, type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.here:
        run_here(*given.here[:1], given.steps, given.here[1])
        return
    source = given.data / "glue_sst2" / "train.parquet"
    if not source.is_file():
        raise SystemExit(f"{source}: not there; nothing was measured")
    results = []
    for clients in given.clients:
        with tempfile.TemporaryDirectory() as folder:
            write_table(source, clients, Path(folder) / "rows.parquet")
            mine = [sys.executable, __file__, "--steps", str(given.steps), "--here"]
            done = subprocess.run(
                [*mine, str(Path(folder) / "rows.parquet"), folder],
                env=surroundings(),
                capture_output=True,
                text=True,
                check=True,
            )
        results.append({"clients": clients, **json.loads(done.stdout.splitlines()[-1])})
        print(json.dumps(results[-1]), flush=True)
    found = {
        "configuration": {"examples": EXAMPLES, "steps": given.steps, "batch": 4, "model": "demo", "rank": 8},
        "environment": environment(None) | {"load_average": os.getloadavg()[0]},
        "results": results,
    }
    given.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
