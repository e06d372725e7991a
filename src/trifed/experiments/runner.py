"""From a configuration to a finished run: data, base, rounds, controls, exports, result."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trifed.common.errors import RunError
from trifed.config.run import RunConfig, make_config, read_toml, to_toml
from trifed.data import Examples, split_to_json
from trifed.experiments.baselines import ClientFeatures, run_baselines
from trifed.federation.client_model import Classifier, Writer, load_client, load_writer, save_client
from trifed.federation.client_update import score, summary_seeds
from trifed.federation.events import Closing, Listener, Trouble
from trifed.federation.guards import refuse_few_tokens
from trifed.federation.noise_to_signal import noise_to_signal
from trifed.federation.preparation import environment, prepare, quiet
from trifed.federation.privacy_report import most_spent
from trifed.federation.results import perplexity, spread, summarise_events
from trifed.federation.retrieval import RetrievalModel, load_retrieval_model
from trifed.federation.run_folder import RunFolder
from trifed.federation.simulation import Simulation
from trifed.federation.training import choose_device
from trifed.reports.tracking import LiveTracking, require_trackers
from trifed.tasks.base_model import LoadedBase


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

    def matcher(self, name: str) -> RetrievalModel:
        """One client's model of images and captions, ready to say which text fits an image.

        Raises:
            RunError: there is no such client, or it is another kind of model.
        """
        return load_retrieval_model(self.path / "clients" / name)

    def _repr_html_(self) -> str:
        """What a notebook shows: the result in a sentence, and methods and controls side by side."""
        from trifed.reports.page import render_brief
        from trifed.reports.read import read_source

        return render_brief(read_source(self.path))


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
    data, shared_model, clients = prepare(config, listener)
    base = shared_model.base
    if config.privacy.few_tokens == "refuse" and not (config.privacy.update or config.privacy.training):
        refuse_few_tokens(clients, shared_model.layout, config.training, config.seed, config.rounds)
    trained = sum(param.numel() for param in shared_model.parameters.values())
    for text in noise_to_signal(
        config, shared_model.start_values.size, trained, [len(client.train) for client in clients]
    ):
        listener(Trouble(text).to_dict())
    folder = make_folder()
    if not folder.has_checkpoint():  # else they are there, and other data than theirs is about to be refused
        folder.write_json("environment.json", environment(config, base, shared_model))
        cut = sum(part.cut for c in clients for part in (c.train, c.valid, c.test))
        folder.write_json("split.json", {**split_to_json(data), "examples_cut_to_max_length": cut})
    tracking = LiveTracking(config, folder, listener)
    simulation = Simulation(config, data, clients, shared_model, folder, tracking)
    try:
        simulation.run()
    finally:
        tracking.close()
    listener(Closing().to_dict())
    summary = _close(simulation, base)
    summary["seconds_total"] = round(time.perf_counter() - began, 1)
    folder.write_json("summary.json", summary)


def _close(simulation: Simulation, base: LoadedBase) -> dict[str, Any]:
    """Controls, the clients' folders, their predictions, and the summary."""
    config, data, shared_model, folder = (
        simulation.config,
        simulation.data,
        simulation.shared_model,
        simulation.folder,
    )
    names, tests = [c.name for c in simulation.datasets], [c.test.labels for c in simulation.datasets]
    predictions, shares = {}, {}
    for client in simulation.datasets:
        tensors = simulation.final_tensors(client.index)
        scores = score(shared_model, tensors, client.test, config.training)
        predictions[client.name], shares[client.name] = scores.predictions, scores.right
        save_client(folder.path / "clients" / client.name, shared_model, tensors, data.label_names, base.source)
    summary = {
        "name": config.name,
        "task": config.task,
        "metric": shared_model.task.metric,
        "method": config.method.name,
        "seed": config.seed,
        "rounds": config.rounds,
        **summarise_events(folder.events(), simulation.context.method.evaluated_model, shared_model.lora_bytes),
        "controls": {},
    }
    spending = most_spent(folder.path)
    if spending is not None:
        summary["privacy"] = spending
    if shared_model.task.gives == "answer":
        summary["perplexity"] = perplexity(summary["clients"])
    controls = _controls(simulation) if config.controls and shared_model.task.labelled else {}
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
            **({"model": predictions} if shared_model.task.labelled else {"right": shares}),
            "controls": {control: dict(zip(names, p, strict=True)) for control, p in controls.items()},
        },
    )
    return summary


def _controls(simulation: Simulation) -> dict[str, list[np.ndarray[Any, np.dtype[np.int64]]]]:
    shared_model, config = simulation.shared_model, simulation.config
    parts = [
        ClientFeatures(
            *(
                (shared_model.base_features(part, config.training), part.labels)
                for part in (c.train, c.valid, c.test)
            )
        )
        for c in simulation.datasets
    ]
    return run_baselines(parts, summary_seeds(config.seed, 0).projection)


def _global_test(simulation: Simulation, examples: Examples) -> dict[str, Any]:
    """Each client's model on the separate test set; one global model is scored once."""
    encoded = simulation.shared_model.encode(examples)
    known: dict[bytes, float] = {}
    right = []
    for client in simulation.datasets:
        tensors = simulation.final_tensors(client.index)
        key = b"".join(tensor.numpy().tobytes() for tensor in tensors.values())
        if key not in known:
            known[key] = score(simulation.shared_model, tensors, encoded, simulation.config.training).accuracy
        right.append(known[key])
    spreads = spread(right, [len(encoded)] * len(right))
    return {**spreads, "examples": len(encoded), "models": len(known)}
