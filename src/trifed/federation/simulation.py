"""All clients in one process: one frozen base, tensors swapped in and out, every message through the codec.

Round r: the server sends each participating client what it has for it, the client trains and uploads, the server
aggregates. After the last round everybody receives once more, so that uploads and downloads balance.

With [privacy] clients clip and noise as they do at sites, but from the run's seed, so that a run can be repeated.
**Whoever knows the seed can take that noise off again**: what a simulated run writes is not protected.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from trifed.config.run import RunConfig
from trifed.data import FederatedData, content_hash
from trifed.federation.client import Client, ClientSettings, adapted_layout, receive_shared_projections
from trifed.federation.client_update import SAMPLING, ClientDataset, ClientState, score
from trifed.federation.context import run_context
from trifed.federation.dp_mechanism import simulated_privacy
from trifed.federation.messages import array_sizes, layout_sizes, manifest
from trifed.federation.results import facts_of
from trifed.federation.run_folder import PRIVACY, Event, RunFolder
from trifed.federation.server import Server, layout_of
from trifed.federation.shared_model import SharedModel
from trifed.federation.training import seeded
from trifed.methods.base import State
from trifed.methods.packing import Vector

Listener = Callable[[Event], None]
SHARED_PROJECTIONS = "frames.safetensors"
MATRICES = ("similarity_data", "similarity_model", "weights")


@dataclass
class Simulation:
    """One run under way. `arrived`: by client what it has received in the end; empty before that."""

    config: RunConfig
    data: FederatedData
    clients: list[ClientDataset]
    shared_model: SharedModel
    folder: RunFolder
    listener: Listener
    arrived: dict[int, Vector | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        config, labels = self.config, len(self.data.label_names)
        self.warned: set[tuple[int, str]] = set()
        self.context = run_context(config, self.shared_model.layout, self.shared_model.fingerprint)
        self.method = self.context.method
        self.server = Server(self.context, len(self.clients), self.shared_model.start_values)
        settings = ClientSettings.of(config, labels)
        self.sites = [
            Client(
                self.context,
                self.shared_model,
                client,
                settings,
                simulated_privacy(config, client, self._ledger_of(client)),
            )
            for client in self.clients
        ]
        self.identity = identity_of(config, self.data, self.shared_model)

    def _ledger_of(self, client: ClientDataset) -> Path:
        return self.folder.path / PRIVACY / client.name

    # -- the run

    def run(self) -> None:
        """From the last whole round, or from the beginning, to the end."""
        checkpoint = self.folder.load_checkpoint(self.identity)
        if checkpoint is None:
            first = 1
            self._begin()
        else:
            first = self._continue(*checkpoint)
        for number in range(first, self.config.rounds + 1):
            self._round(number)
            self.folder.save_checkpoint(number, self._kept(), self.server.state, self.identity)
        self._finish()

    def _begin(self) -> None:
        self._tell(**self._facts("started"))
        if self.method.shared_projections:
            self._agree_on_shared_projections()
            self.server.start = self.shared_model.start_values
        for site in self.sites:
            site.start()
        self._score(0, "start", [site.state.tensors for site in self.sites])
        summaries = (
            {site.dataset.index: self._summary(site) for site in self.sites} if self.method.summarise else {}
        )
        self.server.open({client: payload for client, payload in summaries.items() if payload})

    def _continue(self, done: int, states: list[ClientState], server: State) -> int:
        """Take a checkpoint up, and say so; the number of the next round."""
        self.restore(states, server)
        sent = sum(total_bytes(e.get(way, {})) for e in self.folder.events() for way in ("up", "down"))
        self._tell(**self._facts("resumed"), round=done, sent=sent)
        return done + 1

    def restore(self, states: list[ClientState], server: State) -> None:
        """Put clients and server where a checkpoint has them."""
        if self.method.shared_projections:
            self.shared_model.set_shared_projections(self.folder.read_arrays(SHARED_PROJECTIONS))
            self.server.start = self.shared_model.start_values
        self.server.state = server
        for site, state in zip(self.sites, states, strict=True):
            site.state = state
            if "received" in state.memory:
                self.server.known[site.dataset.index] = state.memory["received"]

    def _agree_on_shared_projections(self) -> None:
        """Every client's first gradient goes up, and the frames that the method makes of them come down."""
        layers, gradients = adapted_layout(self.shared_model), {}
        for site in self.sites:
            if len(site.dataset.train):
                payload = gradients[site.dataset.index] = site.gradient()
                self._tell(event="opening", client=site.dataset.name, up=manifest(payload, layout_sizes(layers)))
        shared_projections = self.server.shared_projections(gradients, layers)
        layout = layout_of(shared_projections)
        for client in self.clients:
            payload = self.server.shared_projections_for(client.index, shared_projections)
            self._tell(event="opening", client=client.name, down=manifest(payload, layout_sizes(layout)))
        receive_shared_projections(self.shared_model, self.context, self.clients[-1].index, payload, layout)
        self.folder.write_tensors(
            SHARED_PROJECTIONS, {name: torch.from_numpy(v) for name, v in shared_projections.items()}, {}
        )

    def _summary(self, site: Client) -> bytes | None:
        payload = site.summary(self.identity)
        if payload is not None:
            self._tell_warnings(site)
            self._tell(event="summary", client=site.dataset.name, up=manifest(payload, array_sizes(payload)))
        return payload

    def _round(self, number: int) -> None:
        uploads = []
        for site in self._participants(number):
            began = time.perf_counter()
            download = self.server.download(number, site.dataset.index)
            done = site.round(number, download)
            self._tell_warnings(site)
            if done.upload is not None:
                uploads.append(self.server.accept(number, site.dataset.index, done.upload))
            seconds = round(time.perf_counter() - began, 4)
            self._tell(
                event="trained", round=number, client=site.dataset.name, loss=done.loss, steps=done.steps,
                seconds=seconds, up=self._sizes(done.upload), down=self._sizes(download),
            )  # fmt: skip
        self.server.aggregate(uploads)
        self._evaluate(number)

    def _evaluate(self, number: int) -> None:
        last = number == self.config.rounds
        if number % self.config.evaluate_every and not last:
            return
        both = ["trained", "received"] if last and self.shared_model.layout else []
        for stage in dict.fromkeys([*both, self.method.evaluated_model]):
            self._score(number, stage, [self._tensors(site, stage) for site in self.sites])
        matrices = {n: torch.tensor(self.server.state[n]) for n in MATRICES if n in self.server.state}
        if matrices:
            self.folder.write_tensors(f"matrices/round-{number:04d}.safetensors", matrices, {})

    def _finish(self) -> None:
        number = self.config.rounds + 1
        for site in self.sites:
            download = self.server.download(number, site.dataset.index)
            self.arrived[site.dataset.index] = None if download is None else site.take(number, download)
            if download is not None:
                self._tell(event="delivered", round=number, client=site.dataset.name, down=self._sizes(download))
        self._tell(event="finished", round=self.config.rounds)

    # -- its parts

    def _sizes(self, payload: bytes | None) -> dict[str, int]:
        """Bytes of an exchange by tensor name."""
        return {} if payload is None else self.context.compression.manifest(payload)

    def _participants(self, number: int) -> list[Client]:
        able = [site for site in self.sites if site.examples]
        wanted = max(1, round(self.config.participation * len(able)))
        if wanted >= len(able):
            return able
        drawn = seeded(self.config.seed, SAMPLING, number).choice(len(able), wanted, replace=False)
        return [able[place] for place in sorted(drawn)]

    def _kept(self) -> list[ClientState]:
        """What clients have to keep: not what the next download replaces, which may be the whole model."""
        states = [site.state for site in self.sites]
        if self.method.evaluated_model != "received" or any(
            self.method.download(self.server.state, client.index) is None for client in self.clients
        ):
            return states
        travels = {name for name, _ in self.shared_model.layout}
        return [
            replace(state, tensors={name: t for name, t in state.tensors.items() if name not in travels})
            for state in states
        ]

    def _tensors(self, site: Client, stage: str) -> dict[str, Tensor]:
        """The model that a client has at a stage, and, before all have received in the end, would have."""
        client = site.dataset.index
        if stage == "trained":
            return site.tensors(stage, None)
        return site.tensors(stage, self.arrived[client] if self.arrived else self.server.arrives(client))

    def final_tensors(self, client: int) -> dict[str, Tensor]:
        """The tensors that a client would use from now on: those that are scored."""
        return self._tensors(self.sites[client], self.method.evaluated_model)

    def _facts(self, event: str) -> Event:
        names = [client.name for client in self.clients]
        return {
            "event": event,
            "method": self.method.name,
            "scored": self.method.evaluated_model,
            "clients": names,
        }

    def _score(self, number: int, stage: str, models: list[dict[str, Tensor]]) -> None:
        for client, tensors in zip(self.clients, models, strict=True):
            event: Event = {"event": "scores", "round": number, "stage": stage, "client": client.name}
            for split in ("valid", "test"):
                event[split] = facts_of(
                    score(self.shared_model, tensors, getattr(client, split), self.config.training)
                )
            self._tell(**event)

    def _tell_warnings(self, site: Client) -> None:
        """What a client lets out although there is something against it: said once."""
        for setting, text in site.guards.warnings.items():
            if (site.dataset.index, setting) not in self.warned:
                self.warned.add((site.dataset.index, setting))
                self._tell(event="warned", client=site.dataset.name, text=text)

    def _tell(self, **event: object) -> None:
        self.folder.append(event)
        self.listener(event)


def identity_of(config: RunConfig, data: FederatedData, shared_model: SharedModel) -> str:
    """What a checkpoint may be continued with."""
    return f"{config.run_id()} {content_hash(data)} {shared_model.fingerprint}"


def total_bytes(up_or_down: dict[str, int]) -> int:
    """Bytes of one message, envelope included."""
    return sum(up_or_down.values())
