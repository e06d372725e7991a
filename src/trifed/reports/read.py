"""Read a folder as a `Source`: a run with its baselines, finished or broken off, or a comparison with its runs."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load_file

from trifed.common.errors import RunError, damage_in
from trifed.config.toml_files import read_toml
from trifed.deployment.checkpoint import FACTS
from trifed.federation.results import summarise_events
from trifed.federation.run_folder import Event, RunFolder
from trifed.methods import METHODS
from trifed.reports.format import plural
from trifed.reports.results import (
    PER_CLIENT,
    PLAIN_LORA,
    Deciding,
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
    Tuning,
)

OnProgress = Callable[[str], None]
AUDIT, COMPARISON, SETTINGS = "audit.json", "comparison.json", "comparison.toml"
EXCHANGES = ("trained", "delivered")
"""Events of a round; every other event with bytes happens once, before round 1."""


def silent(text: str) -> None:
    """Ignore progress."""


def read_source(path: Path, on_progress: OnProgress = silent) -> Source:
    """Read the folder of a run or a comparison.

    Raises:
        RunError: Neither is there, or a file in it is damaged.
    """
    with damage_in(path, "put the whole folder back, or run it again"):
        if (path / COMPARISON).is_file():
            return _read_comparison(path, on_progress)
        if (path / "config.toml").is_file():
            return _read_run(path, on_progress)
    if (path / SETTINGS).is_file():
        raise RunError(
            f"{path}: this comparison has no {COMPARISON} yet, which is written when it ends or is stopped; "
            f"to go on with it: {_resume_command(path)}"
        )
    if not path.exists():
        raise RunError(
            f"{path}: no such folder; expected the folder of a run, of a comparison or of an audit. "
            f"{_way_out(path)}"
        )
    inside = sorted(p.name for p in path.iterdir() if (p / "config.toml").is_file()) if path.is_dir() else []
    hint = f"; inside are {', '.join(inside[:5])}" if inside else ""
    kind = "a file" if path.is_file() else "a folder with neither"
    raise RunError(
        f"{path}: got {kind}, expected the folder of a run, as runs/NAME (it has a config.toml), of a "
        f"comparison (it has a {COMPARISON}) or of an audit (it has an {AUDIT}){hint}"
    )


def _way_out(missing: Path) -> str:
    """Return which folders near a missing one can be reported, or else how to make one."""
    for place in (missing.parent, missing.parent / "runs"):
        # Unlike `iterdir`, `glob` passes over folders that may not be read.
        found = sorted({f.parent for name in ("config.toml", COMPARISON, AUDIT) for f in place.glob(f"*/{name}")})
        if found:
            return f"Give one that is there, as {', '.join(map(str, found[:5]))}."
    return "Make one first: `trifed run --name NAME --data TABLE` writes runs/NAME."


def _read_comparison(path: Path, on_progress: OnProgress) -> Source:
    file = path / COMPARISON
    try:
        study = Study.model_validate_json(file.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the whole file"
        raise RunError(
            f"{file}: {place}: {first['msg']}; expected what a comparison writes; make the comparison again, or "
            f"read it with the version of trifed that wrote it"
        ) from error
    resumable = not study.finished and (path / SETTINGS).is_file()
    details = read_comparison_details(path, study, on_progress)
    return Source(path, "comparison", study, details, _resume_command(path) if resumable else "")


def read_comparison_details(path: Path, study: Study, on_progress: OnProgress = silent) -> dict[str, Details]:
    """Read, for each partition of a comparison, the details that only the runs' own folders hold."""
    details = {}
    for number, name in enumerate(study.results, 1):
        on_progress(f"reading {name} ({number} of {len(study.results)})")
        # The first seed that has a folder stands for a method: it is the last one that is put in.
        folders = {
            method: RunFolder(path / "runs" / name / method / f"seed-{seed}")
            for method in study.methods
            for seed in reversed(study.seeds)
            if (path / "runs" / name / method / f"seed-{seed}" / "config.toml").is_file()
        }
        details[name] = _read_details(folders)
    return details


def _resume_command(path: Path) -> str:
    return f"trifed compare {shlex.quote(str(path / SETTINGS))} --runs {shlex.quote(str(path.parent))}"


def _read_run(path: Path, on_progress: OnProgress) -> Source:
    """Read a run and its baselines as a study of one partition."""
    config = read_toml(path / "config.toml")
    folders = {config["method"]["name"]: RunFolder(path)}
    folders |= {other: RunFolder(path / "baselines" / other) for other in config.get("baselines") or []}
    seed, name = config["seed"], partition_name(config)
    states = {method: _state_of(folder) for method, folder in folders.items()}
    finished = not any(states.values())
    between_sites = (path / FACTS).is_file()
    study = Study(
        name=config.get("name", path.name),
        methods=list(folders),
        partitions=[name],
        seeds=[seed],
        finished=finished,
        between_sites=between_sites,
        configuration=config,
        environment=_read_json(folders[config["method"]["name"]], "environment.json") or {},
        missing=[
            Missing(partition=name, method=m, seed=seed, state=state) for m, state in states.items() if state
        ],
        tuning=_searched_rates(RunFolder(path), name),
        results={name: _partition(folders, seed, on_progress)},
    )
    resume_command = "" if finished else _resume_run(path, between_sites)
    return Source(path, "run", study, {name: _read_details(folders)}, resume_command)


def _resume_run(path: Path, between_sites: bool) -> str:
    """Return the command that continues a run; of one between sites the script in the server's folder."""
    if not between_sites:
        return f"trifed run --resume {shlex.quote(str(path))}"
    script = path.parent.parent / "run.sh"
    return shlex.quote(str(script)) if script.is_file() else "run.sh"


def _searched_rates(folder: RunFolder, partition: str) -> dict[str, Tuning]:
    """Return the learning rates that were tried for baselines."""
    tried = _read_json(folder, "learning_rates.json")
    metric = read_toml(folder.path / "config.toml").get("metric", "accuracy")
    return {partition: Tuning(methods=tried, deciding=Deciding.of(metric))} if tried else {}


def partition_name(config: dict[str, Any]) -> str:
    """Name the table and its split, as `tickets.csv by column site`."""
    data = config.get("data", {})
    clients = data.get("clients", {})
    detail = {
        "column": f"column {clients.get('column')}",
        "dirichlet": f"dirichlet {clients.get('alpha')}",
        "pathological": f"{plural(clients.get('labels_per_client') or 0, 'label')} a client",
    }
    split = clients.get("split", "iid")
    return f"{PurePath(str(data.get('source', 'data'))).name} by {detail.get(split, split)}"


def _state_of(folder: RunFolder) -> str:
    """Return how far a run came; empty for a finished one."""
    if not (folder.path / "config.toml").is_file():
        return "not started"
    if (folder.path / "summary.json").is_file():
        return ""
    done = folder.rounds_done()
    return f"broken off after round {done}" if done else "broken off before the end of round 1"


def _partition(folders: dict[str, RunFolder], seed: int, on_progress: OnProgress) -> Partition:
    found: dict[str, dict[str, Any] | None] = {}
    for method, folder in folders.items():
        on_progress(f"reading {method}")
        found[method] = _summary(folder)
    summaries = {method: summary for method, summary in found.items() if summary}
    first: dict[str, Any] = next(iter(summaries.values()), {"clients": []})
    clients = [client["name"] for client in first["clients"]]
    controls: dict[str, Any] = next((s["controls"] for s in summaries.values() if s.get("controls")), {})
    partition = Partition(
        seeds=[seed],
        metric=first.get("metric", "accuracy"),
        deciding=Deciding.of(first.get("deciding_metric", "accuracy")),
        clients=clients,
        methods={m: _method_result(m, s, folders[m]) for m, s in summaries.items() if s["accuracy"] is not None},
        controls={
            name: Spread(**{**spread, "client_accuracy": [spread.get("clients", {}).get(c) for c in clients]})
            for name, spread in controls.items()
        },
    )
    pairs = combinations(partition.methods, 2)
    gaps = {f"{one} minus {other}": partition.difference(one, other) for one, other in pairs}
    return partition.model_copy(update={"differences": {name: gap for name, gap in gaps.items() if gap}})


def _summary(folder: RunFolder) -> dict[str, Any] | None:
    """Return summary.json, else a summary of the whole rounds so far; None without any."""
    if found := _read_json(folder, "summary.json"):
        return dict(found)
    # Without the round that was under direction: a mean over the clients that came first would mislead.
    events = folder.whole_rounds()
    started = next((e for e in events if e["event"] == "started"), None)
    if started is None:
        return None
    config = read_toml(folder.path / "config.toml")
    bits = config.get("wire", {}).get("bits", 32)
    return summarise_events(events, started["scored"], 0, config.get("metric", "accuracy"), bits)


def _method_result(method: str, summary: dict[str, Any], folder: RunFolder) -> MethodResult:
    config = read_toml(folder.path / "config.toml")
    events = folder.events()
    points = [Point(**point) for point in summary["curve"]]
    kept = summary.get("kept_round", {}).get("round")
    privacy = summary.get("privacy") or {}
    return MethodResult(
        citation=METHODS[method].citation if method in METHODS else "",
        learning_rate=config.get("training", {}).get("learning_rate"),
        evaluated_model=next((e["scored"] for e in events if "scored" in e), None),
        **{name: summary["accuracy"][name] for name in ("mean", "worst", "best", "weighted_mean")},
        perplexity=(summary.get("perplexity") or {}).get("mean"),
        mean_trained=(summary["accuracy_trained"] or {}).get("mean"),
        mean_received=(summary["accuracy_received"] or {}).get("mean"),
        bytes=_traffic(events, len(summary["clients"])),
        **{name: value or None for name, value in summary["bytes"].items() if name in PLAIN_LORA},
        seconds=summary.get("seconds_total", summary["seconds"]),
        curve=points,
        metrics={
            name: Spread(**found, client_accuracy=[(c["now"] or {}).get(name) for c in summary["clients"]])
            for name, found in summary.get("metrics", {}).items()
        },
        kept_round=kept,
        kept_rounds=[] if kept is None else [kept],
        classes=[
            {"client": client["name"], "class": name, **scores}
            for client in summary["clients"]
            for name, scores in client.get("classes", {}).items()
        ],
        plateau=Plateau.of([point.mean for point in points if point.round]),
        fewest_in_a_sum=(summary["sealing"]["fewest"] or 0) if "sealing" in summary else None,
        privacy=privacy.get("spent", privacy.get("promised", [])),
        client_accuracy=[client["now"]["accuracy"] if client["now"] else None for client in summary["clients"]],
    )


def _read_details(folders: dict[str, RunFolder]) -> Details:
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
    manifests = {m: _manifest(log, len(split["clients"]) if split else 1) for m, log in events.items()}
    return Details(
        split=split,
        matrices=matrices,
        round=number,
        manifest={method: tensors for method, tensors in manifests.items() if tensors},
        before={
            event["client"]: event["test"]["accuracy"]
            for event in next(iter(events.values()), [])
            if event["event"] == "scores" and event["stage"] == "start"
        },
        warned=tuple(
            f"{event['client']} with {method} ({event['text'].partition(':')[0]})"
            for method, log in events.items()
            for event in log
            if event["event"] == "warned"
        ),
        diverged=tuple(
            f"{event['client']} with {method}"
            for method, log in events.items()
            for event in log
            if event["event"] == "diverged"
        ),
    )


def _traffic(events: Sequence[Event], clients: int) -> Traffic:
    """Return all bytes, and the bytes per client of one round and of what travels once."""
    rows = _manifest(events, clients).values()
    total = sum(sum((event.get(direction) or {}).values()) for event in events for direction in ("up", "down"))
    return Traffic(**{name: sum(row[name] for row in rows) for name in PER_CLIENT}, total=total)


def _manifest(events: Sequence[Event], clients: int) -> Manifest:
    """Return bytes per client by tensor: means over the messages of rounds, and over all clients for the rest."""
    sums: dict[str, Counter[str]] = {}
    messages: Counter[str] = Counter()
    for event in events:
        for direction in ("up", "down"):
            column = f"{direction}_per_round" if event["event"] in EXCHANGES else f"once_{direction}"
            messages[column] += bool(event.get(direction))
            for name, count in (event.get(direction) or {}).items():
                sums.setdefault(name, Counter())[column] += count
    shares = {c: max(1, messages[c] if c.endswith("round") else clients) for c in PER_CLIENT}
    return {name: {c: row[c] / share for c, share in shares.items()} for name, row in sums.items()}


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


def _read_json(folder: RunFolder, name: str) -> Any:
    return folder.read_json(name) if (folder.path / name).is_file() else None
