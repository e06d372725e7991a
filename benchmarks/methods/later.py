"""A method that came later, under the conditions of `bench.py` and in pairs with what was measured there.

    python benchmarks/methods/later.py METHOD --data DIR [--work DIR] [--jobs 2] [--only PARTITION ...] [--alone]

Learning rates are chosen as everybody's were, then every partition runs with the same seeds on the same splits.
The rivals are not run again: their answers to every test row are kept in results/answers.json, and where they are
not, their accuracy by client in results/comparison.json. Writes results/METHOD.json and prints a table; goes on
where it was broken off.

With --alone everything is as before, learning rates too, but nobody shares: what of it is collaboration? That goes
to results/METHOD-alone.json.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from answers import RESULTS as ANSWERS
from answers import right
from bench import HERE, PARTITIONS, arguments, known, measure
from numpy.typing import NDArray
from table import points

from trifed.experiments.comparison_summary import interval, mean_over_clients

Json = dict[str, Any]
Rows = list[NDArray[np.bool_]]
ALONE: Json = {"method": {"apart": 0}, "wire": {"bits": 32}}
RIVALS = HERE / "results" / "comparison.json"


def decoded(answers: dict[str, str]) -> Rows:
    """Of one run, for each client which rows are right: (n_rows,) bool."""
    found = []
    for text in answers.values():
        size, bits = text.split(":")
        found.append(np.unpackbits(np.frombuffer(bytes.fromhex(bits), np.uint8))[: int(size)].astype(bool))
    return found


def rows_of(method: str, partition: str, seeds: list[int], work: Path) -> Rows:
    """The method's own answers, all seeds one after another, on the splits that the rivals had."""
    found: Rows = []
    splits = json.loads(ANSWERS.read_text()).get(partition, {}).get("splits", {})
    for seed in seeds:
        folder = work / partition / "runs" / "all" / method / f"seed-{seed}"
        mine = json.loads((folder / "split.json").read_text())["content_hash"]
        if splits.get(str(seed), mine) != mine:
            raise SystemExit(f"{partition}, seed {seed}: another split than the rivals had; is the data the same?")
        found += decoded(right(folder))
    return found


def against(partition: str, mine: Rows, rivals: Json, seeds: list[int]) -> Json:
    """Mean difference to each rival with its interval, in pairs of test rows or, failing these, of clients."""
    kept = json.loads(ANSWERS.read_text()).get(partition, {}).get("methods", {})
    found = {}
    for rival, facts in rivals["methods"].items():
        if rival in kept:
            theirs = [rows for seed in seeds for rows in decoded(kept[rival][str(seed)])]
            gap, ends = mean_over_clients(mine) - mean_over_clients(theirs), interval(mine, theirs)
            pairs = "rows"
        else:
            by_client = np.array([rows.mean() for rows in mine]).reshape(len(seeds), -1).mean(0)
            gaps = by_client - np.array(facts["client_accuracy"])
            drawn = np.random.default_rng(0).choice(gaps, (4000, len(gaps))).mean(1)
            low, high = np.quantile(drawn, (0.025, 0.975))
            gap, ends, pairs = float(gaps.mean()), (float(low), float(high)), "clients"
        found[rival] = {"mean": gap, "interval": ends, "pairs": pairs}
    return found


def main() -> None:
    parser = arguments(__doc__, "runs/methods-later")
    parser.add_argument("method")
    parser.add_argument("--only", nargs="+", choices=list(PARTITIONS), default=list(PARTITIONS))
    parser.add_argument("--alone", action="store_true", help="the method without sharing, for own-prior")
    given = parser.parse_args()
    shared = HERE / "results" / f"{given.method}.json"
    path = shared.with_stem(f"{given.method}-alone") if given.alone else shared
    state = known(path) | {"methods": [given.method]}
    if given.alone:
        state["tuning"] = json.loads(shared.read_text())["tuning"]
        given.work = given.work / "alone"
    rivals = json.loads(RIVALS.read_text())["results"]
    for partition in given.only:
        if partition not in state["results"]:
            measure(
                state,
                partition,
                given.data,
                given.work,
                given.jobs,
                methods=[given.method],
                own=ALONE if given.alone else {},
            )
            found = state["results"][partition]
            mine = rows_of(given.method, partition, found["seeds"], given.work)
            found["differences"] = against(partition, mine, rivals[partition], found["seeds"])
            path.write_text(json.dumps(state, indent=1) + "\n")
    print("\n".join(table(state, given.method, rivals)))


def table(state: Json, method: str, rivals: Json) -> list[str]:
    """By partition: the method as it is scored, what else it could be scored as, and its differences to rivals.

    The best rival is the best by the model that it is scored with; beside it stands the best of what any rival's
    clients have right after a round of their own, which is known without its answers and so without pairs.
    """
    lines = [
        f"| partition | `{method}`, % (95 %) | just trained, received | less `local` | less `fedavg-lora` "
        "| less the best rival | the best just trained | KB up |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for partition, found in state["results"].items():
        mine, rest = found["methods"][method], rivals[partition]["methods"]
        best = max(rest, key=lambda name: rest[name]["mean"])
        after = max(rest, key=lambda name: rest[name]["mean_trained"])
        low, high = (100 * end for end in mine["interval"])
        differences = [found["differences"][other] for other in ("local", "fedavg-lora", best)]
        gaps = [points(gap["mean"], gap["interval"]) for gap in differences]
        cells = [
            partition,
            f"{100 * mine['mean']:.1f} ({low:.1f} to {high:.1f})",
            f"{100 * mine['mean_trained']:.1f}, {100 * mine['mean_received']:.1f}",
            gaps[0],
            gaps[1],
            f"{gaps[2]} (`{best}`)",
            f"{100 * rest[after]['mean_trained']:.1f} (`{after}`)",
            f"{mine['bytes']['up_per_round'] / 1000:.1f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


if __name__ == "__main__":
    main()
