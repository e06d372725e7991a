"""How far one server goes: its time, memory and bytes with 10 to 10,000 clients, all of them in every round.

    python benchmarks/scale/server.py [--clients 10 100 1000 10000] [--methods own-prior ce-lora fedavg-lora]
        [--rounds 4] [--limit 900] [--out results.json] [--work FOLDER]

The real server and the real codec; clients are synthetic. Their summaries are drawn around those that the
method makes of features in four planted groups, 5 to 12 of 12 labels each; their uploads are noise, in the layout
and the bits that the method has on MiniLM. What clients would do is not timed. Timed are the opening (who is like
whom, once), then by round the downloads, the acceptance of the uploads and the aggregation, medians over the
rounds after the first, and at last one checkpoint on disk.

Every size is a process of its own, one thread, and tells how far its resident set rose over what it had with the
clients' summaries in hand; payloads are read one after the other and not kept, which a run between sites does.

Where two smaller sizes, as a·n + b·n², foretell a step of over --limit seconds, or more than twice the memory
that there is, it is not tried, and that number stands in its place. An opening is then left out alone, and rounds
are measured after one with summaries of counts only. A process that needs more than nine tenths of the memory
that is free fails, which is kept too. Goes on where it was broken off; --again begins anew. The printed table's
last column is foretold in the same way. Needs Linux and `pip install '.[demo]'`.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from trifed import make_config
from trifed.federation.context import run_context
from trifed.federation.messages import encode_summary
from trifed.federation.run_folder import RunFolder
from trifed.federation.server import Server
from trifed.federation.training.shared_model import build_shared_model
from trifed.methods import METHODS
from trifed.methods.base import SummarySeeds
from trifed.similarity import Summary
from trifed.tasks.text_classification import load_encoder

HERE = Path(__file__).parent
NAMES = ("own-prior", "ce-lora", "fedavg-lora")
SIZES = (10, 100, 1000, 10_000)
PAPER = 100_000
LABELS, FEWEST_LABELS, GROUPS, DISTINCT, WIDTH = 12, 5, 4, 60, 64
STEPS = ("open_s", "download_s", "accept_s", "aggregate_s", "checkpoint_s")
Json = dict[str, Any]


def memory(of: str, key: str) -> float:
    """MiB, as Linux counts them."""
    for line in Path(f"/proc/{of}").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"/proc/{of} has no {key}")


def peak() -> float:
    """Resident at most, since the last reset."""
    return memory("self/status", "VmHWM")


def timed(do: Callable[[], Any]) -> tuple[float, Any]:
    began = time.perf_counter()
    result = do()
    return time.perf_counter() - began, result


# -- one size, in a process of its own


def group_summaries(method: Any, seed: int) -> list[Any]:
    """What the method makes of many examples of every label, a group; a label means something else in each."""
    rng = np.random.default_rng([seed, 1])
    centres = 0.6 * rng.standard_normal((GROUPS, LABELS, WIDTH)) / np.sqrt(WIDTH)
    labels = np.repeat(np.arange(LABELS), 600)
    made = []
    for place in range(GROUPS):
        noise = 0.4 * rng.standard_normal((len(labels), WIDTH)) / np.sqrt(WIDTH)
        features = (centres[place][labels] + noise).astype(np.float32)
        made.append(method.summarise(method.options(), features, labels, SummarySeeds(seed, place)))
    return made


def client_summary(group: Summary, rng: np.random.Generator, known: bool) -> Summary:
    """A client's: 5 to 12 labels of 20 to 69 examples, a component for every twenty, means as samples give them.

    Without `known` counts only, as where no label has twenty.
    """
    own = np.sort(rng.choice(LABELS, rng.integers(FEWEST_LABELS, LABELS + 1), replace=False))
    sizes = rng.integers(20, 70, len(own))
    rows, counts = [], []
    for label, size in zip(own, sizes, strict=True):
        parts = np.flatnonzero(group.labels == label)[: size // 20]
        rows += list(parts)
        counts += [len(part) for part in np.array_split(np.arange(size), len(parts))]
    taken = np.array(rows if known else [], np.int64)
    many = np.array(counts if known else [], np.int64)
    error = np.sqrt(group.variances[taken] / many[:, None]) * rng.standard_normal((len(taken), WIDTH))
    return Summary(
        group.labels[taken], many, (group.means[taken] + error).astype(np.float32), group.variances[taken],
        group.self_distance if known else 0.0, own.astype(np.int64), sizes.astype(np.int64),
    )  # fmt: skip


def play(server: Server, number: int, examples: list[int], changes: list[np.ndarray]) -> Json:
    """One round of all clients; seconds of the server's parts, and bytes."""
    found: Json = dict.fromkeys(("download_s", "accept_s", "aggregate_s", "bytes_in", "bytes_out"), 0)
    wire, none = server.context.compression, np.zeros_like(server.start)
    for client in range(len(examples)):
        took, payload = timed(partial(server.download, number, client))
        found["download_s"] += took
        found["bytes_out"] += len(payload or b"")
    uploads = []
    for client, count in enumerate(examples):
        header = server.context.header("upload", number, client, count)
        change = changes[(client + number) % DISTINCT]
        payload = wire.encode(header, server.start + change if wire.lossless else change, none)
        took, upload = timed(partial(server.accept, number, client, payload))
        found["accept_s"] += took
        found["bytes_in"] += len(payload)
        uploads.append(upload)
    found["aggregate_s"], _ = timed(partial(server.aggregate, uploads))
    return found


def measure(name: str, clients: int, rounds: int, seed: int, opens: bool, work: Path | None) -> Json:
    method = METHODS[name]
    config = make_config({"method": name, "model": {"name": "demo"}, "data": {"source": "-"}, "seed": seed})
    parts = (config.model, config.adapter, config.training)
    bench = build_shared_model(load_encoder("demo"), method, LABELS, seed, parts)
    context = run_context(config, bench.layout, bench.fingerprint)
    start = bench.start_values
    server = Server(context, clients, start)
    rng = np.random.default_rng([seed, 2])
    changes = [0.01 * rng.standard_normal(len(start)).astype(np.float32) for _ in range(DISTINCT)]
    payloads, examples = {}, [int(n) for n in rng.integers(20 * LABELS, 60 * LABELS, clients)]
    if method.summarise:
        groups = group_summaries(method, seed)
        for client in range(clients):
            summary = client_summary(groups[client % GROUPS], rng, opens)
            payloads[client] = encode_summary(context.header("summary", 0, client), summary)
            examples[client] = int(summary.class_counts.sum())
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is the model's
    before = peak()
    once = sum(map(len, payloads.values()))
    took, _ = timed(lambda: server.open({c: server.read_summary(c, payload) for c, payload in payloads.items()}))
    found: Json = {"opening_bytes_in": once, "open_s": took, "open_peak_mib": peak() - before} if opens else {}
    payloads.clear()
    each = [play(server, number, examples, changes) for number in range(1, rounds + 1)]
    found |= {key: statistics.median(r[key] for r in each[1:] or each) for key in each[0]}
    found |= {"rounds": each, "peak_mib": peak() - before}
    kept = {**server.state_dict(), "counts": np.full(clients, rounds)}  # of each client the round that counts
    found["state_bytes"] = sum(array.nbytes for array in kept.values())
    with tempfile.TemporaryDirectory(dir=work) as folder:
        run = RunFolder(Path(folder))
        found["checkpoint_s"], _ = timed(lambda: run.save_checkpoint(rounds, [], kept, "scale"))
        found["checkpoint_bytes"] = (run.path / "checkpoint.safetensors").stat().st_size
    found["checkpoint_peak_mib"] = peak() - before
    if "weights" in server.state:
        rows = np.packbits(server.state["weights"] > 0, axis=1)
        found["different_rows_of_who_shares"] = len({row.tobytes() for row in rows})
    return found | {"before_mib": before, "values": len(start), "bits": config.wire.bits}


# -- all sizes


def foretell(found: dict[int, Json], key: str, clients: int) -> float | None:
    """a·n + b·n², with neither below 0, through the two largest smaller sizes at which `key` was measured."""
    sizes = sorted(n for n, each in found.items() if n < clients and key in each)[-2:]
    if not sizes:
        return None
    last = sizes[-1]
    rate = found[last][key] / last
    if len(sizes) == 1:
        return float(rate * clients)
    steeper = max(0.0, (rate - found[sizes[0]][key] / sizes[0]) / (last - sizes[0]))
    steeper = min(steeper, rate / last)
    return float((rate - steeper * last) * clients + steeper * clients**2)


def attempt(name: str, clients: int, found: dict[int, Json], given: argparse.Namespace) -> Json:
    told = {key: foretell(found, key, clients) or 0.0 for key in (*STEPS, "open_peak_mib", "peak_mib")}
    there = memory("meminfo", "MemAvailable")
    slow = {key: round(told[key]) for key in STEPS[1:] if told[key] > given.limit}
    if slow or told["peak_mib"] > 2 * there:
        return {"not_tried": {**slow, "peak_mib": round(told["peak_mib"]), "available_mib": round(there)}}
    opens = told["open_s"] <= given.limit and told["open_peak_mib"] <= 2 * there
    command = [sys.executable, __file__, "--one", name, str(clients), str(int(opens)), str(int(0.9 * there))]
    command += ["--rounds", str(given.rounds), "--seed", str(given.seed)]
    command += ["--work", str(given.work)] if given.work else []
    env = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    took, done = timed(lambda: subprocess.run(command, env=env, capture_output=True, text=True, check=False))
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return {"failed": f"exit {done.returncode}: {last}"[:300], "available_mib": round(there)}
    result: Json = {**json.loads(done.stdout.splitlines()[-1]), "whole_process_s": took}
    if not opens:
        keys = ("open_s", "open_peak_mib")
        result["opening_not_tried"] = {key: round(told[key]) for key in keys}
    return result


def processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


def growth(values: dict[int, float]) -> float | None:
    """The k of c·n^k through the values of the two largest sizes; None for fewer."""
    if len(values) < 2:
        return None
    smaller, larger = sorted(values)[-2:]
    return math.log(values[larger] / values[smaller]) / math.log(larger / smaller)


def table(result: Json) -> str:
    """All that was measured, and what it foretells for `PAPER` clients, as Markdown."""
    shown = (
        ("open_s", "opening, s", 1), ("download_s", "downloads, s", 1), ("accept_s", "acceptance, s", 1),
        ("aggregate_s", "aggregation, s", 1), ("checkpoint_s", "checkpoint, s", 1),
        ("open_peak_mib", "memory of the opening, MiB", 1), ("peak_mib", "memory with rounds, MiB", 1),
        ("checkpoint_peak_mib", "memory with the checkpoint, MiB", 1), ("state_bytes", "state, MB", 1e6),
        ("bytes_in", "in a round, MB", 1e6), ("bytes_out", "out a round, MB", 1e6),
        ("opening_bytes_in", "in once, MB", 1e6), ("different_rows_of_who_shares", "different rows", 1),
    )  # fmt: skip
    lines = []
    for name, by_size in result["methods"].items():
        found = {int(n): each for n, each in by_size.items()}
        lines += ["", f"| {name} | " + " | ".join(f"{n:,}" for n in found) + f" | growth | {PAPER:,}, foretold |"]
        lines.append("|---|" + "---|" * (len(found) + 2))
        for key, title, unit in shown:
            missing = [
                {**each.get("not_tried", {}), **each.get("opening_not_tried", {})} for each in found.values()
            ]
            cells = [
                f"{each[key] / unit:.3g}" if key in each
                else f"not tried: {less[key] / unit:,.3g}" if key in less else "-"
                for each, less in zip(found.values(), missing, strict=True)
            ]  # fmt: skip
            power = growth({n: each[key] for n, each in found.items() if each.get(key)})
            cells.append("-" if power is None else f"n^{power:.2f}")
            told = None if key.startswith("different") else foretell(found, key, PAPER)
            lines.append(
                f"| {title} | " + " | ".join([*cells, "-" if told is None else f"{told / unit:.3g}"]) + " |"
            )
        lines += [f"{n}: {each['failed']}" for n, each in found.items() if "failed" in each]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--methods", nargs="+", default=list(NAMES))
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=float, default=900, help="seconds that one step may take")
    parser.add_argument("--out", type=Path, default=HERE / "results.json")
    parser.add_argument("--work", type=Path, help="folder for the checkpoint, on the disk that is asked about")
    parser.add_argument("--again", action="store_true", help="measure what is there already once more")
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        name, clients, opens, most = given.one
        # Rather an error here than a machine without memory.
        resource.setrlimit(resource.RLIMIT_DATA, (int(most) * 2**20, int(most) * 2**20))
        print(json.dumps(measure(name, int(clients), given.rounds, given.seed, opens == "1", given.work)))
        return
    settings = {"rounds": given.rounds, "seed": given.seed, "limit_s": given.limit, "model": "demo",
                "labels": LABELS, "fewest_labels": FEWEST_LABELS, "groups": GROUPS, "distinct_uploads": DISTINCT,
                "dimensions": WIDTH}  # fmt: skip
    result: Json = {"settings": settings}
    kept = json.loads(given.out.read_text()) if given.out.is_file() and not given.again else {}
    if kept and kept["settings"] != settings:
        parser.error(f"{given.out} holds other settings; give --again, or another --out")
    result["environment"] = {
        **{name: version(name) for name in ("trifed", "numpy", "scipy", "POT", "torch", "safetensors")},
        "python": platform.python_version(), "processor": processor(), "cpus": os.cpu_count(), "threads": 1,
        "memory_mib": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20,
    }  # fmt: skip
    result["methods"] = kept.get("methods", {})
    for name in given.methods:
        by_size = result["methods"].setdefault(name, {})
        for clients in sorted(given.clients):
            if str(clients) not in by_size:
                found = {int(n): each for n, each in by_size.items()}
                by_size[str(clients)] = attempt(name, clients, found, given)
                given.out.write_text(json.dumps(result, indent=1) + "\n")
                brief = {key: value for key, value in by_size[str(clients)].items() if key != "rounds"}
                print(name, clients, json.dumps(brief), flush=True)
    print(table(result))


if __name__ == "__main__":
    main()
