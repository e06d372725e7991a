"""From a configuration to a finished run: data, base, rounds, controls, exports, result."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trifed.config import RunConfig, make_config, read_toml, to_toml
from trifed.controls import ClientFeatures, run_controls
from trifed.data import Examples, FederatedData, make_clients, split_to_json
from trifed.engines.simulator import Listener, Simulation
from trifed.errors import RunError
from trifed.federation.client import Client, score, summary_seeds
from trifed.federation.exports import Classifier, Writer, load_client, load_writer, save_client
from trifed.federation.guards import refuse_few_tokens
from trifed.federation.loudness import loudness
from trifed.federation.matching import Matcher, load_matcher
from trifed.federation.results import perplexity, spread, summarise_events
from trifed.federation.spending import most_spent
from trifed.federation.store import Event, RunFolder
from trifed.federation.workbench import Workbench, build_workbench
from trifed.methods import METHODS
from trifed.tasks import TASKS
from trifed.tasks.base_model import LoadedBase
from trifed.tracking import LiveTracking, require_trackers
from trifed.training import choose_device, choose_precision

PACKAGES = (
    "trifed",
    "torch",
    "transformers",
    "peft",
    "datasets",
    "flwr-datasets",
    "numpy",
    "scikit-learn",
    "POT",
)


@dataclass(frozen=True)
class RunResult:
    """A finished run. `summary` and `split` are what summary.json and split.json hold."""

    path: Path
    summary: dict[str, Any]
    split: dict[str, Any]
    baselines: dict[str, RunResult]

    @property
    def accuracy(self) -> dict[str, float]:
        """`mean`, `worst`, `best` and `weighted_mean` test accuracy over the clients."""
        return {name: self.summary["accuracy"][name] for name in ("mean", "worst", "best", "weighted_mean")}

    def client(self, name: str) -> Classifier:
        """One client's model, ready to predict.

        Raises:
            RunError: there is no such client, or it is a language model, for `writer`.
        """
        return load_client(self.path / "clients" / name)

    def writer(self, name: str) -> Writer:
        """One client's language model, ready to answer.

        Raises:
            RunError: there is no such client, or it is a classifier.
        """
        return load_writer(self.path / "clients" / name)

    def matcher(self, name: str) -> Matcher:
        """One client's model of images and captions, ready to say which text fits an image.

        Raises:
            RunError: there is no such client, or it is another kind of model.
        """
        return load_matcher(self.path / "clients" / name)

    def _repr_html_(self) -> str:
        """What a notebook shows: the result in a sentence, and methods and controls side by side."""
        from trifed.reports.page import render_brief
        from trifed.reports.reading import read_source

        return render_brief(read_source(self.path))


def quiet(event: Event) -> None:
    """A listener that says nothing."""


def run(config: RunConfig, folder: str | Path | None = None, listener: Listener = quiet) -> RunResult:
    """Carry out one run, and its baselines on the same split, in a new folder (`runs/NAME` unless given).

    Raises:
        TrifedError: whatever the user can mend; nothing is written then.
    """
    path = Path(folder) if folder is not None else Path("runs") / config.name
    RunFolder.refuse_existing(path)
    _carry_out(config, listener, lambda: _new_folder(path, config))
    return _with_baselines(config, path, listener)


def resume(folder: str | Path, listener: Listener = quiet) -> RunResult:
    """Continue a run that was broken off, to the numbers that an unbroken run reaches.

    Raises:
        RunError: no run there, or its data or base model changed.
    """
    opened = RunFolder.open(Path(folder))
    config = make_config(read_toml(opened.path / "config.toml"), str(opened.path / "config.toml"))
    if not (opened.path / "summary.json").is_file():
        _carry_out(config, listener, lambda: opened)
    return _with_baselines(config, opened.path, listener)


def _with_baselines(config: RunConfig, path: Path, listener: Listener) -> RunResult:
    """The baselines that are not there yet, each a run of its own under `baselines/`."""
    for name in config.baselines:
        inner = path / "baselines" / name
        if (inner / "config.toml").is_file():
            resume(inner, listener)
        else:
            run(config.with_method(name), inner, listener)
    return load_result(path)


def load_result(folder: str | Path) -> RunResult:
    """A run's result from its folder.

    Raises:
        RunError: there is none, or the run is not finished.
    """
    opened = RunFolder.open(Path(folder))
    if not (opened.path / "summary.json").is_file():
        raise RunError(f"{folder}: this run is not finished; `trifed run --resume {folder}` continues it")
    names = read_toml(opened.path / "config.toml").get("baselines", [])
    baselines = {name: load_result(opened.path / "baselines" / name) for name in names}
    return RunResult(opened.path, opened.read_json("summary.json"), opened.read_json("split.json"), baselines)


def _new_folder(path: Path, config: RunConfig) -> RunFolder:
    folder = RunFolder.create(path)
    folder.write_text("config.toml", to_toml(config))
    return folder


def _carry_out(config: RunConfig, listener: Listener, make_folder: Callable[[], RunFolder]) -> None:
    began = time.perf_counter()
    require_trackers(config.trackers)
    choose_device(config.training)  # a device that is not there should not wait for data and model
    data, bench, clients = prepare(config, listener)
    base = bench.base
    if config.privacy.few_tokens == "refuse" and not (config.privacy.update or config.privacy.training):
        refuse_few_tokens(clients, bench.layout, config.training, config.seed, config.rounds)
    trained = sum(param.numel() for param in bench.parameters.values())
    for text in loudness(config, bench.start_values.size, trained, [len(client.train) for client in clients]):
        listener({"event": "trouble", "text": text})
    folder = make_folder()
    if not folder.has_checkpoint():  # else they are there, and other data than theirs is about to be refused
        folder.write_json("environment.json", environment(config, base, bench))
        cut = sum(part.cut for c in clients for part in (c.train, c.valid, c.test))
        folder.write_json("split.json", {**split_to_json(data), "examples_cut_to_max_length": cut})
    tracking = LiveTracking(config, folder, listener)
    simulation = Simulation(config, data, clients, bench, folder, tracking)
    try:
        simulation.run()
    finally:
        tracking.close()
    listener({"event": "closing"})
    summary = _close(simulation, base)
    summary["seconds_total"] = round(time.perf_counter() - began, 1)
    folder.write_json("summary.json", summary)


def prepare(config: RunConfig, listener: Listener = quiet) -> tuple[FederatedData, Workbench, list[Client]]:
    """The data of a configured run, the model with its adapter, and the clients' tokenised examples."""
    task = TASKS[config.task]
    listener({"event": "loading", "what": "data"})
    data = make_clients(config.data, config.seed, task.roles)
    listener({"event": "split", "data": data})
    listener({"event": "loading", "what": f"model {config.model.name}"})
    base = task.load(config.model.name, config.model.dtype)
    settings = (config.model, config.adapter, config.training)
    bench = build_workbench(base, METHODS[config.method.name], data.label_names, config.seed, settings, task)
    return data, bench, _tokenise(data, bench)


def _tokenise(data: FederatedData, bench: Workbench) -> list[Client]:
    return [
        Client(i, c.name, bench.encode(c.train), bench.encode(c.valid), bench.encode(c.test))
        for i, c in enumerate(data.clients)
    ]


def _close(simulation: Simulation, base: LoadedBase) -> dict[str, Any]:
    """Controls, the clients' folders, their predictions, and the summary."""
    config, data, bench, folder = simulation.config, simulation.data, simulation.bench, simulation.folder
    names, tests = [c.name for c in simulation.clients], [c.test.labels for c in simulation.clients]
    predictions, shares = {}, {}
    for client in simulation.clients:
        tensors = simulation.final_tensors(client.index)
        scores = score(bench, tensors, client.test, config.training)
        predictions[client.name], shares[client.name] = scores.predictions, scores.right
        save_client(folder.path / "clients" / client.name, bench, tensors, data.label_names, base.source)
    summary = {
        "name": config.name,
        "task": config.task,
        "metric": bench.task.metric,
        "method": config.method.name,
        "seed": config.seed,
        "rounds": config.rounds,
        **summarise_events(folder.events(), simulation.method.scored, bench.lora_bytes),
        "controls": {},
    }
    spending = most_spent(folder.path)
    if spending is not None:
        summary["privacy"] = spending
    if bench.task.gives == "answer":
        summary["perplexity"] = perplexity(summary["clients"])
    controls = _controls(simulation) if config.controls and bench.task.labelled else {}
    for control, predicted in controls.items():
        right = [float((p == t).mean()) if len(t) else None for p, t in zip(predicted, tests, strict=True)]
        spreads = spread(right, [len(t) for t in tests])
        summary["controls"][control] = {**spreads, "clients": dict(zip(names, right, strict=True))}
    if data.global_test is not None:
        summary["global_test"] = _global_test(simulation, data.global_test)
    folder.write_json(
        "predictions.json",
        {
            "labels": dict(zip(names, tests, strict=True)),
            # Where classes are predicted; else how much of each example is predicted right.
            **({"model": predictions} if bench.task.labelled else {"right": shares}),
            "controls": {control: dict(zip(names, p, strict=True)) for control, p in controls.items()},
        },
    )
    return summary


def _controls(simulation: Simulation) -> dict[str, list[np.ndarray[Any, np.dtype[np.int64]]]]:
    bench, config = simulation.bench, simulation.config
    parts = [
        ClientFeatures(
            *((bench.base_features(part, config.training), part.labels) for part in (c.train, c.valid, c.test))
        )
        for c in simulation.clients
    ]
    return run_controls(parts, summary_seeds(config.seed, 0).projection)


def _global_test(simulation: Simulation, examples: Examples) -> dict[str, Any]:
    """Each client's model on the separate test set; one global model is scored once."""
    encoded = simulation.bench.encode(examples)
    known: dict[bytes, float] = {}
    right = []
    for client in simulation.clients:
        tensors = simulation.final_tensors(client.index)
        key = b"".join(tensor.numpy().tobytes() for tensor in tensors.values())
        if key not in known:
            known[key] = score(simulation.bench, tensors, encoded, simulation.config.training).accuracy
        right.append(known[key])
    spreads = spread(right, [len(encoded)] * len(right))
    return {**spreads, "examples": len(encoded), "models": len(known)}


def environment(config: RunConfig, base: LoadedBase, bench: Workbench) -> dict[str, Any]:
    """Versions, hardware and identities that belong to a result."""
    device = choose_device(config.training)
    return {
        "packages": {name: version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "machine": platform.machine(),
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "cpus": os.cpu_count(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "precision": str(choose_precision(config.training, device)).removeprefix("torch."),
        "base_model": config.model.name,
        "base_fingerprint": base.fingerprint,
        "run_id": config.run_id(),
        "trained_values": sum(p.numel() for p in bench.parameters.values()),
        "sent_values": sum(int(np.prod(shape)) for _, shape in bench.layout),
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor()
