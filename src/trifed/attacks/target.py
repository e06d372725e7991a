"""The attacked client, and what leaves it: the plain gradient of a batch, or a whole round by the protocol.

The client's run is trained for some rounds, or continued from a checkpoint: adapters send zeros at the start.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trifed.adapters.norms import is_norm
from trifed.attacks.plan import Plan
from trifed.attacks.sealed import change_in_sum
from trifed.common.errors import RunError
from trifed.config.run import RunConfig, make_config
from trifed.config.settings import ALL_GPUS
from trifed.config.toml_files import read_toml
from trifed.federation.client import Client
from trifed.federation.client_settings import ClientSettings
from trifed.federation.client_update import ClientDataset
from trifed.federation.dp_mechanism import simulated_privacy
from trifed.federation.events import ClientScores
from trifed.federation.preparation import prepare, quiet
from trifed.federation.round import FederatedRun
from trifed.federation.run_folder import RunFolder
from trifed.federation.simulation import Simulation, identity_of
from trifed.federation.training.batches import seeded, steps_per_round
from trifed.federation.training.shared_model import SharedModel
from trifed.federation.upload import RECEIVED, SENT
from trifed.methods import METHODS
from trifed.methods.base import is_factor
from trifed.methods.packing import Tensors, unpack
from trifed.reports.audit.findings import Knows, Sees, View
from trifed.tasks import Encoded
from trifed.tasks.base import Batch

ASSUMING = 9
"""Purpose of the generators that draw the tensors an attacker does not know."""
GUARDS_OFF = {"few_tokens": "allow", "small_components": "allow"}
"""Settings of an attacked run: an audit also attacks uploads that the guards would refuse to send."""
OBSERVATIONS: tuple[Sees, ...] = ("gradient", "update")
"""Observations of an attacker: the gradient of one batch, and the upload of a whole round."""
FULL_RATE = 1e-4
"""Largest learning rate with which the base model is trained here: adapters' rates undo its pre-training."""
Rows = NDArray[np.int64]


def draw_batches(plan: Plan, examples: int) -> dict[int, list[Rows]]:
    """Draw a plan's batches of a client's examples, by batch size; the same ones for every method and attack."""
    draws = {size: seeded(plan.seed, size) for size in plan.batches if size <= examples}
    return {n: [rng.choice(examples, n, replace=False) for _ in range(plan.trials)] for n, rng in draws.items()}


@dataclass(frozen=True)
class Subset:
    """Some rows of a client's examples, as examples of their own.

    Attributes:
        cut: Always 0: shortened examples are counted in the whole data alone.
    """

    whole: Encoded
    rows: Rows
    cut: int = 0

    @property
    def labels(self) -> NDArray[np.int64]:
        """Classes, (n,)."""
        return self.whole.labels[self.rows]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Lengths, (n,)."""
        return self.whole.lengths[self.rows]

    def __len__(self) -> int:
        return len(self.rows)

    def inputs(self, row: int) -> Mapping[str, Set[Hashable]]:
        """Return the distinct inputs of one of these rows."""
        return self.whole.inputs(int(self.rows[row]))

    def batch(self, rows: NDArray[np.int64], device: torch.device) -> Batch:
        """Return a batch of the given ones of these rows."""
        return self.whole.batch(self.rows[rows], device)


@dataclass(frozen=True)
class TargetClient:
    """One client of a run after round `round`, about to begin the next.

    Attributes:
        config: Settings under which the client trains and sends.
        simulation: The run, with its server and all of its clients.
        site: The client's side of the run.
        round: The last finished round.
        download: The message with which the next round begins.
        before: The client's tensors after that download.
        view: Clients whose uploads the attacker observes as one.
    """

    config: RunConfig
    simulation: Simulation
    site: Client
    round: int
    download: bytes | None
    before: dict[str, Tensor]
    view: View = "single"

    @property
    def size(self) -> int:
        """Number of clients whose uploads the attacker sees as one."""
        return 1

    @property
    def shared_model(self) -> SharedModel:
        """The model, which holds the tensors that were loaded last."""
        return self.simulation.shared_model

    @property
    def client(self) -> ClientDataset:
        """The client's examples."""
        return self.site.dataset

    @property
    def others(self) -> list[ClientDataset]:
        """The other clients, whose examples stand for public knowledge of such data."""
        return [client for client in self.simulation.datasets if client.index != self.client.index]

    def batches(self, plan: Plan) -> dict[int, list[Rows]]:
        """Draw a plan's batches of the client's examples, by batch size."""
        return draw_batches(plan, len(self.client.train))

    def observe(self, observation: Sees, rows: Rows) -> Tensors:
        """Return what an attacker observes of a round on some training examples, by name."""
        return self.gradient(rows) if observation == "gradient" else self.update(rows)

    def gradient(self, rows: Rows) -> Tensors:
        """Return the gradient of the mean loss of some training examples, without dropout, of what is sent next.

        With turns these are the tensors whose turn the next round is.
        """
        shared_model = self.shared_model
        shared_model.load(self.before)
        shared_model.model.eval()
        loss = shared_model.model.loss(self.client.train.batch(rows, shared_model.device))
        names = (name for name, _ in shared_model.layout)
        in_turn = self.simulation.context.method.in_turn
        sent = {name: shared_model.parameters[name] for name in names if in_turn(self.round + 1, name)}
        parts = torch.autograd.grad(loss, list(sent.values()), allow_unused=True, materialize_grads=True)
        return {name: part.float().cpu().numpy() for name, part in zip(sent, parts, strict=True)}

    def update(self, rows: Rows) -> Tensors:
        """Return what a round on some training examples sends, as the server decodes it: before minus after.

        The client's own protocol makes the upload, with its steps, its optimiser's state and its compression. In a
        sealed run it is the client's part of the sum, without masks.
        """
        context, number = self.simulation.context, self.round + 1
        with self.client_side(replace(self.client, train=Subset(self.client.train, rows))) as site:
            site.state = self.site.state
            payload = site.round(number, self.download).upload
            if payload is None and context.sums is not None:
                change = -change_in_sum(self.simulation, site, number)
                return unpack(change, self.shared_model.layout)
            if payload is None:
                raise RunError(f"{self.config.method.name} sends nothing, so there is nothing to attack")
            header = context.header("upload", number, site.dataset.index)
            received, sent = site.state.memory.get(RECEIVED), self.site.state.memory.get(SENT)
            reference = context.upload_reference(self.shared_model.exchanged_start, received, sent)
            values = context.for_upload(number).decode(payload, header, reference)[1]
        moved = unpack(self.shared_model.pack(self.before) - values, self.shared_model.layout)
        return {name: array for name, array in moved.items() if context.method.in_turn(number, name)}

    @contextmanager
    def client_side(self, client: ClientDataset) -> Iterator[Client]:
        """Make a client's side of the run without guards, but with the run's noise.

        Its privacy ledger is temporary: an audit spends no budget.
        """
        simulation = self.simulation
        settings = ClientSettings.of(without_guards(self.config), len(simulation.data.label_names), client.name)
        with TemporaryDirectory(prefix="trifed-audit-") as scratch:
            privacy = simulated_privacy(self.config, client, Path(scratch))
            yield Client(simulation.context, self.shared_model, client, settings, privacy)

    def steps(self, examples: int) -> int:
        """Return the optimiser steps of a round on that many examples."""
        return steps_per_round(examples, self.config.training_of(self.client.name))

    def knowledge_levels(self) -> list[Knows]:
        """Return what an attacker may know of the adapter: everything, if no factor stays with the client."""
        private = self.shared_model.parameters.keys() - {name for name, _ in self.shared_model.layout}
        return ["base", "start", "factors"] if any(map(is_factor, private)) else ["factors"]

    def assumed_tensors(self, knowledge: Knows) -> dict[str, Tensor]:
        """Return the tensors that an attacker assumes the client to have.

        Tensors that are sent are known. At level "factors" a private head is known as well: the worst case. For
        norms that train at the client, the attacker has the base model's values at every level.
        Unknown tensors are drawn from a normal distribution with the root mean square of the true values.
        """
        sent = {name for name, _ in self.shared_model.layout}
        unknown = {} if knowledge == "factors" else {n: t for n, t in self.before.items() if n not in sent}
        if knowledge == "start":
            return self.before | {name: self.shared_model.start[name] for name in unknown}
        norms = {name: self.shared_model.start[name] for name in unknown if is_norm(name)}
        unknown = {name: tensor for name, tensor in unknown.items() if name not in norms}
        rng = seeded(self.config.seed, ASSUMING, self.client.index)
        sizes = {name: float(tensor.pow(2).mean().sqrt()) for name, tensor in unknown.items()}
        drawn = {name: rng.normal(0, size, tuple(unknown[name].shape)) for name, size in sizes.items()}
        assumed = {name: torch.from_numpy(values.astype(np.float32)) for name, values in drawn.items()}
        return self.before | norms | assumed


class UnevaluatedSimulation(Simulation):
    """A run that is not evaluated and keeps no checkpoint."""

    def evaluate(self, number: int, stages: Sequence[str]) -> Iterator[ClientScores]:
        """Score nothing."""
        return iter(())

    def save_checkpoint(self, number: int, needed: Collection[int] = ()) -> None:
        """Keep nothing."""


def train_target(
    config: RunConfig, rounds: int, name: str | None, on_round: Callable[[int], None] = lambda number: None
) -> TargetClient:
    """Train a configured run for some rounds, and return its client `name`, or the first that trains.

    Evaluation, logging and controls are left out, and no guard is applied.

    Raises:
        RunError: There is no such client, or the method sends nothing.
    """
    training = config.training
    if METHODS[config.method.name].adapter == "none":
        update = {"learning_rate": min(FULL_RATE, training.learning_rate), "optimizer_state": "reset"}
        training = training.model_copy(update=update)
    changes = {"training": training, "trackers": [], "baselines": [], "controls": False}
    config = on_one_device(without_guards(config).model_copy(update=changes))
    data, shared_model, clients = prepare(config)
    with TemporaryDirectory(prefix="trifed-audit-") as scratch:
        folder = RunFolder(Path(scratch))
        simulation = UnevaluatedSimulation(config, data, clients, shared_model, folder, quiet)
        run = FederatedRun(config, simulation, folder, lambda event: None)
        run.begin()
        for number in range(1, rounds + 1):
            run.round(number)
            on_round(number)
    return target_client(simulation, find_client(simulation, name), rounds)


def load_target(folder: Path, name: str | None) -> TargetClient:
    """Continue a run from its last whole round, and return its client `name`, or the first that trains.

    Raises:
        RunError: The folder holds no run, no round is whole, its data or base model changed, or there is no such
            client.
    """
    opened = RunFolder.open(folder)
    config = make_config(read_toml(folder / "config.toml"), str(folder / "config.toml"))
    data, shared_model, clients = prepare(on_one_device(config))
    simulation = Simulation(on_one_device(config), data, clients, shared_model, opened, quiet)
    identity = identity_of(config, data, shared_model)
    checkpoint = opened.load_checkpoint(identity, cut=False) if opened.has_checkpoint() else None
    if checkpoint is None:
        raise RunError(f"{folder}: no round of this run is complete; `trifed run --resume {folder}` continues it")
    done, states, server = checkpoint
    simulation.restore(states, server)
    return target_client(simulation, find_client(simulation, name), done)


def target_client(simulation: Simulation, index: int, done: int) -> TargetClient:
    """Return a client of a run that has finished round `done`."""
    site, context = simulation.clients[index], simulation.context
    download, before = simulation.server.download(done + 1, index), site.state.tensors
    if download is not None:
        header = context.header("download", done + 1, index)
        before = simulation.shared_model.receive(
            before, context.for_download(done + 1, download).decode(download, header, site.download_reference)[1]
        )
    return TargetClient(simulation.config, simulation, site, done, download, before)


def without_guards(config: RunConfig) -> RunConfig:
    """Return the configuration without the guards of uploads."""
    return config.model_copy(update={"privacy": config.privacy.model_copy(update=GUARDS_OFF)})


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
    chosen = next(iter(able)) if name is None else name
    if chosen not in able:
        raise RunError(f"--client {name}: no such client with training data; there are {', '.join(able)}")
    return able[chosen]
