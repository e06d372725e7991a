"""The same job by trifed and by what people would use instead: seconds, CPU seconds and memory of all processes.

    python benchmarks/speed/against.py [--data DIR] [--jobs short long] [--batches 16 4] [--evaluated]
        [--repetitions 5] [--flower-python PYTHON] [--fresh] [--out against.json]

Contestants, each a fresh process: `trifed run`; a hand-written loop with plain PEFT; Flower's simulation with a
PEFT client after Flower's template, and one that keeps the base model between calls. Runs alternate, so that drift
of the machine falls on all. Each result is written at once: a stopped script goes on where it was. Take timings on
a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import subprocess
import sys
import tempfile
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
from job import SETTINGS, SIZES, Job, prepare
from measure import measure
from results import load, same_work, save, summarise

HERE = Path(__file__).resolve().parent
SOURCE = HERE.parents[1] / "src"
Json = dict[str, Any]
TRIFED = "from trifed.cli import main; main()"
PACKAGES = ("torch", "transformers", "peft", "flwr", "numpy", "accelerate")
CODE = ("against", "job", "measure", "plain_peft", "flower_client", "flower_server")
"""Files here on which a result depends, beside trifed's."""
CONTESTANTS = ("trifed", "plain-peft", "flower", "flower-kept", "trifed-defaults")
"""`trifed-defaults`: every setting at its default but the size of the job, and so another method; it is run in
evaluated jobs only, and is no part of the check for equal work."""


def command(contestant: str, folder: Path, out: Path, flower_python: str) -> list[str]:
    """Return the command of a contestant, which leaves its result in `out`."""
    if contestant.startswith("trifed"):
        config = str(folder / f"{contestant}.toml")
        return [sys.executable, "-c", TRIFED, "run", config, "--runs", str(out)]
    if contestant == "plain-peft":
        return [sys.executable, str(HERE / "plain_peft.py"), str(folder), str(out)]
    keep = ["--keep-model"] if contestant == "flower-kept" else []
    return [flower_python, str(HERE / "flower_server.py"), str(folder), str(out), *keep]


def surroundings() -> dict[str, str]:
    """Return the contestants' environment variables: threads as each chooses, nothing fetched or reported."""
    kept = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    quiet = {"FLWR_TELEMETRY_ENABLED": "0", "RAY_USAGE_STATS_ENABLED": "0", "HF_HUB_OFFLINE": "1"}
    return kept | quiet | {"PYTHONPATH": os.pathsep.join([str(SOURCE), kept.get("PYTHONPATH", "")]).strip(":")}


def read_result(contestant: str, folder: Path, out: Path) -> Json:
    """Return a contestant's losses of each round, its accuracies, and the work it did."""
    if not contestant.startswith("trifed"):
        return json.loads(out.read_text())
    lines = (out / "speed" / "events.jsonl").read_text().splitlines()
    trained = [event for event in map(json.loads, lines) if event["event"] == "trained"]
    rounds = sorted({event["round"] for event in trained})
    by_round = [[event["loss"] for event in trained if event["round"] == number] for number in rounds]
    summary = json.loads((out / "speed" / "summary.json").read_text())
    mean, steps = summary["accuracy"]["mean"], sum(event["steps"] for event in trained)
    losses = [sum(losses) / len(losses) for losses in by_round]
    return {"losses": losses, "accuracies": [] if mean is None else [mean], "steps": steps}


def environment(flower_python: str | None) -> Json:
    """Return versions and hardware, and a hash of the code that is compared."""
    digest = hashlib.sha256()
    for path in sorted([*(SOURCE / "trifed").rglob("*.py"), *(HERE / f"{name}.py" for name in CODE)]):
        digest.update(path.name.encode() + path.read_bytes())
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if "model name" in line] if info.is_file() else []
    code = "import ray; print(ray.__version__)"
    ray = {"ray": subprocess.check_output([flower_python, "-c", code], text=True).strip()} if flower_python else {}
    return {
        "packages": {name: version(name) for name in PACKAGES} | ray,
        "python": platform.python_version(),
        "processor": names[0].split(":")[1].strip() if names else platform.processor(),
        "cpus": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "code": digest.hexdigest()[:16],
    }


def why_no_flower(python: str) -> str | None:
    """Return why Flower's simulation cannot run with a Python, or None if it can."""
    found = subprocess.run([python, "-c", "import flwr, ray, peft"], capture_output=True, text=True, check=False)
    if found.returncode == 0:
        return None
    last = (found.stderr.strip().splitlines() or ["it does not start"])[-1]
    return f"{python}: {last}; install benchmarks/speed/requirements.txt and give --flower-python"


def run_once(contestant: str, job: Job, folder: Path, flower_python: str) -> Json:
    """Run a contestant once, in a folder that is thrown away, and return what it took and did."""
    began = datetime.now(UTC).isoformat(timespec="seconds")
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "out"
        asked = command(contestant, folder, out, flower_python)
        measured = asdict(measure(asked, surroundings(), Path(scratch) / "log.txt"))
        found = read_result(contestant, folder, out)
    rounded = {name: round(v, 3) if isinstance(v, float) else v for name, v in measured.items()}
    return {"job": job.name, "contestant": contestant, "began": began, **rounded, **found}


def compare(job: Job, given: argparse.Namespace, source: Path, here: str, held: Json) -> None:
    """Run all repetitions of a job that are not in `held`, alternating, and save each."""
    left_out = [] if held["environments"][here]["left_out"] is None else ["flower", "flower-kept"]
    wanted = [name for name in given.only if name not in left_out and (job.evaluated or name != CONTESTANTS[-1])]
    with tempfile.TemporaryDirectory() as folder:
        prepare(job, source, Path(folder))
        settings = json.loads((Path(folder) / SETTINGS).read_text())
        held["jobs"][job.name] = asdict(job) | settings | {"model": "demo"}
        for repetition in range(given.repetitions):
            for contestant in wanted:
                key = {"environment": here, "job": job.name, "contestant": contestant, "repetition": repetition}
                if any(all(run[name] == value for name, value in key.items()) for run in held["runs"]):
                    continue
                run = key | run_once(contestant, job, Path(folder), given.flower_python)
                held["runs"].append(run)
                save(held, given.out)
                print(f"{repetition + 1} · {_line(run)}", flush=True)
    for problem in same_work(held, here, job.name):
        print(f"{job.name}: {problem}", file=sys.stderr)


def _line(run: Json) -> str:
    took = f"{run['seconds']:.1f} s, {run['cpu_seconds']:.1f} CPU s, {run['peak_mib']:.0f} MiB"
    others = f"all else on the machine {run['other_cpu_seconds']:.1f} CPU s"
    return f"{run['job']} · {run['contestant']}: {took}; loss {run['losses'][-1]:.4f}; {others}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=HERE.parents[2] / "shared" / "data")
    parser.add_argument("--jobs", nargs="+", choices=list(SIZES), default=["short"])
    parser.add_argument("--batches", nargs="+", type=int, default=[16])
    parser.add_argument("--evaluated", action="store_true", help="evaluate after each round")
    parser.add_argument("--repetitions", type=int, default=2)
    parser.add_argument("--only", nargs="+", choices=CONTESTANTS, default=list(CONTESTANTS))
    parser.add_argument("--flower-python", default=sys.executable, help="a Python with Flower, Ray and PEFT")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=HERE / "against.json")
    parser.add_argument("--fresh", action="store_true", help="leave out what the file holds")
    given = parser.parse_args()
    source = given.data / "glue_sst2" / "train.parquet"
    if not source.is_file():
        print(f"skipped: {source} is not there; --data names the folder that holds glue_sst2/train.parquet")
        return
    reason = why_no_flower(given.flower_python)
    if reason:
        print(f"without Flower: {reason}")
    held = load(None if given.fresh else given.out)
    about = environment(None if reason else given.flower_python)
    here = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:12]
    held["environments"][here] = about | {"left_out": reason}
    for size in given.jobs:
        for batch in given.batches:
            compare(Job(size, batch, given.evaluated, given.seed), given, source, here, held)
    print(json.dumps(summarise(held)[here], indent=1))


if __name__ == "__main__":
    main()
