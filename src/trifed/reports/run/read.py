"""Read a run's folder, finished or broken off, as a study of one partition: the run and its baselines."""

from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import combinations
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from trifed.common.errors import RunError
from trifed.config.toml_files import read_toml
from trifed.federation.results import summarise_events
from trifed.federation.run_folder import Event, RunFolder
from trifed.methods import METHODS
from trifed.reports.results import (
    Details,
    Manifest,
    Matrix,
    MethodResult,
    Missing,
    Partition,
    Plateau,
    Point,
    Source,
    Spread,
    Study,
    Traffic,
)

OnProgress = Callable[[str], None]
PLATEAU = 0.01
EXCHANGES = ("trained", "delivered")
"""Events of a round; every other event with bytes happens once, before round 1."""


def read_run(path: Path, on_progress: OnProgress) -> Source:
    """Read a run's folder and its baselines'.

    Raises:
        RunError: There is no run, or a file is damaged.
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
        results={name: _partition(folders, seed, on_progress)},
    )
    resume_command = "" if study.finished else f"trifed run --resume {shlex.quote(str(path))}"
    return Source(path, "run", study, {name: read_details(folders)}, resume_command)


def _partition(folders: dict[str, RunFolder], seed: int, on_progress: OnProgress) -> Partition:
    methods: dict[str, MethodResult] = {}
    controls: dict[str, Spread] = {}
    clients: list[str] = []
    metric = "accuracy"
    for method, folder in folders.items():
        on_progress(f"reading {method}")
        summary = _summary(folder)
        if summary is None:
            continue
        metric = summary.get("metric", metric)
        clients = clients or [client["name"] for client in summary["clients"]]
        controls = controls or {c: _control(found, clients) for c, found in summary.get("controls", {}).items()}
        if summary["accuracy"] is not None:
            methods[method] = _method_result(method, summary, folder)
    partition = Partition(seeds=[seed], metric=metric, clients=clients, methods=methods, controls=controls)
    gaps = {f"{one} minus {other}": partition.difference(one, other) for one, other in combinations(methods, 2)}
    return partition.model_copy(update={"differences": {name: gap for name, gap in gaps.items() if gap}})


def read_details(folders: dict[str, RunFolder]) -> Details:
    """Read details that only the run folders of one partition hold."""
    split = next(filter(None, (_read_json(folder, "split.json") for folder in folders.values())), None)
    events = {method: folder.events() for method, folder in folders.items()}
    matrices, number = {}, 0
    for method, folder in folders.items():
        files = sorted((folder.path / "matrices").glob("round-*.safetensors"))
        found = _matrices(files[-1]) if files else {}
        # Equal rows alone are the weights of a plain average.
        if len(found) > 1 or any(np.ptp(matrix, axis=0).max(initial=0.0) > 1e-9 for matrix in found.values()):
            matrices[method], number = found, int(files[-1].stem.removeprefix("round-"))
    manifests = {m: manifest(log, len(split["clients"]) if split else 1) for m, log in events.items()}
    first = next(iter(events.values()), [])
    before = {
        e["client"]: e["test"]["accuracy"] for e in first if e["event"] == "scores" and e["stage"] == "start"
    }
    warned = [
        f"{event['client']} with {method} ({event['text'].partition(':')[0]})"
        for method, log in events.items()
        for event in log
        if event["event"] == "warned"
    ]
    return Details(
        split, matrices, number, {m: found for m, found in manifests.items() if found}, before, tuple(warned)
    )


def traffic(events: Sequence[Event], clients: int) -> Traffic:
    """Return all bytes, and the bytes per client of one round and of what travels once."""
    rows = manifest(events, clients).values()
    total = sum(sum((event.get(way) or {}).values()) for event in events for way in ("up", "down"))
    return Traffic(**{name: sum(row[name] for row in rows) for name in _COLUMNS}, total=total)


_COLUMNS = ("up_per_round", "down_per_round", "once_up", "once_down")


def manifest(events: Sequence[Event], clients: int) -> Manifest:
    """Return bytes per client by tensor: means over the messages of rounds, and over all clients for the rest."""
    sums: dict[str, Counter[str]] = {}
    messages: Counter[str] = Counter()
    for event in events:
        for way in ("up", "down"):
            column = f"{way}_per_round" if event["event"] in EXCHANGES else f"once_{way}"
            messages[column] += bool(event.get(way))
            for name, count in (event.get(way) or {}).items():
                sums.setdefault(name, Counter())[column] += count
    shares = {c: max(1, messages[c] if c.endswith("round") else clients) for c in _COLUMNS}
    return {name: {c: row[c] / share for c, share in shares.items()} for name, row in sums.items()}


def state_of(folder: RunFolder) -> str:
    """Return how far a run came; empty for a finished one."""
    if not (folder.path / "config.toml").is_file():
        return "not started"
    if (folder.path / "summary.json").is_file():
        return ""
    done = folder.rounds_done()
    return f"broken off after round {done}" if done else "broken off before the end of round 1"


def partition_name(config: dict[str, Any]) -> str:
    """Name the table and its split, as `tickets.csv by column site`."""
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
    try:
        return folder.read_json(name) if path.is_file() else None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise RunError(
            f"{path}: not the JSON that a run writes ({error}); put the file back, or run it again"
        ) from error


def _summary(folder: RunFolder) -> dict[str, Any] | None:
    """Return summary.json, else a summary of the whole rounds so far; None without any."""
    if found := _read_json(folder, "summary.json"):
        return dict(found)
    # Without the round that was under way: a mean over the clients that came first would mislead.
    events = folder.whole_rounds()
    started = next((e for e in events if e["event"] == "started"), None)
    return {**summarise_events(events, started["scored"], 0), "method": started["method"]} if started else None


def _method_result(method: str, summary: dict[str, Any], folder: RunFolder) -> MethodResult:
    config = read_toml(folder.path / "config.toml")
    events = folder.events()
    points = [Point(**point) for point in summary["curve"]]
    known = METHODS.get(method)
    privacy = summary.get("privacy") or {}
    return MethodResult(
        citation=known.citation if known else "",
        learning_rate=config.get("training", {}).get("learning_rate"),
        evaluated_model=next((e["scored"] for e in events if "scored" in e), None),
        **{name: summary["accuracy"][name] for name in ("mean", "worst", "best", "weighted_mean")},
        perplexity=(summary.get("perplexity") or {}).get("mean"),
        mean_trained=(summary["accuracy_trained"] or {}).get("mean"),
        mean_received=(summary["accuracy_received"] or {}).get("mean"),
        bytes=traffic(events, len(summary["clients"])),
        fedavg_lora_would_send=summary["bytes"]["fedavg_lora_would_send"] or None,
        seconds=summary.get("seconds_total", summary["seconds"]),
        curve=points,
        plateau=_plateau(points),
        privacy=privacy.get("spent", privacy.get("promised", [])),
        client_accuracy=[client["now"]["accuracy"] if client["now"] else None for client in summary["clients"]],
    )


def _control(found: dict[str, Any], clients: Iterable[str]) -> Spread:
    known = found.get("clients", {})
    return Spread(**{**found, "client_accuracy": [known.get(name) for name in clients]})


def _plateau(points: Sequence[Point]) -> Plateau | None:
    """Compare the last quarter of the evaluated rounds with the one before; None with fewer than four rounds."""
    means = [point.mean for point in points if point.round and point.mean is not None]
    quarter = len(means) // 4
    if not quarter:
        return None
    rise = float(np.mean(means[-quarter:]) - np.mean(means[-2 * quarter : -quarter]))
    return Plateau(rise_in_last_quarter=rise, reached=rise < PLATEAU)


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
