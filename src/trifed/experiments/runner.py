"""One run from its configuration to its result: data, model, rounds, clients' folders, baselines."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trifed.common.errors import RunError, damage_in
from trifed.common.lock import held
from trifed.config.metrics import AT_THE_END
from trifed.config.roles import ACCURACY
from trifed.config.run import RunConfig, make_config, to_toml
from trifed.config.sealing import sealing_notes
from trifed.config.toml_files import read_toml
from trifed.data import Examples, FederatedData, split_to_json
from trifed.experiments.baselines import ClientFeatures, Labels, run_baselines
from trifed.experiments.generated_answers import score_generated
from trifed.experiments.rate_search import run_at_best_rate
from trifed.experiments.run_result import RunResult
from trifed.federation import events
from trifed.federation.best_round import refuse_without_validation
from trifed.federation.continuation import other_rounds, set_rounds
from trifed.federation.events import Listener
from trifed.federation.kept_checkpoints import go_back
from trifed.federation.manifest import finish
from trifed.federation.preparation import environment, prepare, quiet, values_a_round
from trifed.federation.privacy_report import most_spent, noise_to_signal
from trifed.federation.results import perplexity, sealing_facts, spread, summarise_events
from trifed.federation.run_folder import RunFolder
from trifed.federation.training.class_scores import class_scores
from trifed.reports.tracking import LiveTracking, require_trackers

if TYPE_CHECKING:
    from trifed.federation.client_update import ClientDataset
    from trifed.federation.simulation import Simulation
    from trifed.federation.training.shared_model import SharedModel

# Functions import what needs torch, so that a mistake in the data is reported before torch is loaded.


def run(config: RunConfig, folder: str | Path | None = None, listener: Listener = quiet) -> RunResult:
    """Run a configuration, and its baselines on the same split, in a new folder (`runs/NAME` unless given).

    Raises:
        TrifedError: The user can correct it; the message says how, and nothing is written.
    """
    path = Path(folder) if folder is not None else Path("runs") / config.name
    return _run(config.with_baselines(), path, listener)


def _run(config: RunConfig, path: Path, listener: Listener, ready: Prepared | None = None) -> RunResult:
    """Run a configuration; `ready` holds what it needs if that was loaded and checked before."""
    RunFolder.refuse_existing(path)
    prepared = ready or prepare_run(config, listener)  # nothing is written before all checks have passed
    with held(path):
        created = RunFolder.create(path)  # again: meanwhile another process may have written a run
        created.write_text("config.toml", to_toml(config), durable=True)
        _simulate(config, listener, created, prepared)
        return _with_baselines(config, path, listener, prepared)


def resume(
    folder: str | Path, listener: Listener = quiet, from_round: int | None = None, rounds: int | None = None
) -> RunResult:
    """Continue a run; the numbers of one that was interrupted are those of an uninterrupted one.

    Args:
        folder: The run's folder.
        listener: Receives each event.
        from_round: A round whose checkpoint is kept: the run goes back to its end, and is repeated from there.
        rounds: Another number of rounds, which is written into the run's configuration. Given or changed there, a
            finished run has more rounds too.

    Raises:
        RunError: The folder holds no run, another process writes to it, the data, the base model or settings
            changed, the checkpoint of `from_round` is not kept, or the run was planned for its number of rounds.
    """
    opened = RunFolder.open(Path(folder))
    config = make_config(read_toml(opened.path / "config.toml"), str(opened.path / "config.toml"))
    if rounds is not None:
        config = config.model_copy(update={"rounds": rounds})
    continued = other_rounds(opened, config, from_round)
    parts = [opened.path, *(opened.path / "baselines" / name for name in config.baselines or ())]
    if from_round is None and not continued and all(_has_result(part, config) for part in parts):
        return load_result(opened.path)
    prepared = None
    with held(opened.path):
        if from_round is not None or continued or not (opened.path / "summary.json").is_file():
            prepared = prepare_run(config, listener)
            if from_round is not None:
                go_back(opened.path, from_round)
            if continued or rounds is not None:
                opened.write_text("config.toml", to_toml(config), durable=True)
            if other_rounds(opened, config):  # of the checkpoint that the run has gone back to
                set_rounds(opened, config)
            _simulate(config, listener, opened, prepared)
        return _with_baselines(config, opened.path, listener, prepared)


def _has_result(folder: Path, config: RunConfig) -> bool:
    """Return whether the run in a folder is finished, with the rounds and the `patience` of a configuration."""
    path = folder / "summary.json"
    if not path.is_file():
        return False
    with damage_in(path, "put the whole file back, or remove it and resume the run"):
        rounds = RunFolder(folder).read_json(path.name)["rounds"]
    return bool(rounds == config.rounds and read_toml(folder / "config.toml").get("patience") == config.patience)


def run_or_resume(config: RunConfig, folder: Path, listener: Listener = quiet) -> RunResult:
    """Continue the run in a folder, or start one there if it holds none; raises as `run` and `resume` do."""
    return resume(folder, listener) if (folder / "config.toml").is_file() else run(config, folder, listener)


def _with_baselines(
    config: RunConfig, path: Path, listener: Listener, prepared: Prepared | None = None
) -> RunResult:
    """Run or resume the baselines that are not finished, each in its own folder under `baselines/`."""

    def run_one(own: RunConfig, folder: Path) -> RunResult:
        if (folder / "config.toml").is_file():
            return _resume_baseline(own, folder, listener)
        return _run(own, folder, listener, prepared and prepared.for_baseline(config, own))

    for name in config.baselines or ():
        folder = path / "baselines" / name
        if not (folder / "config.toml").is_file():
            run_at_best_rate(config, name, path, run_one, listener)
            continue
        _resume_baseline(config, folder, listener)
    return load_result(path)


def _resume_baseline(config: RunConfig, folder: Path, listener: Listener) -> RunResult:
    """Continue a baseline, or go back in it, to the number of rounds and the `patience` of its run's `config`."""
    opened = RunFolder.open(folder)
    kept = make_config(read_toml(folder / "config.toml"), str(folder / "config.toml"))
    if kept.patience != config.patience:
        opened.write_text(
            "config.toml", to_toml(kept.model_copy(update={"patience": config.patience})), durable=True
        )
    too_far = opened.rounds_done() > config.rounds
    return resume(folder, listener, config.rounds if too_far else None, config.rounds)


def load_result(folder: str | Path) -> RunResult:
    """Load a run's result from its folder.

    Raises:
        RunError: The folder holds no run, or the run is not finished.
    """
    opened = RunFolder.open(Path(folder))
    if not (opened.path / "summary.json").is_file():
        raise RunError(f"{folder}: this run is not finished; `trifed run --resume {folder}` continues it")
    config = read_toml(opened.path / "config.toml")
    baselines = {name: load_result(opened.path / "baselines" / name) for name in config.get("baselines", [])}
    return RunResult(opened.path, opened.read_json("summary.json"), opened.read_json("split.json"), baselines)


@dataclass(frozen=True)
class Prepared:
    """The data, model and clients of a run, loaded and checked. `began`: `time.perf_counter` before loading, s."""

    began: float
    data: FederatedData
    shared_model: SharedModel
    clients: list[ClientDataset]

    def for_baseline(self, config: RunConfig, own: RunConfig) -> Prepared | None:
        """Return the same data and model for a baseline that trains the same tensors, as "alone"; None for others.

        Args:
            config: The run that this was prepared for.
            own: The baseline, on the same data and with the same seed.
        """
        from trifed.federation.training.shared_model import layouts_of

        one, other = config.composed_method(), own.composed_method()
        if (one.adapter, one.trains, config.adapter, config.model) != (
            other.adapter, other.trains, own.adapter, own.model,
        ) or one.shared_projections or other.shared_projections or other.receives:  # fmt: skip
            return None
        layout, received = layouts_of(other, self.shared_model.parameters)
        shared_model = replace(self.shared_model, layout=layout, received=received, replicas=[])
        return replace(self, began=time.perf_counter(), shared_model=shared_model)


def prepare_run(config: RunConfig, listener: Listener) -> Prepared:
    """Load and check all that a run needs."""
    began = time.perf_counter()
    require_trackers(config.trackers)
    data, shared_model, clients = prepare(config, listener)
    refuse_without_validation(config, clients)
    from trifed.federation.guards import refuse_few_tokens  # needs torch
    from trifed.federation.training.device_placement import narrow_frozen_weights, slow_precision

    narrow_frozen_weights(shared_model.model, config.training, shared_model.parameters.values())
    if config.privacy.few_tokens == "refuse" and not (config.privacy.update or config.privacy.training):
        refuse_few_tokens(clients, shared_model.layout, config.training_of, config.seed, config.rounds)
    trained, examples = shared_model.trained_values, [len(c.train) for c in clients]
    sent = values_a_round(config.composed_method(), shared_model.layout)
    noise = noise_to_signal(config, sent, trained, examples)
    slow = slow_precision(config.training)
    for text in (*config.parts_left_out(), *sealing_notes(config, len(clients)), *noise, *slow):
        listener(events.Trouble(text).to_dict())
    return Prepared(began, data, shared_model, clients)


def _simulate(config: RunConfig, listener: events.Listener, folder: RunFolder, prepared: Prepared) -> None:
    """Run or resume the simulation, and write its results; summary.json, which ends the run, is written last."""
    from trifed.federation.simulation import Simulation

    data, shared_model, clients = prepared.data, prepared.shared_model, prepared.clients
    if not folder.has_checkpoint():  # with one they exist, and changed data are about to be refused
        folder.write_json("environment.json", environment(config, shared_model.base, shared_model))
        cut = sum(part.cut for c in clients for part in (c.train, c.valid, c.test))
        folder.write_json("split.json", {**split_to_json(data), "examples_cut_to_max_length": cut})
    with closing(LiveTracking(config, folder, listener)) as tracking:
        simulation = Simulation(config, data, clients, shared_model, folder, tracking)
        simulation.run()
    listener(events.Closing().to_dict())
    summary = _write_models(simulation, listener)
    seconds = round(time.perf_counter() - prepared.began, 1)
    finish(folder, {**summary, "seconds_total": seconds})


def _write_models(simulation: Simulation, listener: Listener) -> dict[str, Any]:
    """Write the clients' models and predictions, measure the controls, and return the summary."""
    from trifed.federation.client_model import save_client

    config, data, folder = simulation.config, simulation.data, simulation.folder
    shared_model, clients, task = simulation.shared_model, simulation.datasets, simulation.shared_model.task
    predictions, shares = {}, {}
    for client in clients:
        final = simulation.final_model(client.index)
        predictions[client.name], shares[client.name] = final.test.predictions, final.test.right
        client_folder = folder.path / "clients" / client.name
        save_client(client_folder, shared_model, final.tensors, data.label_names, shared_model.base.source)
    predicted = _controls(simulation) if config.controls and task.labelled else {}
    labels = {client.name: client.test.labels for client in clients}
    # Predicted classes; of other tasks the share of each example that is predicted right.
    answers = {"model": predictions} if task.labelled else {"right": shares}
    folder.write_json("predictions.json", {"labels": labels, **answers, "controls": predicted})
    evaluated_model = simulation.context.method.evaluated_model
    lora_bytes, bits = shared_model.lora_bytes, config.wire.bits
    noised = config.privacy.update is not None
    results = summarise_events(folder.events(), evaluated_model, lora_bytes, config.metric, bits, noised)
    if config.computed_metrics and task.labelled:
        for client, of in zip(clients, results["clients"], strict=True):
            of["classes"] = class_scores(client.test.labels, predictions[client.name], data.label_names)
    if asked := [name for name in config.metrics if name in AT_THE_END]:
        results["metrics"] |= score_generated(simulation, asked, results["clients"], listener)
    optional = {
        "privacy": most_spent(folder.path),
        "sealing": sealing_facts(folder.events(), config.sealing.at_least) if config.sealing.on else None,
        "perplexity": perplexity(results["clients"]) if task.output == "answer" else None,
        "global_test": _global_test(simulation, data.global_test) if data.global_test is not None else None,
    }
    return {
        "name": config.name,
        "task": config.task,
        "metric": ACCURACY[config.task],
        "method": config.method.name,
        "seed": config.seed,
        "rounds": config.rounds,
        **results,
        "controls": {control: _accuracies(by_client, labels) for control, by_client in predicted.items()},
        **{name: value for name, value in optional.items() if value is not None},
    }


def _accuracies(predicted: Mapping[str, Labels], labels: Mapping[str, Labels]) -> dict[str, Any]:
    """Return a control's accuracy of each client, and mean, worst and best of all."""
    right = {n: float((predicted[n] == y).mean()) if len(y) else None for n, y in labels.items()}
    return {**spread(list(right.values()), [len(y) for y in labels.values()]), "clients": right}


def _controls(simulation: Simulation) -> dict[str, dict[str, Labels]]:
    """Return the predictions of each control for each client's test data."""
    from trifed.federation.client_update import summary_seeds

    shared_model, config, clients = simulation.shared_model, simulation.config, simulation.datasets
    features = [
        [(shared_model.base_features(part, config.training), part.labels) for part in (c.train, c.valid, c.test)]
        for c in clients
    ]
    seed = summary_seeds(config.seed, 0).projection
    predicted = run_baselines([ClientFeatures(*parts) for parts in features], seed)
    names = [client.name for client in clients]
    return {control: dict(zip(names, by_client, strict=True)) for control, by_client in predicted.items()}


def _global_test(simulation: Simulation, examples: Examples) -> dict[str, Any]:
    """Score each client's model on the separate test set; equal models are scored once."""
    from trifed.federation.client_update import score

    encoded = simulation.shared_model.encode(examples)
    known: dict[bytes, float] = {}
    right = []
    for client in simulation.datasets:
        tensors = simulation.final_model(client.index).tensors
        key = b"".join(tensor.numpy().tobytes() for tensor in tensors.values())
        if key not in known:
            known[key] = score(simulation.shared_model, tensors, encoded, simulation.config.training).accuracy
        right.append(known[key])
    return {**spread(right, [len(encoded)] * len(right)), "examples": len(encoded), "models": len(known)}
