"""What can be recovered from what a method sends? Every attack of `trifed audit` on data whose answer is known.

    python benchmarks/privacy/audit.py --data DIR --models DIR [--only NAME ...] [--jobs 2] [--work DIR]

--data holds the public data sets, --models the folder `vit` (benchmarks/models/small_vision.py makes it).
`own-prior`, the default method, with five others beside it, on MiniLM with BANKING77 and SST-2 and on a small ViT
with CIFAR-10; then `own-prior` alone on BANKING77 with another rank, other steps, later, and with noise; on all
three with sealed sums of three clients, the fewest of a sum; and `first-run`, the run that the README begins with,
on examples/tickets.csv. What is found of each method is kept under --work, so that the same command goes on; each
audit's findings go to results/NAME.json without the originals and what was made of them, and with a page under
--work.
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

import pandas as pd

from trifed.attacks.plan import SMALL, Plan
from trifed.common.dict_merge import deep_merge

HERE = Path(__file__).resolve().parent
Json = dict[str, Any]
ROWS = {"banking77": 1600, "sst2": 1600, "cifar10": 1600}
SOURCES = {
    "banking77": "banking77/train.parquet",
    "sst2": "glue_sst2/train.parquet",
    "cifar10": "cifar10/train.parquet",
    "tickets": "examples/tickets.csv",
}
BASE: Json = {
    "rounds": 20,
    "data": {
        "test_fraction": 0.3,
        "valid_fraction": 0.1,
        "clients": {"split": "dirichlet", "count": 8, "alpha": 0.5},
    },
    "training": {"steps": 8, "batch_size": 8, "precision": "fp32", "device": "cpu"},
    "privacy": {"few_tokens": "allow"},
}
TEXT: Json = deep_merge(BASE, {"model": {"name": "demo", "max_length": 64}})
CONTROLS = ("fedavg-full", "fedavg-lora", "ffa-lora", "fedsa-lora", "ce-lora")
WHOLE = replace(
    SMALL, rounds=3, batches=(1, 2, 4, 8, 16, 32), trials=8, matched=2, match_up_to=2, iterations=120, clients=8,
    members=64, controls=CONTROLS,
)  # fmt: skip
IMAGES = replace(WHOLE, matched=4, match_up_to=1, iterations=60)
SWEEP = replace(WHOLE, batches=(1, 2, 4, 8), matched=0, controls=())
SUMS = replace(WHOLE, batches=(1, 2, 4, 8, 16), match_up_to=1, iterations=60, clients=3, controls=())
SEALED: Json = {"sealing": {"on": True}, "data": {"clients": {"count": 3}}}
FIRST: Json = {
    "rounds": 3,
    "data": {"clients": {"split": "column", "column": "site"}},
    "training": {"precision": "fp32", "device": "cpu"},
}
IMAGE: Json = deep_merge(BASE, {"task": "image-classification"})
UPDATE: Json = {"delta": 1e-5, "clip": 0.1}
NOISE: Json = {"privacy": {"summary": {"epsilon": 4.0, "delta": 1e-5}}}
AUDITS: dict[str, tuple[str, Json, Plan]] = {
    "banking77": ("banking77", TEXT, WHOLE),
    "sst2": ("sst2", TEXT, WHOLE),
    "cifar10": ("cifar10", IMAGE, IMAGES),
    "sealed-banking77": ("banking77", deep_merge(TEXT, SEALED), SUMS),
    "sealed-sst2": ("sst2", deep_merge(TEXT, SEALED), SUMS),
    "sealed-cifar10": ("cifar10", deep_merge(IMAGE, SEALED), SUMS),
    "first-run": ("tickets", FIRST, replace(SWEEP, clients=5)),
    "rank-8": ("banking77", deep_merge(TEXT, {"adapter": {"rank": 8, "alpha": 8}}), SWEEP),
    "rank-16": ("banking77", deep_merge(TEXT, {"adapter": {"rank": 16, "alpha": 16}}), SWEEP),
    "rank-64": ("banking77", deep_merge(TEXT, {"adapter": {"rank": 64, "alpha": 64}}), SWEEP),
    "steps-1": ("banking77", deep_merge(TEXT, {"training": {"steps": 1}}), SWEEP),
    "steps-32": ("banking77", deep_merge(TEXT, {"training": {"steps": 32}}), SWEEP),
    "bits-32": ("banking77", deep_merge(TEXT, {"wire": {"bits": 32}}), SWEEP),
    "rate-0.005": ("banking77", deep_merge(TEXT, {"training": {"learning_rate": 0.005}}), SWEEP),
    "round-1": ("banking77", TEXT, replace(SWEEP, rounds=1)),
    "round-10": ("banking77", TEXT, replace(SWEEP, rounds=10)),
    "summary-epsilon-4": ("banking77", deep_merge(TEXT, NOISE), SWEEP),
    **{
        f"update-epsilon-{epsilon}": (
            "banking77",
            deep_merge(
                TEXT,
                deep_merge(
                    NOISE, {"privacy": {"update": {"epsilon": float(epsilon), "delta": 1e-5, "clip": 0.1}}}
                ),
            ),
            SWEEP,
        )
        for epsilon in (2, 4, 8)
    },
}


def settings(name: str, data: Path, models: Path | None, work: Path) -> Path:
    """The run's settings, and the table that they name, as files."""
    source, values, _ = AUDITS[name]
    table = HERE.parents[1] / SOURCES[source] if source == "tickets" else work / f"{source}.parquet"
    if not table.is_file():
        table.parent.mkdir(parents=True, exist_ok=True)
        rows = pd.read_parquet(data / SOURCES[source])
        rows = rows.rename(columns={"sentence": "text", "img": "image"})
        rows.sample(ROWS[source], random_state=0).to_parquet(table)
    values = deep_merge(values, {"name": name, "data": {"source": str(table)}})
    if source == "cifar10":
        if models is None:
            raise SystemExit("cifar10 needs --models, the folder with `vit`")
        values = deep_merge(values, {"model": {"name": str(models / "vit")}})
    path = work / f"{name}.json"
    path.write_text(json.dumps(values))
    return path


def one(name: str, path: Path, work: Path) -> str:
    """Carry out or go on with one audit; a line about it."""
    from trifed import make_config
    from trifed.attacks.audit import audit
    from trifed.config.run import to_toml
    from trifed.reports.audit.report import audit_page

    toml = work / f"{name}.toml"
    toml.write_text(to_toml(make_config(json.loads(path.read_text()))))
    found = audit(toml, work / name, AUDITS[name][2], progress=lambda text: print(f"{name}: {text}", flush=True))
    (work / name / "audit.html").write_text(audit_page(found, lambda text: None))
    kept = found.model_dump(mode="json")
    for part in ("reconstruction", "means"):
        for row in kept[part]:
            row["attempts"] = []  # people's words, and large
    kept["configuration"]["data"]["source"] = SOURCES[AUDITS[name][0]]
    kept["configuration"]["model"]["name"] = Path(kept["configuration"]["model"]["name"]).name
    kept["environment"]["base_model"] = Path(kept["environment"]["base_model"]).name
    out = HERE / "results" / f"{name}.json"
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps(kept, indent=1) + "\n")
    held = ", ".join(f"{'holds' if claim.holds else 'DOES NOT HOLD'}: {claim.claim}" for claim in found.claims)
    return f"{name}: {found.seconds:.0f} s. {held}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--models", type=Path, help="folder of the small models")
    parser.add_argument("--work", type=Path, default=Path("runs/audits"))
    parser.add_argument("--only", nargs="+", choices=list(AUDITS), default=list(AUDITS))
    parser.add_argument("--jobs", type=int, default=2)
    given = parser.parse_args()
    if not given.data.is_dir():
        parser.error(f"--data {given.data}: no such folder; it holds the public data sets")
    os.environ["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // given.jobs))
    paths = {name: settings(name, given.data, given.models, given.work) for name in given.only}
    with ProcessPoolExecutor(given.jobs, multiprocessing.get_context("spawn")) as pool:
        jobs = [pool.submit(one, name, path, given.work) for name, path in paths.items()]
        for future in as_completed(jobs):
            print(future.result(), flush=True)


if __name__ == "__main__":
    main()
