"""The attacked client, and what leaves it: the plain gradient of a batch, or a whole round by the protocol."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Set
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trifed.common.errors import RunError
from trifed.config.run import RunConfig
from trifed.federation.client import Client, ClientSettings
from trifed.federation.client_update import ClientDataset
from trifed.federation.dp_mechanism import simulated_privacy
from trifed.federation.shared_model import SharedModel
from trifed.federation.simulation import Simulation
from trifed.federation.training import seeded, steps_per_round
from trifed.methods.base import is_factor
from trifed.methods.packing import Tensors, unpack
from trifed.reports.audit.findings import Knows, Sees
from trifed.tasks import Encoded
from trifed.tasks.base import Batch

ASSUMING = 9
"""Purpose of the generators that draw the tensors an attacker does not know."""
GUARDS_OFF = {"few_tokens": "allow", "small_components": "allow"}
"""Settings of an attacked run: an audit also attacks uploads that the guards would refuse to send."""
OBSERVATIONS: tuple[Sees, ...] = ("gradient", "update")
"""What an attacker observes: the gradient of one batch, or the upload of a whole round."""
Rows = NDArray[np.int64]


def draw_batches(seed: int, examples: int, batch: int, count: int) -> list[Rows]:
    """Draw `count` batches of a client's examples; the same ones for every method and attack."""
    rng = seeded(seed, batch)
    return [rng.choice(examples, batch, replace=False) for _ in range(count)]


@dataclass(frozen=True)
class Subset:
    """Some rows of a client's examples, as examples of their own."""

    whole: Encoded
    rows: Rows

    @property
    def labels(self) -> NDArray[np.int64]:
        """Classes, (n,)."""
        return self.whole.labels[self.rows]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Lengths, (n,)."""
        return self.whole.lengths[self.rows]

    @property
    def cut(self) -> int:
        """Always 0: shortened examples are counted in the whole data alone."""
        return 0

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
    """

    config: RunConfig
    simulation: Simulation
    site: Client
    round: int
    download: bytes | None
    before: dict[str, Tensor]

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

    def observe(self, observation: Sees, rows: Rows) -> Tensors:
        """Return what an attacker observes of a round on some training examples, by name."""
        return self.gradient(rows) if observation == "gradient" else self.update(rows)

    def gradient(self, rows: Rows) -> Tensors:
        """Return the gradient of the mean loss of some training examples, without dropout, of all that is sent."""
        shared_model = self.shared_model
        shared_model.load(self.before)
        shared_model.model.eval()
        loss = shared_model.model.loss(self.client.train.batch(rows, shared_model.device))
        sent = [shared_model.parameters[name] for name, _ in shared_model.layout]
        parts = torch.autograd.grad(loss, sent, allow_unused=True, materialize_grads=True)
        names = [name for name, _ in shared_model.layout]
        return {name: part.float().cpu().numpy() for name, part in zip(names, parts, strict=True)}

    def update(self, rows: Rows) -> Tensors:
        """Return what a round on some training examples sends, as the server decodes it: before minus after.

        The client's own protocol makes the upload, with its steps, its optimiser's state and its compression.
        """
        sim, number = self.simulation, self.round + 1
        with self.client_side(replace(self.client, train=Subset(self.client.train, rows))) as site:
            site.state = self.site.state
            payload = site.round(number, self.download).upload
            if payload is None:
                raise RunError(f"{self.config.method.name} sends nothing, so there is nothing to attack")
            header = sim.context.header("upload", number, site.dataset.index)
            values = sim.context.compression.decode(payload, header, site.reference)[1]
        return unpack(self.shared_model.pack(self.before) - values, self.shared_model.layout)

    @contextmanager
    def client_side(self, client: ClientDataset) -> Iterator[Client]:
        """Make a client's side of the run without guards, but with the run's noise.

        Its privacy ledger is temporary: an audit spends no budget.
        """
        sim, config, labels = self.simulation, self.config, len(self.simulation.data.label_names)
        settings = ClientSettings.of(config, labels)
        settings = replace(settings, guards=settings.guards.model_copy(update=GUARDS_OFF))
        with TemporaryDirectory(prefix="trifed-audit-") as scratch:
            privacy = simulated_privacy(config, client, Path(scratch))
            yield Client(sim.context, self.shared_model, client, settings, privacy)

    def steps(self, examples: int) -> int:
        """Return the optimiser steps of a round on that many examples."""
        return steps_per_round(examples, self.config.training)

    def knowledge_levels(self) -> list[Knows]:
        """Return what an attacker may know of the adapter: everything, if no factor stays with the client."""
        sent = {name for name, _ in self.shared_model.layout}
        private = any(is_factor(name) and name not in sent for name in self.shared_model.parameters)
        return ["base", "start", "factors"] if private else ["factors"]

    def assumed_tensors(self, knowledge: Knows) -> dict[str, Tensor]:
        """Return the tensors that an attacker assumes the client to have.

        Tensors that are sent are known. At level "factors" a private head is known as well: the worst case.
        Unknown tensors are drawn from a normal distribution with the root mean square of the true values.
        """
        if knowledge == "factors":
            return self.before
        sent = {name for name, _ in self.shared_model.layout}
        rng = seeded(self.config.seed, ASSUMING, self.client.index)
        assumed = dict(self.before)
        for name, tensor in self.before.items():
            if name not in sent and knowledge == "start":
                assumed[name] = self.shared_model.start[name]
            elif name not in sent:
                size = float(tensor.pow(2).mean().sqrt())
                assumed[name] = torch.from_numpy(rng.normal(0, size, tuple(tensor.shape)).astype(np.float32))
        return assumed
