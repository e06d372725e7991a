"""Does a patient attacker do better? Matching on the plain gradient and on a round's upload, for many more steps.

    python benchmarks/privacy/patient.py --data DIR --models DIR [--iterations 60 1000] [--jobs 2] [--device cuda]

The runs of audit.py, each method after the same warm-up; single examples, at every level of knowledge. For each
number of --iterations, steps of its optimiser, the mean score with its interval, beside the guesser on the
same examples: F1 over tokens, or PSNR in dB. Results are added to patient.json beside this file.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path
from typing import Any

from audit import AUDITS, CONTROLS, SWEEP, settings

HERE = Path(__file__).parent
Json = dict[str, Any]
METHODS = ("own-prior", *CONTROLS)


def one(path: Path, method: str, device: str, iterations: list[int], trials: int) -> tuple[list[Json], Json]:
    """All rows of one method on one data set, and the machine."""
    from trifed import make_config
    from trifed.attacks.audit import RECONSTRUCTIONS
    from trifed.attacks.target import train_target
    from trifed.federation.preparation import environment

    values = json.loads(path.read_text())
    values["training"]["device"] = device
    config = make_config(values)
    config = config if method == config.method.name else config.with_method(method)
    plan = replace(SWEEP, batches=(1,), trials=trials, matched=trials)
    target = train_target(config, plan.rounds, None)
    attacks = RECONSTRUCTIONS[config.task](target, plan, lambda text: None)
    batches, found = attacks.batches[1], []
    base = {"method": method, "trials": trials}
    guesses = [attacks.guess(rows) for rows in batches]
    floor = attacks.result("guesser", "gradient", "factors", batches, guesses)
    found.append({**base, "attack": "guesser", "scores": floor.model_dump()["scores"]})
    for sees in ("gradient", "update"):
        observed = [target.observe(sees, rows) for rows in batches]
        for knows in target.knowledge_levels():
            for count in iterations:
                target.shared_model.load(target.assumed_tensors(knows))
                made = [attacks.by_matching(r, seen, count) for r, seen in zip(batches, observed, strict=True)]
                scores = attacks.result("matching", sees, knows, batches, made).model_dump()["scores"]
                setting = {"sees": sees, "knows": knows, "iterations": count}
                found.append({**base, "attack": "matching", **setting, "scores": scores})
    return found, environment(target.config, target.shared_model.base, target.shared_model)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument(
        "--models", type=Path, required=True, help="folder with `vit`, and `minilm` if it is there"
    )
    parser.add_argument("--work", type=Path, default=Path("runs/patient"))
    parser.add_argument("--out", type=Path, default=HERE / "patient.json")
    parser.add_argument("--sets", nargs="+", default=["banking77", "sst2", "cifar10"], choices=list(AUDITS))
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--iterations", type=int, nargs="+", default=[60, 1000])
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--jobs", type=int, default=2)
    given = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    found: Json = json.loads(given.out.read_text()) if given.out.is_file() else {}
    with ProcessPoolExecutor(given.jobs, multiprocessing.get_context("spawn")) as pool:
        jobs = {}
        for name in given.sets:
            path = settings(name, given.data, given.models, given.work)
            for method in given.methods:
                asked = given.device, given.iterations, given.trials
                jobs[pool.submit(one, path, method, *asked)] = name, method
        for future in as_completed(jobs):
            name, method = jobs[future]
            rows, where = future.result()
            found.setdefault("rows", {}).setdefault(name, {})[method] = rows
            arguments = {
                n: v for n, v in vars(given).items() if n not in ("data", "models", "work", "out", "jobs")
            }
            found |= {"environment": where, "arguments": arguments}
            given.out.write_text(json.dumps(found, indent=1) + "\n")  # a part of it is worth keeping
            print(name, method, *(_line(row) for row in rows), sep="\n  ", flush=True)


def _line(row: Json) -> str:
    score = row["scores"].get("f1") or row["scores"]["psnr"]
    where = " ".join(str(row[name]) for name in ("sees", "knows", "iterations") if name in row)
    return f"{row['attack']} {where}: {score['mean']:.2f} ({score['low']:.2f} to {score['high']:.2f})"


if __name__ == "__main__":
    main()
