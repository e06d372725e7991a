"""How many clients should train in one pass, and in how many threads or processes: milliseconds for a step.

    python benchmarks/speed/stacks.py [--data DIR] [--batches 16 4] [--repetitions 5] [--out stacks.json]

The clients and rows are those of `against.py`'s job. Compared are passes of 1, 2, 5 and 10 clients in one thread
with all cores, and the same in two threads of one process, and in two processes, with half of the cores each,
which share out the clients. All ways take turns, so that drift of the machine falls on all. Take timings on a
machine that does nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Sequence
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

import torch
from against import environment
from job import Job, prepare, trifed_values

from trifed import make_config
from trifed.federation import preparation
from trifed.federation.client_update import ClientState, RoundTraining, train_rounds
from trifed.federation.training.parallel import AtOnce

HERE = Path(__file__).resolve().parent
Json = dict[str, Any]
CLIENTS, STEPS = 10, 4
SIZES = (1, 2, 5, 10)


def worker(link: Connection, values: Json, threads: int) -> None:
    """Train the clients that a message names, some in each pass, and send back when it is done."""
    torch.set_num_threads(threads)
    config = make_config(values)
    _, shared_model, clients = preparation.prepare(config)
    state = ClientState(dict(shared_model.start), {}, 0)
    link.send("ready")
    while (message := link.recv()) is not None:
        mine, at_once, number = message
        rounds = [RoundTraining(clients[c], state, None, 0, number, 100) for c in mine]
        train_rounds(shared_model, rounds, config.training, at_once)
        link.send("done")


class Workers:
    """Processes that share out the clients."""

    def __init__(self, values: Json, count: int) -> None:
        context, threads = get_context("spawn"), max(1, (os.cpu_count() or 1) // count)
        self.links = []
        self.processes = []
        for _ in range(count):
            mine, theirs = context.Pipe()
            process = context.Process(target=worker, args=(theirs, values, threads), daemon=True)
            process.start()
            self.links.append(mine)
            self.processes.append(process)
        for link in self.links:
            link.recv()

    def milliseconds(self, at_once: AtOnce, number: int) -> float:
        """Return the wall time of a round of all clients, divided by their steps."""
        shares = [list(range(CLIENTS))[place :: len(self.links)] for place in range(len(self.links))]
        began = time.perf_counter()
        for link, share in zip(self.links, shares, strict=True):
            link.send((share, at_once, number))
        for link in self.links:
            link.recv()
        return round(1000 * (time.perf_counter() - began) / CLIENTS / STEPS, 2)

    def close(self) -> None:
        """End the processes."""
        for link, process in zip(self.links, self.processes, strict=True):
            link.send(None)
            process.join()


def compare(values: Json, repetitions: int) -> dict[str, list[float]]:
    """Return milliseconds for a client's step by each way, in every repetition."""
    found: dict[str, list[float]] = {}
    groups = {1: Workers(values, 1), 2: Workers(values, 2)}
    ways = [(1, AtOnce(1, size)) for size in SIZES]
    ways += [(1, AtOnce(2, size)) for size in SIZES if 2 * size <= CLIENTS]
    ways += [(2, AtOnce(1, size)) for size in SIZES if 2 * size <= CLIENTS]
    for count, at_once in ways:
        groups[count].milliseconds(at_once, 1)  # the first pass of a shape is slower
    for number in range(2, repetitions + 2):
        for count, at_once in ways:
            two = ", 2 processes" if count > 1 else ", 2 threads" if at_once.threads > 1 else ""
            name = f"{at_once.clients} a pass{two}"
            found.setdefault(name, []).append(groups[count].milliseconds(at_once, number))
    for group in groups.values():
        group.close()
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--batches", type=int, nargs="+", default=[16, 4])
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--out", type=Path, default=HERE / "stacks.json")
    given = parser.parse_args(arguments)
    source = given.data / "glue_sst2" / "train.parquet"
    if not source.is_file():
        raise SystemExit(f"{source}: not there; nothing was measured")
    results: Json = {}
    for batch in given.batches:
        job = Job("short", batch=batch, evaluated=False)
        with tempfile.TemporaryDirectory() as folder:
            prepare(job, source, Path(folder))
            values = trifed_values(job, Path(folder) / "rows.parquet")
            values["training"]["steps"] = STEPS
            results[str(batch)] = compare(values, given.repetitions)
        for name, measured in results[str(batch)].items():
            print(f"batch {batch}, {name}: {median(measured):.1f} ms", flush=True)
    found = {
        "configuration": {"clients": CLIENTS, "steps": STEPS, "repetitions": given.repetitions, "model": "demo"},
        "environment": environment(None) | {"load_average": os.getloadavg()[0]},
        "milliseconds": results,
        "panels": [
            {"title": f"A client's step, batch {batch}", "unit": "ms", "bars": measured}
            for batch, measured in results.items()
        ],
    }
    given.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
