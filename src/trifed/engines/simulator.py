"""All clients in one process: one frozen base, tensors swapped in and out, every message through the codec.

Round r: the server sends each participating client what it has for it, the client trains and uploads, the server
aggregates. After the last round everybody receives once more, so that uploads and downloads balance.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
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
    temper,
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
from trifed.federation.wire import Wire
from trifed.federation.workbench import Workbench
from trifed.methods import METHODS, Setting, State, Upload
from trifed.methods.interface import Frames, Gradient, Summarise
from trifed.methods.packing import Layout, Tensors, Vector, pack, unpack
from trifed.similarity import Summary
from trifed.training import Scores, seeded

Listener = Callable[[Event], None]
FRAMES = "frames.safetensors"
MATRICES = ("similarity_data", "similarity_model", "weights")


@dataclass
class Simulation:
    """One run under way. `states`: what each client keeps; `server`: the method's state.

    `delivered`: has everybody received what came of the last round?
    """

    config: RunConfig
    data: FederatedData
    clients: list[Client]
    bench: Workbench
    folder: RunFolder
    listener: Listener
    states: list[ClientState] = field(default_factory=list)
    server: State = field(default_factory=dict)
    delivered: bool = False

    def __post_init__(self) -> None:
        self.method = METHODS[self.config.method.name]
        self.options = self.config.method.options()
        self.wire = Wire(self.bench.layout, None if self.config.wire.bits == 32 else self.config.wire.bits)
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
            if self.method.frames:
                self.bench.fix_frames(self.folder.read_arrays(FRAMES))
            sent = sum(total_bytes(e.get(way, {})) for e in self.folder.events() for way in ("up", "down"))
            self._tell(**self._facts("resumed"), round=done, sent=sent)
        for number in range(first, self.config.rounds + 1):
            self._round(number)
            self.folder.save_checkpoint(number, self._kept(), self.server, self.identity)
        self._finish()

    def _begin(self) -> None:
        self._tell(**self._facts("started"))
        if self.method.frames:
            self._agree_on_frames(self.method.frames)
        self.states = [ClientState(self._start_of(client), {}, 0) for client in self.clients]
        self._score(0, "start", [state.tensors for state in self.states])
        make = self.method.summarise
        summaries = {c.index: self._summary(c, make) for c in self.clients} if make else {}
        if self.bench.layout:
            self.server = self.method.start(self.options, self._setting(summaries))

    def _agree_on_frames(self, make: Frames) -> None:
        """Every client's first gradient goes up, and the frames that the method makes of them come down."""
        shapes = tuple((name, tuple(weight.shape)) for name, weight in self.bench.adapted.items())
        gradients = []
        for client in self.clients:
            if not len(client.train):
                continue
            layers = self.bench.first_gradient(client.train, self.config.training)
            header = self._header("gradient", 0, client.index, len(client.train))
            layers, up = _through_the_wire(header, layers, shapes)
            gradients.append(Gradient(client.index, len(client.train), layers))
            self._tell(event="opening", client=client.name, up=up)
        frames = make(self.options, gradients, self.config.adapter.rank)
        shapes = tuple((name, values.shape) for name, values in frames.items())
        for client in self.clients:
            frames, down = _through_the_wire(self._header("frames", 0, client.index), frames, shapes)
            self._tell(event="opening", client=client.name, down=down)
        self.folder.write_tensors(FRAMES, {name: torch.from_numpy(v) for name, v in frames.items()}, {})
        self.bench.fix_frames(frames)

    def _start_of(self, client: Client) -> dict[str, Tensor]:
        """The common start, and over it what the method takes from this client's labels."""
        if not self.method.own_start:
            return dict(self.bench.start)
        own = self.method.own_start(self.options, client.train.labels, len(self.data.label_names))
        return {**self.bench.start, **{name: torch.from_numpy(values) for name, values in own.items()}}

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
            done = train_round(
                self.bench,
                client,
                self.states[client.index],
                download,
                self.config.training,
                seed=self.config.seed,
                round_number=number,
                rounds=self.config.rounds,
                proximal=self.method.proximal(self.options) if self.method.proximal else None,
            )
            steps = done.state.steps - self.states[client.index].steps
            self.states[client.index] = done.state
            upload, up = self._upload(number, client, done.sends)
            uploads += [upload] if upload else []
            seconds = round(time.perf_counter() - began, 4)
            self._tell(
                event="trained", round=number, client=client.name, loss=done.loss, steps=steps, seconds=seconds,
                up=up, down=down,
            )  # fmt: skip
        if uploads:
            self.server = self.method.aggregate(self.options, self._setting({}), self.server, uploads)
        self._evaluate(number)

    def _evaluate(self, number: int) -> None:
        last = number == self.config.rounds
        if number % self.config.evaluate_every and not last:
            return
        both = ["trained", "received"] if last and self.bench.layout else []
        for stage in dict.fromkeys([*both, self.method.scored]):
            self._score(number, stage, [self._tensors(c.index, stage) for c in self.clients])
        matrices = {n: torch.tensor(self.server[n]) for n in MATRICES if n in self.server}
        if matrices:
            self.folder.write_tensors(f"matrices/round-{number:04d}.safetensors", matrices, {})

    def _finish(self) -> None:
        self.delivered = True
        for client in self.clients:
            values, down = self._deliver(self.config.rounds + 1, client.index)
            if values is not None:
                self._tell(event="delivered", round=self.config.rounds + 1, client=client.name, down=down)
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
        header, known = self._header("download", number, client), self._known(client)
        payload = self.wire.encode(header, values, known)
        arrived = self.wire.decode(payload, header, known)[1]
        if self.wire.bits is not None:
            self._remember(client, received=arrived)
        return arrived, self.wire.manifest(payload)

    def _upload(
        self, number: int, client: Client, tensors: dict[str, Tensor]
    ) -> tuple[Upload | None, dict[str, int]]:
        if not self.bench.layout:
            return None, {}
        header, known = self._header("upload", number, client.index, len(client.train)), self._known(client.index)
        wanted = self.bench.pack(tensors)
        if "owed" in self.states[client.index].wire:
            wanted = wanted + self.states[client.index].wire["owed"]
        payload = self.wire.encode(header, wanted, known)
        found, values = self.wire.decode(payload, header, known)
        if self.wire.bits is not None:
            self._remember(client.index, owed=wanted - values)
        return Upload(client.index, number, found.examples, values), self.wire.manifest(payload)

    def _known(self, client: int) -> Vector:
        """What both sides know that the client had last; nothing where the values themselves travel."""
        if self.wire.bits is None:
            return np.zeros(0, np.float32)
        return self.states[client].wire.get("received", self.bench.start_values)

    def _remember(self, client: int, **vectors: Vector) -> None:
        state = self.states[client]
        self.states[client] = replace(state, wire={**state.wire, **vectors})

    def _header(self, kind: str, number: int, client: int, examples: int = 0) -> Header:
        return Header(kind, self.config.run_id(), self.bench.fingerprint[:16], number, client, examples)

    def _kept(self) -> list[ClientState]:
        """What clients have to keep: not what the next download replaces, which may be the whole model."""
        if self.method.scored != "received" or any(
            self.method.download(self.server, client.index) is None for client in self.clients
        ):
            return self.states
        travels = {name for name, _ in self.bench.layout}
        return [
            replace(state, tensors={name: t for name, t in state.tensors.items() if name not in travels})
            for state in self.states
        ]

    def _tensors(self, client: int, stage: str) -> dict[str, Tensor]:
        """The model that a client has at a stage; the one that is scored as the client would use it."""
        tensors = self._at(client, stage)
        if not self.method.tempered or stage != self.method.scored:
            return tensors
        return temper(self.bench, tensors, self.clients[client].valid, self.config.training)

    def _at(self, client: int, stage: str) -> dict[str, Tensor]:
        tensors = self.states[client].tensors
        values = self.method.download(self.server, client) if stage != "trained" else None
        if values is None:
            return tensors
        known = self._known(client)
        arrived = known if self.wire.bits is not None and self.delivered else self.wire.arrives(values, known)
        received = self.bench.receive(tensors, arrived)
        if stage == "received":
            return received
        return {name: torch.lerp(tensor, received[name], 0.5) for name, tensor in tensors.items()}

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


def _through_the_wire(header: Header, tensors: Tensors, layout: Layout) -> tuple[Tensors, dict[str, int]]:
    """Tensors of one message after encoding and decoding, and its bytes by tensor."""
    payload = encode_values(header, pack(tensors, layout))
    return unpack(decode_values(payload, header, layout)[1], layout), manifest(payload, layout_sizes(layout))


def facts(scores: Scores) -> dict[str, float]:
    """The part of scores that goes into the log."""
    return {"loss": scores.loss, "accuracy": scores.accuracy, "examples": scores.examples}


def total_bytes(up_or_down: dict[str, int]) -> int:
    """Bytes of one message, envelope included."""
    return sum(up_or_down.values())
