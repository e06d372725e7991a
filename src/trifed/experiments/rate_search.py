"""The learning rate of a baseline that sends nothing: the best of a few on validation data.

The run's folder keeps in `learning_rates.json` what was tried. A file of the same name beside the folder keeps the
choices of all runs there, so that the next run on the same data and model does not search again.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trifed.common.errors import damage_in
from trifed.common.files import whole_file
from trifed.config.run import RunConfig
from trifed.experiments.run_result import RunResult
from trifed.federation import events
from trifed.federation.events import Listener
from trifed.federation.results import valid_value
from trifed.federation.run_folder import RunFolder
from trifed.federation.training.metrics import best_of

Json = dict[str, Any]
FILE = "learning_rates.json"


def run_at_best_rate(
    config: RunConfig,
    name: str,
    path: Path,
    run_one: Callable[[RunConfig, Path], RunResult],
    listener: Listener,
) -> None:
    """Run a baseline into `baselines/NAME`, at the rate that is best on validation data if there are several.

    Args:
        config: The run, which is finished.
        name: Name of the baseline.
        path: The run's folder.
        run_one: Runs or resumes a configuration in a folder.
        listener: Receives a line for each rate.
    """
    rates, own, folder = config.rates_to_try(name), config.with_method(name), path / "baselines" / name
    if len(rates) == 1 or not _has_validation_data(path):
        rate = rates[0] if len(rates) == 1 else own.training.learning_rate
        run_one(_at(own, rate), folder)
        return
    key, shared = _key(own, rates, path), path.parent / FILE
    known = _read(shared).get(key)
    if known is not None:
        _write(path / FILE, name, known)
        run_one(_at(own, known["chosen"]), folder)
        return
    tried: dict[float, float | None] = {}
    for number, rate in enumerate(rates, 1):
        listener(events.Trouble(f"{name}: learning rate {rate:g} ({number} of {len(rates)})").to_dict())
        candidate = _at(own, rate).model_copy(update={"trackers": []})
        tried[rate] = valid_value(run_one(candidate, _candidate(path, name, rate)).summary, config.metric)
    best = best_of(config.metric, tried)
    chosen = rates[0] if best is None else best
    found = {"grid": {f"{rate:g}": value for rate, value in tried.items()}, "chosen": chosen}
    _write(path / FILE, name, found)
    _write(shared, key, found)
    folder.parent.mkdir(exist_ok=True)
    _candidate(path, name, chosen).rename(folder)
    for tracker in config.trackers:
        from trifed.reports.tracking import track

        track(folder, tracker)


def _candidate(path: Path, name: str, rate: float) -> Path:
    return path / "tuning" / name / f"rate-{rate:g}"


def _at(config: RunConfig, rate: float) -> RunConfig:
    training = config.training.model_copy(update={"learning_rate": rate})
    return config.model_copy(update={"training": training})


def _has_validation_data(path: Path) -> bool:
    return any(client["valid"] for client in RunFolder(path).read_json("split.json")["clients"])


def _key(own: RunConfig, rates: list[float], path: Path) -> str:
    """Return the identity of a search: the baseline without its rate, the data, the base model and the rates."""
    folder = RunFolder(path)
    split, environment = folder.read_json("split.json"), folder.read_json("environment.json")
    parts = [_at(own, 1.0).run_id(), split["content_hash"], environment["base_fingerprint"]]
    parts += filter(None, [environment.get("start_digest"), environment["packages"]["trifed"]])
    decides = [] if own.metric == "accuracy" else [own.metric]
    ends = [] if own.patience is None else [f"patience-{own.patience}"]
    return " ".join([*parts, *(f"{rate:g}" for rate in rates), *decides, *ends])


def _read(file: Path) -> Json:
    if not file.is_file():
        return {}
    with damage_in(file, "remove it; the learning rates are then searched again"):
        return dict(json.loads(file.read_text()))


def _write(file: Path, key: str, value: Json) -> None:
    with whole_file(file) as partial:
        partial.write_text(json.dumps({**_read(file), key: value}, indent=1) + "\n")
