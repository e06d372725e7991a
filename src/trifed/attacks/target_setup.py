"""Bring a run to the round in which it is attacked: train for some rounds, or continue from a checkpoint.

Attacks come after some training, because adapters send zeros at the start.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from trifed.attacks.target import GUARDS_OFF, TargetClient
from trifed.common.errors import RunError
from trifed.config.run import RunConfig, make_config
from trifed.config.settings import ALL_GPUS
from trifed.config.toml_files import read_toml
from trifed.federation.events import ClientScores, RunEvent
from trifed.federation.preparation import prepare, quiet
from trifed.federation.round import FederatedRun
from trifed.federation.run_folder import RunFolder
from trifed.federation.simulation import Simulation, identity_of
from trifed.methods import METHODS

FULL_RATE = 1e-4
"""Largest learning rate with which the base model is trained here: adapters' rates undo its pre-training."""


class UnevaluatedSimulation(Simulation):
    """A run that is not evaluated and not logged."""

    def evaluate(self, number: int, stages: Sequence[str]) -> Iterator[ClientScores]:
        """Score nothing."""
        return iter(())

    def save_checkpoint(self, number: int) -> None:
        """Keep nothing."""

    def run_rounds(self, count: int, on_round: Callable[[int], None]) -> None:
        """Run the first rounds."""
        run = FederatedRun(self.config, self, self.folder, ignore)
        run.begin()
        for number in range(1, count + 1):
            run.round(number)
            on_round(number)


def ignore(event: RunEvent) -> None:
    """Log nothing."""


def train_target(
    config: RunConfig, rounds: int, name: str | None, on_round: Callable[[int], None] = lambda number: None
) -> TargetClient:
    """Train a configured run for some rounds, and return its client `name`, or the first that trains.

    What only results need is left out, and no guard is applied.

    Raises:
        RunError: There is no such client, or the method sends nothing.
    """
    training = config.training
    if METHODS[config.method.name].adapter == "none":
        update = {"learning_rate": min(FULL_RATE, training.learning_rate), "optimizer_state": "reset"}
        training = training.model_copy(update=update)
    privacy = config.privacy.model_copy(update=GUARDS_OFF)
    unneeded = {"trackers": [], "baselines": [], "controls": False}
    config = on_one_device(config.model_copy(update={"training": training, "privacy": privacy, **unneeded}))
    data, shared_model, clients = prepare(config)
    with TemporaryDirectory(prefix="trifed-audit-") as scratch:
        folder = RunFolder(Path(scratch))
        simulation = UnevaluatedSimulation(config, data, clients, shared_model, folder, quiet)
        simulation.run_rounds(rounds, on_round)
    return target_client(simulation, find_client(simulation, name), rounds)


def load_target(folder: Path, name: str | None) -> TargetClient:
    """Continue a run from its last whole round, and return its client `name`, or the first that trains.

    Raises:
        RunError: The folder holds no run, no round is whole, its data or base model changed, or there is no such
            client.
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
    return target_client(simulation, find_client(simulation, name), done)


def target_client(simulation: Simulation, index: int, done: int) -> TargetClient:
    """Return a client of a run that has finished round `done`."""
    site, context = simulation.clients[index], simulation.context
    download, before = simulation.server.download(done + 1, index), site.state.tensors
    if download is not None:
        values = context.compression.decode(download, context.header("download", done + 1, index), site.reference)[
            1
        ]
        before = simulation.shared_model.receive(before, values)
    return TargetClient(simulation.config, simulation, site, done, download, before)


def on_one_device(config: RunConfig) -> RunConfig:
    """Return the configuration for one device: the best there is, where its own is missing or is several GPUs."""
    if config.training.device == ALL_GPUS or not torch.cuda.is_available():
        return config.model_copy(update={"training": config.training.model_copy(update={"device": "auto"})})
    return config


def find_client(simulation: Simulation, name: str | None) -> int:
    """Return the index of the client `name`, or of the first that trains.

    Raises:
        RunError: There is no such client, or the method sends nothing.
    """
    if not simulation.shared_model.layout:
        raise RunError(f"{simulation.context.method.name} sends nothing in a round, so there is nothing to attack")
    able = {client.name: client.index for client in simulation.datasets if len(client.train)}
    if name is None:
        return next(iter(able.values()))
    if name not in able:
        raise RunError(f"--client {name}: no such client with training data; there are {', '.join(able)}")
    return able[name]
