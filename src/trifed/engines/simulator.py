"""All clients in one process: one frozen base, tensors swapped in and out, every message through the codec.

Round r: the server sends each participating client what it has for it, the client trains and uploads, the server
aggregates. After the last round everybody receives once more, so that uploads and downloads balance.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from trifed.config import RunConfig
from trifed.data import FederatedData, content_hash
from trifed.federation.client import (
    SAMPLING,
    Client,
    ClientState,
    score,
    summary_seeds,
    train_round,
)
from trifed.federation.messages import (
    Header,
    decode_summary,
    decode_values,
    encode_summary,
    encode_values,
    layout_sizes,
    manifest,
)
from trifed.federation.store import Event, RunFolder
from trifed.federation.workbench import Workbench
from trifed.methods import METHODS, Setting, State, Upload
from trifed.methods.interface import Summarise, Vector
from trifed.similarity import Summary
from trifed.training import Scores, seeded

Listener = Callable[[Event], None]
MATRICES = ("similarity_data", "similarity_model", "weights")


@dataclass
class Simulation:
    """One run under way. `states`: what each client keeps; `server`: the method's state."""

    config: RunConfig
    data: FederatedData
    clients: list[Client]
    bench: Workbench
    folder: RunFolder
    listener: Listener
    states: list[ClientState] = field(default_factory=list)
    server: State = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.method = METHODS[self.config.method.name]
        self.options = self.config.method.options()
        self.identity = f"{self.config.run_id()} {content_hash(self.data)} {self.bench.fingerprint}"

    # -- the run

    def run(self) -> None:
        """From the last whole round, or from the beginning, to the end."""
        checkpoint = self.folder.load_checkpoint(self.identity)
        if checkpoint is None:
            first = 1
            self._begin()
        else:
            done, self.states, self.server = checkpoint
            first = done + 1
            sent = sum(total_bytes(e.get(way, {})) for e in self.folder.events() for way in ("up", "down"))
            self._tell(**self._facts("resumed"), round=done, sent=sent)
        for number in range(first, self.config.rounds + 1):
            self._round(number)
            self.folder.save_checkpoint(number, self.states, self.server, self.identity)
        self._finish()

    def _begin(self) -> None:
        self._tell(**self._facts("started"))
        self.states = [ClientState(dict(self.bench.start), {}, 0) for _ in self.clients]
        self._score(0, "start", [self.bench.start] * len(self.clients))
        make = self.method.summarise
        summaries = {c.index: self._summary(c, make) for c in self.clients} if make else {}
        if self.bench.layout:
            self.server = self.method.start(self.options, self._setting(summaries))

    def _summary(self, client: Client, make: Summarise) -> Summary:
        features = self.bench.base_features(client.train, self.config.training)
        seeds = summary_seeds(self.config.seed, client.index)
        summary = make(self.options, features, client.train.labels, seeds)
        header = self._header("summary", 0, client.index)
        payload = encode_summary(header, summary)
        sizes = {name: array.nbytes for name, array in summary.to_arrays().items()}
        self._tell(event="summary", client=client.name, up=manifest(payload, sizes))
        return decode_summary(payload, header)

    def _round(self, number: int) -> None:
        uploads = []
        for client in self._participants(number):
            began = time.perf_counter()
            download, down = self._deliver(number, client.index)
            state, loss = train_round(
                self.bench,
                client,
                self.states[client.index],
                download,
                self.config.training,
                seed=self.config.seed,
                round_number=number,
                rounds=self.config.rounds,
            )
            steps = state.steps - self.states[client.index].steps
            self.states[client.index] = state
            upload, up = self._upload(number, client)
            uploads += [upload] if upload else []
            seconds = round(time.perf_counter() - began, 4)
            self._tell(
                event="trained", round=number, client=client.name, loss=loss, steps=steps, seconds=seconds,
                up=up, down=down,
            )  # fmt: skip
        if uploads:
            self.server = self.method.aggregate(self.options, self._setting({}), self.server, uploads)
        self._evaluate(number)

    def _evaluate(self, number: int) -> None:
        last = number == self.config.rounds
        if number % self.config.evaluate_every and not last:
            return
        stages = ["trained", "received"] if last and self.bench.layout else [self.method.scored]
        for stage in stages:
            self._score(number, stage, [self._tensors(c.index, stage) for c in self.clients])
        matrices = {n: torch.tensor(self.server[n]) for n in MATRICES if n in self.server}
        if matrices:
            self.folder.write_tensors(f"matrices/round-{number:04d}.safetensors", matrices, {})

    def _finish(self) -> None:
        for client in self.clients:
            values, down = self._deliver(self.config.rounds + 1, client.index)
            if values is not None:
                self._tell(event="delivered", client=client.name, down=down)
        self._tell(event="finished", round=self.config.rounds)

    # -- its parts

    def _setting(self, summaries: dict[int, Summary]) -> Setting:
        return Setting(len(self.clients), self.bench.layout, self.bench.start_values, summaries)

    def _participants(self, number: int) -> list[Client]:
        able = [client for client in self.clients if len(client.train)]
        wanted = max(1, round(self.config.participation * len(able)))
        if wanted >= len(able):
            return able
        drawn = seeded(self.config.seed, SAMPLING, number).choice(len(able), wanted, replace=False)
        return [able[place] for place in sorted(drawn)]

    def _deliver(self, number: int, client: int) -> tuple[Vector | None, dict[str, int]]:
        """What the server has for a client, through the wire and back, and its bytes by tensor."""
        values = self.method.download(self.server, client)
        if values is None:
            return None, {}
        header = self._header("download", number, client)
        payload = encode_values(header, values)
        sizes = layout_sizes(self.bench.layout)
        return decode_values(payload, header, self.bench.layout)[1], manifest(payload, sizes)

    def _upload(self, number: int, client: Client) -> tuple[Upload | None, dict[str, int]]:
        if not self.bench.layout:
            return None, {}
        header = self._header("upload", number, client.index, len(client.train))
        payload = encode_values(header, self.bench.pack(self.states[client.index].tensors))
        found, values = decode_values(payload, header, self.bench.layout)
        sizes = layout_sizes(self.bench.layout)
        return Upload(client.index, number, found.examples, values), manifest(payload, sizes)

    def _header(self, kind: str, number: int, client: int, examples: int = 0) -> Header:
        return Header(kind, self.config.run_id(), self.bench.fingerprint[:16], number, client, examples)

    def _tensors(self, client: int, stage: str) -> dict[str, Tensor]:
        tensors = self.states[client].tensors
        values = self.method.download(self.server, client) if stage == "received" else None
        return tensors if values is None else self.bench.receive(tensors, values)

    def final_tensors(self, client: int) -> dict[str, Tensor]:
        """The tensors that a client would use from now on: those that are scored."""
        return self._tensors(client, self.method.scored)

    def _facts(self, event: str) -> Event:
        names = [client.name for client in self.clients]
        return {"event": event, "method": self.method.name, "scored": self.method.scored, "clients": names}

    def _score(self, number: int, stage: str, models: list[dict[str, Tensor]]) -> None:
        for client, tensors in zip(self.clients, models, strict=True):
            event: Event = {"event": "scores", "round": number, "stage": stage, "client": client.name}
            for split in ("valid", "test"):
                event[split] = facts(score(self.bench, tensors, getattr(client, split), self.config.training))
            self._tell(**event)

    def _tell(self, **event: object) -> None:
        self.folder.append(event)
        self.listener(event)


def facts(scores: Scores) -> dict[str, float]:
    """The part of scores that goes into the log."""
    return {"loss": scores.loss, "accuracy": scores.accuracy, "examples": scores.examples}


def total_bytes(up_or_down: dict[str, int]) -> int:
    """Bytes of one message, envelope included."""
    return sum(up_or_down.values())
