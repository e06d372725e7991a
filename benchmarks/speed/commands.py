"""How long a command takes that trains nothing: help, and mistakes that are found. Wall and CPU seconds.

    python benchmarks/speed/commands.py [--repetitions 7] [--cold] [--out commands.json]

Each command is a fresh process, and the commands alternate, so that drift of the machine falls on all. `--cold`
also takes each one without any compiled bytecode, as just after an installation. Take timings on a machine that
does nothing else.
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
from pathlib import Path
from statistics import median
from typing import Any

from against import SOURCE, TRIFED, environment, surroundings

HERE = Path(__file__).resolve().parent
Json = dict[str, Any]
ROWS = 3000
MISTAKE = 2
COST = "trifed cost roberta-base"
TARGETS = {"import trifed": 0.3, "trifed --help": 0.35, "misspelt text column": 2.0, "misspelt label column": 2.0}
"""Wall seconds that each may take at most on a quiet machine, with compiled bytecode."""


def commands(folder: Path) -> dict[str, tuple[list[str], int]]:
    """Write a table, and return the Python arguments and the expected exit code of each command."""
    table = folder / "tickets.csv"
    lines = [f"parcel {row} has not arrived,{('billing', 'delivery')[row % 2]}" for row in range(ROWS)]
    table.write_text("\n".join(["text,queue", *lines]) + "\n", encoding="utf-8")
    run = ["run", "--data", str(table), "--label", "queue", "--runs", str(folder / "runs")]
    given: dict[str, tuple[list[str], int]] = {
        "trifed --help": (["--help"], 0),
        "trifed --version": (["--version"], 0),
        "trifed run --help": (["run", "--help"], 0),
        "trifed export --help": (["export", "--help"], 0),
        "trifed settings": (["settings"], 0),
        "misspelt command": (["rnu"], MISTAKE),
        "misspelt setting": ([*run, "--set", "training.stepz=1"], MISTAKE),
        "misspelt text column": ([*run, "--text", "txt"], MISTAKE),
        "misspelt label column": ([*run, "--label", "quue"], MISTAKE),
        "too few examples": ([*run, "--clients", str(ROWS)], MISTAKE),
        COST: (["cost", "roberta-base"], 0),
    }
    whole = {name: (["-c", TRIFED, *arguments], code) for name, (arguments, code) in given.items()}
    return {"nothing": (["-c", "pass"], 0), "import trifed": (["-c", "import trifed"], 0), **whole}


def run_once(name: str, arguments: list[str], expected: int, cold: bool) -> Json:
    """Run one command, and return what it took.

    Raises:
        SystemExit: Its exit code is not the expected one.
    """
    with tempfile.TemporaryDirectory() as cache:
        variables = surroundings() | ({"PYTHONPYCACHEPREFIX": cache} if cold else {})
        before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        done = subprocess.run([sys.executable, *arguments], env=variables, capture_output=True, check=False)
        seconds, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode != expected:
        raise SystemExit(
            f"{name}: ended with code {done.returncode}, expected {expected}: {done.stderr[-2000:]!r}"
        )
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"command": name, "cold": cold, "seconds": round(seconds, 3), "cpu_seconds": round(cpu, 3)}


def summarise(runs: list[Json]) -> list[Json]:
    """Return one row for each command: medians, all values, and the target if there is one."""
    rows = []
    for name, cold in dict.fromkeys((run["command"], run["cold"]) for run in runs):
        mine = [run for run in runs if (run["command"], run["cold"]) == (name, cold)]
        measures = {measure: [run[measure] for run in mine] for measure in ("seconds", "cpu_seconds")}
        row = {"command": name, "cold": cold, **{measure: median(values) for measure, values in measures.items()}}
        row |= {f"all_{measure}": values for measure, values in measures.items()}
        rows.append(row | ({"target_seconds": TARGETS[name]} if name in TARGETS and not cold else {}))
    return rows


def panel(rows: list[Json]) -> Json:
    """Return what `page.py` draws: the commands that need no model."""
    bars = {row["command"]: row["all_seconds"] for row in rows if not row["cold"] and row["command"] != COST}
    return {"title": "Commands that need no model", "unit": "s", "bars": bars}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--cold", action="store_true", help="also without compiled bytecode")
    parser.add_argument("--out", type=Path, default=HERE / "commands.json")
    given = parser.parse_args()
    runs: list[Json] = []
    with tempfile.TemporaryDirectory() as folder:
        wanted = commands(Path(folder))
        for name, (arguments, expected) in wanted.items():
            run_once(name, arguments, expected, cold=False)  # compiles the bytecode and fills the disk's cache
        for _ in range(given.repetitions):
            for cold in (False, True) if given.cold else (False,):
                runs += [run_once(name, *command, cold) for name, command in wanted.items()]
    rows = summarise(runs)
    found = {
        "configuration": {
            "repetitions": given.repetitions,
            "rows": ROWS,
            "source": str(SOURCE.relative_to(HERE.parents[1])),
        },
        "environment": environment(None) | {"load_average": os.getloadavg()[0]},
        "commands": rows,
        "panels": [panel(rows)],
    }
    given.out.write_text(json.dumps(found, indent=1) + "\n")
    for row in rows:
        target = f", target {row['target_seconds']} s" if "target_seconds" in row else ""
        cold = " (cold)" if row["cold"] else ""
        print(f"{row['command']}{cold}: {row['seconds']:.2f} s, {row['cpu_seconds']:.2f} CPU s{target}")


if __name__ == "__main__":
    main()
