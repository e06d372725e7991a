"""A client after warm-up, and what leaves it: the plain gradient of a batch, or a whole round by the protocol."""

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
from trifed.methods.packing import Tensors, Vector, unpack
from trifed.reports.audit.findings import Knows
from trifed.tasks import Encoded
from trifed.tasks.base import Batch

GUESSING = 9
"""Purpose of the generators that draw what an attacker does not know."""
LETS_OUT = {"few_tokens": "allow", "small_components": "allow"}
"""An audit shows what guards are for: it looks at uploads that they would not let out."""
Rows = NDArray[np.int64]


def drawn(seed: int, examples: int, batch: int, count: int) -> list[Rows]:
    """So many batches of a client's examples: of one seed and size the same for every method and attack."""
    rng = seeded(seed, batch)
    return [rng.choice(examples, batch, replace=False) for _ in range(count)]


@dataclass(frozen=True)
class Subset:
    """The given rows of a client's examples, as examples of their own."""

    whole: Encoded
    rows: Rows

    @property
    def labels(self) -> NDArray[np.int64]:
        """(n,)."""
        return self.whole.labels[self.rows]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """(n,)."""
        return self.whole.lengths[self.rows]

    @property
    def cut(self) -> int:
        """Not counted."""
        return 0

    def __len__(self) -> int:
        return len(self.rows)

    def inputs(self, row: int) -> Mapping[str, Set[Hashable]]:
        """Of one of these rows."""
        return self.whole.inputs(int(self.rows[row]))

    def batch(self, rows: NDArray[np.int64], device: torch.device) -> Batch:
        """The given ones of these rows."""
        return self.whole.batch(self.rows[rows], device)


@dataclass(frozen=True)
class TargetClient:
    """One client where a run stands after round `round`, about to begin the next.

    `simulation`: everything of the run; `download`: what it begins with; `before`: its tensors once it came.
    """

    config: RunConfig
    simulation: Simulation
    site: Client
    round: int
    download: bytes | None
    before: dict[str, Tensor]

    @property
    def shared_model(self) -> SharedModel:
        """The model, which holds whichever tensors are loaded."""
        return self.simulation.shared_model

    @property
    def client(self) -> ClientDataset:
        """The client's examples."""
        return self.site.dataset

    @property
    def others(self) -> list[ClientDataset]:
        """The other clients, whose examples stand for what is known of such data in general."""
        return [client for client in self.simulation.datasets if client.index != self.client.index]

    def gradient(self, rows: Rows) -> Tensors:
        """The gradient of the mean loss of some training examples, of all that travels, by name; no dropout."""
        shared_model = self.shared_model
        shared_model.load(self.before)
        shared_model.model.eval()
        batch = self.client.train.batch(rows, shared_model.device)
        travelling = {name: shared_model.parameters[name] for name, _ in shared_model.layout}
        found = torch.autograd.grad(shared_model.model.loss(batch), list(travelling.values()), allow_unused=True)
        return {
            name: np.zeros(tuple(param.shape), np.float32) if part is None else part.float().cpu().numpy()
            for (name, param), part in zip(travelling.items(), found, strict=True)
        }

    def update(self, rows: Rows) -> Tensors:
        """What a round on some training examples sends, as the server decodes it: before minus after, by name.

        The client's own protocol makes it, with its steps, its optimiser's state, and what the wire rounds.
        """
        client = replace(self.client, train=Subset(self.client.train, rows))
        with self.site_of(client) as site:
            return self._sent(site)

    def _sent(self, site: Client) -> Tensors:
        sim, number = self.simulation, self.round + 1
        site.state = self.site.state
        payload = site.round(number, self.download).upload
        if payload is None:
            raise RunError(f"{self.config.method.name} sends nothing, so there is nothing to attack")
        header = sim.context.header("upload", number, site.dataset.index)
        values = sim.context.compression.decode(payload, header, site.reference)[1]
        return unpack(self.shared_model.pack(self.before) - values, self.shared_model.layout)

    @contextmanager
    def site_of(self, client: ClientDataset) -> Iterator[Client]:
        """A client's side of the run that lets everything out, with noise where the run has it.

        Its ledger is one of its own: an audit spends nothing.
        """
        sim, config, labels = self.simulation, self.config, len(self.simulation.data.label_names)
        settings = ClientSettings.of(config, labels)
        settings = replace(settings, guards=settings.guards.model_copy(update=LETS_OUT))
        with TemporaryDirectory(prefix="trifed-audit-") as scratch:
            privacy = simulated_privacy(config, client, Path(scratch))
            yield Client(sim.context, self.shared_model, client, settings, privacy)

    def steps(self, examples: int) -> int:
        """Optimiser steps of a round on that many examples."""
        return steps_per_round(examples, self.config.training)

    def levels(self) -> list[Knows]:
        """What an attacker may know of the adapter: all of it, where no factor stays with the client."""
        travels = {name for name, _ in self.shared_model.layout}
        private = any(is_factor(name) and name not in travels for name in self.shared_model.parameters)
        return ["base", "start", "factors"] if private else ["factors"]

    def believed(self, knows: Knows) -> dict[str, Tensor]:
        """What the attacker takes for the client's tensors. What travels it has seen.

        With "factors" it knows the head as well where that stays with the client: the most that it could.
        Unknown tensors are drawn from a normal distribution as large as the truth.
        """
        if knows == "factors":
            return self.before
        travels = {name for name, _ in self.shared_model.layout}
        rng = seeded(self.config.seed, GUESSING, self.client.index)
        found = {}
        for name, tensor in self.before.items():
            if name in travels:
                found[name] = tensor
            elif knows == "start":
                found[name] = self.shared_model.start[name]
            else:
                size = float(tensor.pow(2).mean().sqrt())
                found[name] = torch.from_numpy(rng.normal(0, size, tuple(tensor.shape)).astype(np.float32))
        return found


def target_client(simulation: Simulation, index: int, done: int) -> TargetClient:
    """A client of a run that stands after round `done`."""
    site = simulation.clients[index]
    download = simulation.server.download(done + 1, index)
    values: Vector | None = None
    if download is not None:
        header = simulation.context.header("download", done + 1, index)
        values = simulation.context.compression.decode(download, header, site.reference)[1]
    before = site.state.tensors if values is None else simulation.shared_model.receive(site.state.tensors, values)
    return TargetClient(simulation.config, simulation, site, done, download, before)
