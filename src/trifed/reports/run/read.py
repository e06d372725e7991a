"""From a run's folder, finished or broken off, to a study of one partition: the run and its baselines."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from trifed.common.errors import RunError
from trifed.config.run import read_toml
from trifed.federation.results import summarise_events
from trifed.federation.run_folder import RunFolder
from trifed.methods import METHODS
from trifed.reports.privacy import sentences
from trifed.reports.results import (
    Details,
    Matrix,
    MethodResult,
    Missing,
    Partition,
    Plateau,
    Point,
    Source,
    Spread,
    Study,
)
from trifed.reports.run.traffic import manifest, traffic

Say = Callable[[str], None]
PLATEAU = 0.01


def read_run(path: Path, say: Say) -> Source:
    """A run's folder and its baselines'.

    Raises:
        RunError: no run there, or files in it that are damaged.
    """
    folder = RunFolder.open(path)
    config = read_toml(path / "config.toml")
    seed, name = int(config.get("seed", 0)), partition_name(config)
    folders = {_method_of(config): folder}
    folders |= {other: RunFolder(path / "baselines" / other) for other in config.get("baselines", [])}
    states = {method: state_of(inner) for method, inner in folders.items()}
    study = Study(
        name=config.get("name", path.name),
        methods=list(folders),
        partitions=[name],
        seeds=[seed],
        finished=not any(states.values()),
        configuration=config,
        environment=_read_json(folder, "environment.json") or {},
        missing=[
            Missing(partition=name, method=m, seed=seed, state=state) for m, state in states.items() if state
        ],
        results={name: _partition(folders, seed, say)},
    )
    go_on = "" if study.finished else f"trifed run --resume {shlex.quote(str(path))}"
    return Source(path, "run", study, {name: read_details(folders)}, go_on)


def _partition(folders: dict[str, RunFolder], seed: int, say: Say) -> Partition:
    methods: dict[str, MethodResult] = {}
    controls: dict[str, Spread] = {}
    clients: list[str] = []
    metric = "accuracy"
    for method, folder in folders.items():
        say(f"reading {method}")
        summary = _summary(folder)
        if summary is None:
            continue
        metric = summary.get("metric", metric)
        clients = clients or [client["name"] for client in summary["clients"]]
        controls = controls or {c: _control(found, clients) for c, found in summary.get("controls", {}).items()}
        if summary["accuracy"] is not None:
            methods[method] = _method_result(method, summary, folder)
    found = Partition(seeds=[seed], metric=metric, clients=clients, methods=methods, controls=controls)
    pairs = [(one, other) for place, one in enumerate(methods) for other in list(methods)[place + 1 :]]
    gaps = {f"{one} minus {other}": found.difference(one, other) for one, other in pairs}
    return found.model_copy(update={"differences": {name: gap for name, gap in gaps.items() if gap is not None}})


def read_details(folders: dict[str, RunFolder]) -> Details:
    """What only the run folders know of one partition: split, matrices, bytes by tensor."""
    split = next(filter(None, (_read_json(folder, "split.json") for folder in folders.values())), None)
    matrices, number = {}, 0
    for method, folder in folders.items():
        files = sorted((folder.path / "matrices").glob("round-*.safetensors"))
        if files:
            found = _matrices(files[-1])
            if len(found) > 1 or any(map(_rows_differ, found.values())):  # else those of a plain average
                matrices[method], number = found, int(files[-1].stem.removeprefix("round-"))
    clients = len(split["clients"]) if split else 1
    manifest_of = {method: manifest(folder.events(), clients) for method, folder in folders.items()}
    sent = {method: found for method, found in manifest_of.items() if found}
    before = _before(next(iter(folders.values()), None))
    return Details(split, matrices, number, sent, before, tuple(_warned(folders)))


def _warned(folders: dict[str, RunFolder]) -> Iterable[str]:
    """Clients that let out what a guard would have kept, with the setting that let it."""
    for method, folder in folders.items():
        for event in folder.events():
            if event["event"] == "warned":
                yield f"{event['client']} with {method} ({event['text'].partition(':')[0]})"


def _before(folder: RunFolder | None) -> dict[str, float | None]:
    """Each client's test accuracy at the start, which all methods share."""
    events = folder.events() if folder else []
    return {e["client"]: e["test"]["accuracy"] for e in events if e["event"] == "scores" and e["stage"] == "start"}


def state_of(folder: RunFolder) -> str:
    """Empty for a finished run, else how far it came."""
    if not (folder.path / "config.toml").is_file():
        return "not started"
    if (folder.path / "summary.json").is_file():
        return ""
    done = folder.rounds_done()
    return f"broken off after round {done}" if done else "broken off before the end of round 1"


def partition_name(config: dict[str, Any]) -> str:
    """The table's name and how it was cut, as `tickets.csv by column site`."""
    data = config.get("data", {})
    clients = data.get("clients", {})
    detail = {
        "column": f"column {clients.get('column')}",
        "dirichlet": f"dirichlet {clients.get('alpha')}",
        "pathological": f"{clients.get('labels_per_client')} labels a client",
    }
    split = clients.get("split", "iid")
    return f"{PurePath(str(data.get('source', 'data'))).name} by {detail.get(split, split)}"


def _method_of(config: dict[str, Any]) -> str:
    method = config.get("method", {})
    return method if isinstance(method, str) else str(method.get("name", "ce-lora"))


def _read_json(folder: RunFolder, name: str) -> Any:
    path = folder.path / name
    if not path.is_file():
        return None
    try:
        return folder.read_json(name)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise RunError(
            f"{path}: not the JSON that a run writes ({error}); put the file back, or run it again"
        ) from error


def _summary(folder: RunFolder) -> dict[str, Any] | None:
    """summary.json, or as much of it as the whole rounds of a broken-off run tell; None without any."""
    if (folder.path / "summary.json").is_file():
        found: dict[str, Any] = _read_json(folder, "summary.json")
        return found
    # Without the round that was under way: a mean over the clients that came first would mislead.
    events = folder.whole_rounds()
    started = next((e for e in events if e["event"] == "started"), None)
    return {**summarise_events(events, started["scored"], 0), "method": started["method"]} if started else None


def _method_result(method: str, summary: dict[str, Any], folder: RunFolder) -> MethodResult:
    config = read_toml(folder.path / "config.toml")
    events = folder.events()
    spread = summary["accuracy"]
    points = [Point(**point) for point in summary["curve"]]
    known = METHODS.get(method)
    return MethodResult(
        citation=known.citation if known else "",
        learning_rate=config.get("training", {}).get("learning_rate"),
        evaluated_model=next((e["scored"] for e in events if "scored" in e), None),
        **{name: spread[name] for name in ("mean", "worst", "best", "weighted_mean")},
        perplexity=(summary.get("perplexity") or {}).get("mean"),
        mean_trained=(summary["accuracy_trained"] or {}).get("mean"),
        mean_received=(summary["accuracy_received"] or {}).get("mean"),
        bytes=traffic(events, len(summary["clients"])),
        fedavg_lora_would_send=summary["bytes"]["fedavg_lora_would_send"] or None,
        seconds=summary.get("seconds_total", summary["seconds"]),
        curve=points,
        plateau=_plateau(points),
        privacy=sentences(method, summary.get("privacy")),
        client_accuracy=[client["now"]["accuracy"] if client["now"] else None for client in summary["clients"]],
    )


def _control(found: dict[str, Any], clients: Iterable[str]) -> Spread:
    known = found.get("clients", {})
    return Spread(**{**found, "client_accuracy": [known.get(name) for name in clients]})


def _plateau(points: Sequence[Point]) -> Plateau | None:
    """Last quarter of the evaluated rounds against the one before; None under four of them."""
    means = [point.mean for point in points if point.round and point.mean is not None]
    quarter = len(means) // 4
    if not quarter:
        return None
    rise = float(np.mean(means[-quarter:]) - np.mean(means[-2 * quarter : -quarter]))
    return Plateau(rise_in_last_quarter=rise, reached=rise < PLATEAU)


def _rows_differ(matrix: Matrix) -> bool:
    return bool(np.ptp(matrix, axis=0).max(initial=0.0) > 1e-9)


def _matrices(path: Path) -> dict[str, Matrix]:
    try:
        arrays = load_file(path)
    except SafetensorError as error:
        raise RunError(f"{path}: damaged ({error}); remove it to get a report without it") from error
    return {
        name: array.astype(np.float64)
        for name, array in arrays.items()
        if array.ndim == 2 and array.shape[0] == array.shape[1]
    }
