"""Does a run that is killed, anywhere, reach the numbers of an unbroken one?

    python benchmarks/security/kills.py [--random 20] [--every 1] [--rounds 3] [--seed 0]

A small simulated run is killed (SIGKILL) at random moments, and before every write to its folder: a new line of
the event log, a flush to the disk, a rename, a link. Then it is resumed, and its result and its clients' models
are compared with those of an unbroken run. Counts also how many rounds had to be repeated. Writes kills.json
beside this file. Each run is a process of its own, forked from this one after the packages are loaded.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import tempfile
import time
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

from trifed import make_config
from trifed.config.run import RunConfig
from trifed.data import demo_corpus_path
from trifed.experiments.runner import run_or_resume
from trifed.federation.preparation import environment, prepare
from trifed.federation.run_folder import RunFolder

HERE = Path(__file__).parent
WRITES = ((RunFolder, "append"), (os, "fsync"), (Path, "replace"), (os, "link"))
"""Functions that change a run's folder."""


def configured(method: str, seed: int, rounds: int) -> RunConfig:
    """Return the run that is killed."""
    return make_config({
        "name": "killed", "seed": seed, "rounds": rounds, "controls": False, "baselines": [], "method": method,
        "model": {"name": "demo", "max_length": 16}, "training": {"steps": 2, "batch_size": 4},
        "data": {
            "source": str(demo_corpus_path()), "max_examples": 100,
            "clients": {"split": "dirichlet", "count": 3, "alpha": 1.0},
        },
        "privacy": {"few_tokens": "allow", "small_components": "allow"},
    })  # fmt: skip


def count_writes(before: Callable[[int], None]) -> None:
    """Call `before` with the number of each write, from 1, before it happens in this process."""
    done = [0]
    for owner, name in WRITES:
        original = getattr(owner, name)

        def counted(*args: Any, _original: Any = original, **more: Any) -> Any:
            done[0] += 1
            before(done[0])
            return _original(*args, **more)

        setattr(owner, name, counted)


def start(config: RunConfig, folder: Path, before: Callable[[int], None] = lambda number: None) -> int:
    """Start or resume the run in a new process; return the process's id."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.setpgid(0, 0)
        count_writes(before)
        run_or_resume(config, folder)
        code = 0
    finally:
        os._exit(code)


def ended(pid: int) -> int:
    """Wait for a process; return its exit code, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def numbers(folder: Path) -> dict[str, Any]:
    """Return the result, without times, and a hash of every file that a client's model consists of."""
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    kept = {key: value for key, value in summary.items() if not key.startswith("seconds")}
    files = sorted(p for p in (folder / "clients").rglob("*") if p.suffix == ".safetensors")
    hashes = {str(p.relative_to(folder)): sha256(p.read_bytes()).hexdigest() for p in files}
    return {"summary": kept, "models": hashes, "predictions": (folder / "predictions.json").read_text("utf-8")}


def rounds_in(folder: Path) -> tuple[int, int]:
    """Return the last round with an upload in the event log, and the last whole one."""
    opened = RunFolder(folder)
    seen = max((e["round"] for e in opened.events() if e["event"] == "trained"), default=0)
    return seen, opened.rounds_done()


def kill_and_resume(
    config: RunConfig, folder: Path, expected: dict[str, Any], number: int | None, seconds: float
) -> dict[str, Any]:
    """Kill a run before write `number`, or after `seconds`; resume it; return what happened."""

    def kills(done: int) -> None:
        if done == number:
            os.kill(os.getpid(), signal.SIGKILL)

    pid = start(config, folder, kills)
    if number is None:
        time.sleep(seconds)
        os.kill(pid, signal.SIGKILL)
    killed = ended(pid) == -signal.SIGKILL
    seen, whole = rounds_in(folder) if folder.is_dir() else (0, 0)
    resumed = ended(start(config, folder)) == 0
    same = resumed and numbers(folder) == expected
    return {"killed": killed, "resumed": resumed, "same": same, "lost": max(0, seen - whole)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--random", type=int, default=20, help="kills at random moments")
    parser.add_argument("--every", type=int, default=1, help="kill at every n-th write; 0 for none")
    parser.add_argument("--method", default="own-prior")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=HERE / "kills.json")
    given = parser.parse_args()
    config = configured(given.method, given.seed, given.rounds)
    draw = random.Random(given.seed)
    with tempfile.TemporaryDirectory() as work:
        whole, log = Path(work) / "whole", Path(work) / "writes"
        began = time.perf_counter()
        if ended(start(config, whole, lambda number: log.write_text(str(number), "utf-8") and None)):
            raise SystemExit("the unbroken run failed")
        seconds, writes, expected = time.perf_counter() - began, int(log.read_text("utf-8")), numbers(whole)
        plan = [("random", None, draw.uniform(0, seconds)) for _ in range(given.random)]
        plan += [("write", number, 0.0) for number in range(1, writes + 1, given.every)] if given.every else []
        cases: list[dict[str, Any]] = []
        for place, (kind, number, after) in enumerate(plan, 1):
            found = kill_and_resume(config, Path(work) / f"run-{place}", expected, number, after)
            cases.append({"kind": kind, "write": number, "after": round(after, 3), **found})
            print(f"{place}/{len(plan)}  {cases[-1]}", flush=True)
    names = ("killed", "resumed", "same")
    counts = {
        kind: {"cases": len(alike), **{name: sum(case[name] for case in alike) for name in names}}
        for kind in ("random", "write")
        for alike in [[case for case in cases if case["kind"] == kind]]
    }
    _, shared_model, _ = prepare(config)
    result = {
        "counts": counts,
        "most_rounds_lost": max((case["lost"] for case in cases), default=0),
        "seconds_unbroken": round(seconds, 2),
        "writes": writes,
        "failed": [case for case in cases if not case["same"]],
        "seed": given.seed,
        "configuration": config.model_dump(mode="json"),
        "environment": environment(config, shared_model.base, shared_model),
    }
    given.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({name: result[name] for name in ("counts", "most_rounds_lost", "failed")}, indent=1))


if __name__ == "__main__":
    main()
