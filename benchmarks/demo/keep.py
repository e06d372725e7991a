"""Keeps the numbers of a run of `trifed demo`, so that its picture can be drawn again without training.

    trifed demo
    python benchmarks/demo/keep.py runs/demo [--rates]

Writes comparison.json beside this file, in the form of a comparison: `trifed report benchmarks/demo` reads it,
and `make figures` draws docs/demo.png from it. With --rates the learning rate of `local` is searched on validation
data first, in the same run with four rates (two to four minutes each); else an earlier search in the file stays.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from trifed import run
from trifed.experiments.demo import demo_config
from trifed.reports.read import read_source
from trifed.reports.results import Rates, Study, Tuning

TARGET = Path(__file__).parent / "comparison.json"
RATES = (0.001, 0.003, 0.009, 0.027)


def searched(rounds: int) -> Rates:
    """Train `local` with each rate; return the mean accuracy on validation data after the last round."""
    found = {}
    for rate in RATES:
        config = demo_config(rounds).with_method("local")
        training = config.training.model_copy(update={"learning_rate": rate})
        with tempfile.TemporaryDirectory() as folder:
            done = run(config.model_copy(update={"training": training}), Path(folder) / "run")
        found[f"{rate:g}"] = done.summary["curve"][-1]["valid_mean"]
    return Rates(grid=found, chosen=float(max(found, key=lambda name: found[name])))


def without_details(study: Study, rates: Rates | None) -> dict[str, Any]:
    """Return a study as JSON without its scores by class, and without the path of the data."""
    results = {
        name: partition.model_copy(
            update={"methods": {m: f.model_copy(update={"classes": []}) for m, f in partition.methods.items()}}
        )
        for name, partition in study.results.items()
    }
    tuning = {name: Tuning(methods={"local": rates}) for name in results} if rates else {}
    kept = study.model_copy(update={"results": results, "tuning": tuning})
    found: dict[str, Any] = kept.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    found["configuration"]["data"]["source"] = "src/trifed/data/demo/support.jsonl"
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the run's folder")
    parser.add_argument("--rates", action="store_true", help="search the learning rate of local")
    given = parser.parse_args()
    study = read_source(given.folder).study
    rates = None
    if given.rates:
        rates = searched(study.configuration["rounds"])
    elif TARGET.is_file():
        earlier = Study.model_validate_json(TARGET.read_bytes()).tuning.values()
        rates = next((tuning.methods["local"] for tuning in earlier), None)
    TARGET.write_text(json.dumps(without_details(study, rates), indent=1) + "\n", encoding="utf-8")
    for name, found in study.results.items():
        print(name, {method: round(100 * (one.mean or 0), 1) for method, one in found.methods.items()})


if __name__ == "__main__":
    main()
