"""A run that is not measured and not kept. Attacks come after it: at the start an adapter sends zeros."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from trifed.attacks.target import LETS_OUT, TargetClient, target_client
from trifed.common.errors import RunError
from trifed.config.run import RunConfig, make_config, read_toml
from trifed.config.settings import ALL_GPUS
from trifed.federation.events import ClientScores, RunEvent
from trifed.federation.preparation import prepare, quiet
from trifed.federation.round import FederatedRun
from trifed.federation.run_folder import RunFolder
from trifed.federation.simulation import Simulation, identity_of
from trifed.methods import METHODS

FULL_RATE = 1e-4
"""Largest learning rate of a warm-up in which the base model trains: adapters' rates undo its pre-training."""


class WarmUp(Simulation):
    """A run that is not evaluated and not logged."""

    def evaluate(self, number: int, stages: Sequence[str]) -> Iterator[ClientScores]:
        """Score nothing."""
        return iter(())

    def save_checkpoint(self, number: int) -> None:
        """Keep nothing."""

    def run_rounds(self, count: int, done: Callable[[int], None]) -> None:
        """Run the first rounds."""
        run = FederatedRun(self.config, self, self.folder, ignore)
        run.begin()
        for number in range(1, count + 1):
            run.round(number)
            done(number)


def ignore(event: RunEvent) -> None:
    """Log nothing."""


def warmed_up(config: RunConfig, rounds: int, name: str | None, done: Callable[[int], None]) -> TargetClient:
    """A client of a configured run after some rounds of it: the one of that name, or the first that trains.

    Raises:
        RunError: there is no such client, or the method sends nothing.
    """
    config = for_warm_up(config)
    data, shared_model, clients = prepare(config)
    with TemporaryDirectory(prefix="trifed-audit-") as scratch:
        simulation = WarmUp(config, data, clients, shared_model, RunFolder(Path(scratch)), quiet)
        simulation.run_rounds(rounds, done)
    return target_client(simulation, chosen(simulation, name), rounds)


def on_one_device(config: RunConfig) -> RunConfig:
    """The same run on its own device, or, where that is not here or several GPUs, on the best there is."""
    training = config.training
    if training.device == ALL_GPUS or not torch.cuda.is_available():
        training = training.model_copy(update={"device": "auto"})
    return config.model_copy(update={"training": training})


def for_warm_up(config: RunConfig) -> RunConfig:
    """The same run without what only results need, at a rate that suits what trains, and with no guard."""
    training = config.training
    if METHODS[config.method.name].adapter == "none":
        update = {"learning_rate": min(FULL_RATE, training.learning_rate), "optimizer_state": "reset"}
        training = training.model_copy(update=update)
    config = on_one_device(config.model_copy(update={"training": training}))
    privacy = config.privacy.model_copy(update=LETS_OUT)
    return config.model_copy(
        update={"training": training, "privacy": privacy, "trackers": [], "baselines": [], "controls": False}
    )


def chosen(simulation: Simulation, name: str | None) -> int:
    """The place of the client that is attacked; RunError where there is none of that name."""
    if not simulation.shared_model.layout:
        raise RunError(f"{simulation.context.method.name} sends nothing in a round, so there is nothing to attack")
    able = {client.name: client.index for client in simulation.datasets if len(client.train)}
    if name is None:
        return next(iter(able.values()))
    if name not in able:
        raise RunError(f"--client {name}: no such client with training data; there are {', '.join(able)}")
    return able[name]


def left_off(folder: Path, name: str | None) -> TargetClient:
    """A client where a run's last whole round left it: the one of that name, or the first that trains.

    Raises:
        RunError: no run there, no round of it is whole, its data or base changed, or there is no such client.
    """
    opened = RunFolder.open(folder)
    config = make_config(read_toml(folder / "config.toml"), str(folder / "config.toml"))
    here = on_one_device(config)
    data, shared_model, clients = prepare(here)
    simulation = Simulation(here, data, clients, shared_model, opened, quiet)
    identity = identity_of(config, data, shared_model)
    checkpoint = opened.load_checkpoint(identity, cut=False) if opened.has_checkpoint() else None
    if checkpoint is None:
        raise RunError(f"{folder}: no round of this run is whole; `trifed run --resume {folder}` goes on with it")
    done, states, server = checkpoint
    simulation.restore(states, server)
    return target_client(simulation, chosen(simulation, name), done)
