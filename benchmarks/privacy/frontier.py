"""What is left of the accuracy at ε = 2, 4, 8 with 500 training examples a site: noise in sealed sums or open.

    python benchmarks/privacy/frontier.py --data DIR [--arms ARM ...] [--epsilons E ...] [--clips C ...]
        [--seeds N ...] [--rounds N] [--rank N] [--hours H] [--list] [--try EXAMPLES]
    python benchmarks/privacy/frontier.py --tables

DIR holds the data set, `glue_sst2/train.parquet`. Its rows go to ten clients of equal size, of each 82 % for
training. All arms have `own-prior` and the same settings but for the noise and one rate:

- `alone`, `open`, `sealed`: no noise; nothing shared, single uploads, sealed sums. `alone, own rate` has the
  learning rate that suits separate training; the others have the default.
- `open update`: `privacy.update` in an open run, where each client adds all of the noise to its own upload. Its
  summaries need noise too, ε = 4.
- `sealed update`: `privacy.update` in a sealed run with at_least = 10, where each adds a share. No summary is
  sent.
- `open training`, `sealed training`: `privacy.training`, with the noised summaries that it starts from.

The ε of `update` is for all updates of a client, that of `training` for one example; the summary's comes on top.
The clip of updates is a public choice, and not chosen by the result: with several --clips all are reported. Each
run is a line in results/frontier.jsonl, with versions and hardware; those that are there are not made again.
--try makes each arm for one round with so many rows a client, of which nothing is kept. --tables prints means with
95 % intervals over clients and seeds, and the difference in pairs to `alone, own rate`.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from trifed import make_config
from trifed.common.dict_merge import deep_merge
from trifed.experiments.runner import run

sys.path.insert(0, str(Path(__file__).parent))
from views import differences, environment, interval, points

RESULTS = Path(__file__).resolve().parent / "results" / "frontier.jsonl"
Json = dict[str, Any]
CLIENTS, DELTA, STEPS, RATE = 10, 1e-5, 32, 0.06
"""Steps of a round are one pass over 510 examples in batches of 16; a noised step draws about 31 examples."""
SUMMARY: Json = {"summary": {"epsilon": 4.0, "delta": DELTA}}
SEALED: Json = {"sealing": {"on": True, "at_least": CLIENTS}}
RUN: Json = {
    "name": "frontier", "method": "own-prior", "controls": False, "baselines": [],
    "model": {"name": "demo", "max_length": 64},
    "data": {"test_fraction": 0.13, "valid_fraction": 0.05, "clients": {"split": "iid", "count": CLIENTS}},
    "training": {"steps": STEPS, "batch_size": 16, "precision": "fp32", "device": "cpu"},
}  # fmt: skip
ALONE: Json = {"personalization": {"share": False}}
PLAIN: dict[str, Json] = {
    "alone": ALONE,
    "alone, own rate": {**ALONE, "training": {"learning_rate": 0.00222}},
    "open": {},
    "sealed": SEALED,
}
"""The rate of `alone, own rate` was chosen on validation data of the same set, for 250 examples a site, by
`benchmarks/evidence`. There the default rate was chosen for `own-prior`, open or sealed."""
BEST_ALONE = "alone, own rate"
NOISED = ("open update", "sealed update", "open training", "sealed training")


def arms(names: Sequence[str], epsilons: Sequence[float], clips: Sequence[float]) -> dict[str, Json]:
    """Return the settings of the chosen arms beside those of all, by name with ε and clip."""
    found = {name: PLAIN[name] for name in PLAIN if name in names}
    for epsilon in epsilons:
        budget = {"epsilon": epsilon, "delta": DELTA}
        updates = {clip: {"update": {**budget, "clip": clip}} for clip in clips}
        training = {**SUMMARY, "training": {**budget, "rate": RATE}}
        of_kind: dict[str, dict[str, Json]] = {
            "open update": {
                f", clip {clip:g}": {"privacy": {**SUMMARY, **each}} for clip, each in updates.items()
            },
            "sealed update": {f", clip {clip:g}": {**SEALED, "privacy": each} for clip, each in updates.items()},
            "open training": {"": {"privacy": training}},
            "sealed training": {"": {**SEALED, "privacy": training}},
        }
        for name in (name for name in NOISED if name in names):
            found |= {f"{name} ε = {epsilon:g}{more}": each for more, each in of_kind[name].items()}
    return found


def configuration(arm: Json, seed: int, rounds: int, rank: int, table: Path | str) -> Json:
    """Return the nested settings of one run."""
    own: Json = {"seed": seed, "rounds": rounds, "evaluate_every": rounds, "adapter": {"rank": rank}}
    return deep_merge(deep_merge(RUN, arm), {**own, "data": {"source": str(table)}})


def results(path: Path = RESULTS) -> list[Json]:
    """Return the records."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def measure(values: Json) -> Json:
    """Make a run, and return its clients' accuracy, what was spent, the bytes, and the noise-to-signal ratio."""
    began, said = time.monotonic(), []

    def listen(event: Json) -> None:
        if str(event.get("text", "")).startswith("privacy."):
            said.append(event["text"])

    with tempfile.TemporaryDirectory() as scratch:
        summary = run(make_config(values), Path(scratch) / "run", listen).summary
    return {
        "accuracy": {client["name"]: round(client["now"]["accuracy"], 4) for client in summary["clients"]},
        "test_examples": [client["now"]["examples"] for client in summary["clients"]],
        "spent": summary.get("privacy", {}).get("spent"),
        "noise": said,
        "bytes": summary["bytes"],
        "seconds": round(time.monotonic() - began, 1),
        "ended": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def tables(records: Sequence[Json]) -> Iterator[str]:
    """Yield the lines of a Markdown table."""
    yield "| arm | rank, rounds | accuracy | less alone, own rate | KB up a client and round | seeds |"
    yield "|---|---|---|---|---|---|"
    alike: dict[tuple[str, int, int], list[Json]] = {}
    for record in records:
        alike.setdefault((record["arm"], record["rank"], record["rounds"]), []).append(record)
    for (name, rank, rounds), found in alike.items():
        pairs = list(differences(found, alike.get((BEST_ALONE, rank, rounds), [])))
        reached = interval([list(record["accuracy"].values()) for record in found])
        less = interval(pairs) if pairs and name != BEST_ALONE else None
        up = np.mean([record["bytes"]["per_upload"] or 0 for record in found]) / 1000
        yield f"| {name} | {rank}, {rounds} | {points(reached)} | {points(less, '+')} | {up:.1f} | {len(found)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of the data sets")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--arms", nargs="+", choices=[*PLAIN, *NOISED], default=[*PLAIN, *NOISED])
    parser.add_argument("--epsilons", type=float, nargs="+", default=[8.0, 4.0, 2.0])
    parser.add_argument("--clips", type=float, nargs="+", default=[0.1], help="of updates; a public choice")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--rank", type=int, default=8, help="of the adapter; noise grows with the numbers sent")
    parser.add_argument("--hours", type=float, default=math.inf, help="start no run after this time")
    parser.add_argument("--list", action="store_true", help="print which results are there, and stop")
    parser.add_argument("--tables", action="store_true", help="print the table of what is there, and stop")
    parser.add_argument(
        "--try", dest="rows", type=int, metavar="EXAMPLES", help="one round of so many rows a client"
    )
    given = parser.parse_args()
    if given.tables:
        print(*tables(results(given.out)), sep="\n")
        return
    table = (given.data or Path()) / "glue_sst2" / "train.parquet"
    if not given.list and not table.is_file():
        parser.error(f"--data: {table} does not exist; give the folder that holds glue_sst2/train.parquet")
    end, chosen = time.monotonic() + 3600 * given.hours, arms(given.arms, given.epsilons, given.clips)
    rounds = 1 if given.rows else given.rounds
    for seed, (name, arm) in ((seed, item) for seed in given.seeds for item in chosen.items()):
        wanted = {"arm": name, "seed": seed, "rank": given.rank, "rounds": rounds}
        there = not given.rows and any(wanted.items() <= record.items() for record in results(given.out))
        if given.list:
            print(f"{name:36} seed {seed}: {'there' if there else 'missing'}")
            continue
        if there:
            continue
        if time.monotonic() > end:
            print("time is up; the same command goes on from here")
            return
        values = configuration(arm, seed, rounds, given.rank, table)
        if given.rows:
            values = deep_merge(
                values, {"data": {"clients": {"max_examples": given.rows}}, "training": {"steps": 2}}
            )
        record = {**wanted, **measure(values)}
        if not given.rows:
            shown = configuration(arm, seed, rounds, given.rank, "DIR/glue_sst2/train.parquet")
            given.out.parent.mkdir(parents=True, exist_ok=True)
            with given.out.open("a") as file:
                file.write(json.dumps({**record, "settings": shown, "environment": environment()}) + "\n")
        mean = float(np.mean(list(record["accuracy"].values())))
        print(f"{name} · seed {seed}: accuracy {100 * mean:.1f} %; {record['seconds']:.0f} s", flush=True)
        print(*(f"  {text}" for text in record["noise"] if given.rows), sep="\n", end="", flush=True)


if __name__ == "__main__":
    main()
