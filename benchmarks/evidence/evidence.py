"""What does each method reach at equal bits, with equal parts, at tuned rates? Runs that are missing, in order.

    python benchmarks/evidence/evidence.py --data DIR [--models DIR] [--work DIR] [--hours H] [--sets SET ...]
        [--arms ARM ...] [--tier TIER] [--seeds SEED ...] [--list] [--try EXAMPLES]

--data holds the public data sets, each a folder with a train.parquet, --models the models of the sets that name
one. `data_sets.py` and `design.py` say what is compared. For a set and an arm, first the learning rate is chosen,
by accuracy or loss on validation data of that set under the first seed: three rates for a quarter of the rounds
(and up to two more, beyond the best, while that is the lowest or the highest), the better two for half of them.
The best one goes on to the last round, and is used with the further seeds. Each run that ends is a line in
results/SET.jsonl, with what is needed to compare it in pairs: which test rows it got right, or each client's loss.
A stopped script goes on where it was; with --hours it starts no run after that time. Make the tables with
`tables.py`.

With --try each arm of each set makes one round with so many examples a client at most, of which nothing is kept:
does all of it work here, and how long does a round take?
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from data_sets import SETS, write_table
from design import ALL_ARMS, MOST_RATES, RATE_FACTOR, RUN, TIERS, Arm
from records import HERE, Json, environment, facts, reported, results

from trifed import make_config
from trifed.common.dict_merge import deep_merge
from trifed.experiments.runner import RunResult, resume, run
from trifed.federation.events import Event
from trifed.federation.results import summarise_events
from trifed.federation.run_folder import RunFolder
from trifed.federation.training.metrics import better


def rates(arm: Arm, times: float = 1.0) -> list[float]:
    """Return the learning rates that are tried, in rising order; `times` is the set's factor."""
    usual = arm.rate * times
    return [float(f"{rate:.3g}") for rate in (usual / RATE_FACTOR, usual, usual * RATE_FACTOR)]


def configuration(
    name: str, arm: Arm, seed: int, rate: float, table: Path | str, models: Path | str = "MODELS"
) -> Json:
    """Return the nested settings of one run."""
    chosen = SETS[name]
    own: Json = {
        "rounds": chosen.rounds,
        "evaluate_every": chosen.rounds // 4,
        "data": {"source": str(table), "clients": chosen.clients},
        "training": {"learning_rate": rate},
    }
    if chosen.model:
        own["model"] = {"name": f"{models}/{chosen.model}"}
    if chosen.metric != "accuracy":
        own["metric"] = chosen.metric
    changes: Json = {}
    for part in (chosen.settings, own, arm.settings, {"seed": seed, "name": "evidence"}):
        changes = deep_merge(changes, part)
    if chosen.all_layers and "target_modules" in changes.get("adapter", {}):
        changes["adapter"]["target_modules"] = list(chosen.all_layers)
    return deep_merge(RUN, changes)


class Measured:
    """Runs of the comparison: those that are kept, and how to make one more."""

    def __init__(self, data: Path, work: Path, out: Path, models: Path | None = None) -> None:
        self.data, self.work, self.out, self.models = data, work, out, models
        self.about = environment()

    @property
    def folder_of_models(self) -> Path | str:
        """The folder of the models, as settings name it."""
        return self.models.resolve() if self.models else "MODELS"

    def find(self, name: str, **wanted: Any) -> Json | None:
        """Return the record with these values, if there is one."""
        kept = (r for r in results(name, self.out) if all(r[key] == value for key, value in wanted.items()))
        return next(kept, None)

    def chosen_rate(self, name: str, arm: str) -> Iterator[float | None]:
        """Yield None before each tuning run that is needed, and at the end the rate that was chosen."""
        tuned, chosen = ALL_ARMS[arm].tuned_as or arm, SETS[name]
        left, seed = rates(ALL_ARMS[tuned], chosen.rate_times), chosen.seeds[0]
        for keep, rounds in ((2, chosen.rounds // 4), (1, chosen.rounds // 2)):
            scores: dict[float, float | None] = {}
            while waiting := [rate for rate in left if rate not in scores]:
                rate = waiting[0]
                wanted = {"arm": tuned, "seed": seed, "rate": rate, "rounds": rounds}
                if self.find(name, **wanted) is None:
                    yield None
                    self.measure(name, tuned, seed, rate, rounds)
                found = self.find(name, **wanted)
                scores[rate] = found["valid"] if found else None
                if keep == 2 and len(scores) == len(left) < MOST_RATES:
                    left = [*left, *rate_beyond(scores, chosen.metric)]
            left = sorted(best_rates(scores, chosen.metric)[:keep])
        yield left[0]

    def measure(self, name: str, arm: str, seed: int, rate: float, rounds: int) -> Json:
        """Make one run up to a round, or go on with it, and keep its record."""
        table = write_table(name, self.data, seed, self.work / "tables")
        values = configuration(name, ALL_ARMS[arm], seed, rate, table, self.folder_of_models)
        known = hashlib.sha256(json.dumps([name, ALL_ARMS[arm].settings, seed, rate]).encode()).hexdigest()[:12]
        folder = self.work / f"{name}-{known}"
        began = time.monotonic()
        summary = summary_after(values, folder, rounds)
        record = {
            "set": name,
            "arm": arm,
            "seed": seed,
            "rate": rate,
            "rounds": rounds,
            "ended": datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds": round(time.monotonic() - began, 1),
            **facts(folder, summary, SETS[name].metric, with_answers=rounds == SETS[name].rounds),
            "settings": configuration(name, ALL_ARMS[arm], seed, rate, f"DIR/{SETS[name].folder}/train.parquet"),
            "environment": self.about,
        }
        self.out.mkdir(parents=True, exist_ok=True)
        with (self.out / f"{name}.jsonl").open("a") as file:
            file.write(json.dumps(record) + "\n")
        if rounds == SETS[name].rounds:
            shutil.rmtree(folder)
        return record


class PausedError(Exception):
    """A run has made the rounds that were asked for."""


def summary_after(values: Json, folder: Path, rounds: int) -> Json:
    """Make a run up to a round, or go on with it; return its summary, before the last round that of its events.

    A run of the choice of a rate is interrupted, as a user may do, and not planned for fewer rounds: then a
    schedule is that of the whole run, and only the last round scores all models of a client.
    """
    config = make_config(values)

    def listener(event: Event) -> None:
        if config.rounds > rounds and event.get("round", 0) > rounds:
            raise PausedError

    try:
        there = (folder / "config.toml").is_file()
        result: RunResult = resume(folder, listener) if there else run(config, folder, listener)
    except PausedError:
        kept = RunFolder.open(folder).whole_rounds()
        found = summarise_events(kept, config.composed_method().evaluated_model, 1, config.metric)
        return {**found, "bytes": {key: found["bytes"][key] for key in ("up", "down", "total", "summaries")}}
    return result.summary


def rate_beyond(scores: dict[float, float | None], metric: str) -> list[float]:
    """Return one more rate to try if the best is at an end of those that were tried; otherwise none."""
    best, times = best_rates(scores, metric)[0], {min(scores): 1 / RATE_FACTOR, max(scores): RATE_FACTOR}
    return [float(f"{best * times[best]:.3g}")] if best in times else []


def trial(measured: Measured, name: str, arm: str, examples: int) -> Json:
    """Return the record of one round with at most `examples` of each client, of which nothing is kept."""
    chosen, seed = ALL_ARMS[arm], SETS[name].seeds[0]
    with tempfile.TemporaryDirectory() as scratch:
        table = write_table(name, measured.data, seed, Path(scratch))
        rate = chosen.rate * SETS[name].rate_times
        values = configuration(name, chosen, seed, rate, table, measured.folder_of_models) | {"rounds": 1}
        clients = values["data"]["clients"]
        least = min(clients.get("min_examples", 1), examples)
        most = min(clients.get("max_examples", examples), examples)
        values["data"]["clients"] = {**clients, "min_examples": least, "max_examples": most}
        began = time.process_time()
        result = run(make_config(values), Path(scratch) / "run")
        found = facts(result.path, result.summary, SETS[name].metric, with_answers=True)
        seconds = {key: result.summary[key] for key in ("seconds", "seconds_total")}
        return {**found, **seconds, "processor_seconds": time.process_time() - began}


def best_rates(scores: dict[float, float | None], metric: str) -> list[float]:
    """Return the learning rates by their scores on validation data, the best first, of equal ones the lowest."""
    order: list[float] = []
    # Means over clients of equal shares may differ in the last bit, which depends on the order of a sum.
    scores = {rate: None if score is None else round(score, 9) for rate, score in scores.items()}
    for rate in sorted(scores):
        place = next(
            (n for n, other in enumerate(order) if better(metric, scores[rate], scores[other])), len(order)
        )
        order.insert(place, rate)
    return order


def plan(tier: str, sets: list[str], arms: list[str], seeds: Iterable[int] = ()) -> Iterator[tuple[str, str, int]]:
    """Yield sets, arms and seeds in order: all sets for an arm, then the next arm; all arms for a seed."""
    usual_sets, usual_arms = TIERS[tier]
    chosen = sets or usual_sets
    for seed in seeds or sorted({seed for name in chosen for seed in SETS[name].seeds}):
        for arm in arms or usual_arms:
            for name in chosen:
                if seed in SETS[name].seeds and fits(name, arm):
                    yield name, arm, seed


def fits(name: str, arm: str) -> bool:
    """Return whether an arm's settings have a meaning on a set: groups of domains need domains."""
    return "members" not in ALL_ARMS[arm].settings.get("aggregation", {}) or SETS[name].table == "by_domain"


def missing(measured: Measured, name: str, arm: str, seed: int) -> Iterator[None]:
    """Make the missing runs of an arm on a set with a seed; yield before each."""
    rate: float | None = None
    for rate in measured.chosen_rate(name, arm):
        if rate is None:
            yield
    assert rate is not None  # the last value of chosen_rate
    rounds = SETS[name].rounds
    if measured.find(name, arm=arm, seed=seed, rate=rate, rounds=rounds) is None:
        yield
        record = measured.measure(name, arm, seed, rate, rounds)
        shown = in_words(name, record["mean"])
        print(f"{name} · {arm} · seed {seed} · rate {rate}: {shown}, {record['seconds']:.0f} s", flush=True)


def in_words(name: str, value: float) -> str:
    """Return a value of a set's metric as text."""
    metric = SETS[name].metric
    return f"{100 * value:.1f} %" if metric == "accuracy" else f"{metric} {value:.3f}"


def absent_model(sets: Iterable[str], models: Path | None) -> str:
    """Return a line on the first model that these sets need and that is not there; empty if all are there."""
    for name in sets:
        model = SETS[name].model
        if model and models is None:
            return f"{name} needs a folder {model}; give the folder that holds it with --models DIR"
        if model and models and not (models / model / "config.json").is_file():
            return (
                f"{name} needs --models {models}/{model}, a model's folder with a config.json, which is not there"
            )
    return ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--models", type=Path, help="folder of the models that sets name")
    parser.add_argument("--work", type=Path, default=Path("runs/evidence"), help="folder of runs under way")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    parser.add_argument("--hours", type=float, default=math.inf, help="start no run after this time")
    parser.add_argument("--sets", nargs="+", choices=list(SETS), default=[])
    parser.add_argument("--arms", nargs="+", choices=list(ALL_ARMS), default=[])
    parser.add_argument("--tier", choices=list(TIERS), default="first")
    parser.add_argument("--seeds", nargs="+", type=int, default=[], help="those of the set unless given")
    parser.add_argument("--list", action="store_true", help="print which results are there, and stop")
    parser.add_argument(
        "--try",
        dest="examples",
        type=int,
        metavar="EXAMPLES",
        help="one round of each run with so many examples a client at most; nothing is kept",
    )
    given = parser.parse_args()
    if not given.data.is_dir():
        parser.error(f"--data {given.data}: no such folder; it holds glue_sst2/train.parquet and others")
    planned = list(plan(given.tier, given.sets, given.arms, given.seeds))
    absent = "" if given.list else absent_model((name for name, _, _ in planned), given.models)
    if absent:
        print(absent, file=sys.stderr)
        raise SystemExit(2)
    measured = Measured(given.data, given.work, given.out, given.models)
    if given.examples:
        for name, arm in dict.fromkeys((name, arm) for name, arm, _ in planned):
            found = trial(measured, name, arm, given.examples)
            parts = [
                f"{in_words(name, found['mean'])} after one round with {sum(found['train_examples'])} examples",
                f"{found['seconds']:.0f} s of training",
                f"{found['seconds_total']:.0f} s in all",
                f"{found['processor_seconds']:.0f} s of the processor",
            ]
            print(f"{name} · {arm}: {', '.join(parts)}", flush=True)
        return
    end = time.monotonic() + 3600 * given.hours
    for name, arm, seed in planned:
        if given.list:
            there = any(r["arm"] == arm and r["seed"] == seed and reported(r) for r in results(name, given.out))
            print(f"{name:20} {arm:24} seed {seed}: {'there' if there else 'missing'}")
            continue
        for _ in missing(measured, name, arm, seed):
            if time.monotonic() > end:
                print("time is up; the same command goes on from here")
                return


if __name__ == "__main__":
    main()
