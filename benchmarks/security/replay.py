"""Runs of three clients, between sites and simulated: replies are recorded and played again without a model."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from hostile import Json
from safetensors.numpy import load

from trifed.config.run import RunConfig, make_config
from trifed.data import demo_corpus_path
from trifed.deployment.protocol import Missing, Reply, Request
from trifed.deployment.site_process import SiteProcess
from trifed.deployment.site_settings import SiteSettings
from trifed.deployment.site_transport import SiteTransport
from trifed.federation.client import Client
from trifed.federation.preparation import prepare, quiet
from trifed.federation.run_folder import RunFolder
from trifed.federation.simulation import Simulation

ROWS = [json.loads(line) for line in demo_corpus_path().read_text(encoding="utf-8").splitlines()]
SITES = sorted({row["site"] for row in ROWS})[:3]
Key = tuple[str, int, int, int]
"""Kind of a request, its round, the client's index, and whether it asks for the start."""


class Sites:
    """A channel to sites. `answer`: what a site replies, by its index."""

    def __init__(self, answer: Callable[[int, Request], Reply], number: int = len(SITES)) -> None:
        self.answer, self.number = answer, number

    def nodes(self) -> set[int]:
        """Return one node for each site."""
        return set(range(self.number))

    def ask(self, requests: Mapping[int, Request], seconds: float, missing: Missing) -> dict[int, Reply]:
        """Return the replies of all."""
        return {node: self.answer(node, request) for node, request in requests.items()}


def key_of(node: int, request: Request) -> Key:
    return request.kind, int(request.facts.get("round", 0)), node, int(request.facts.get("start", 0))


def configured(method: str) -> RunConfig:
    labels = sorted({row["label"] for row in ROWS})
    return make_config({
        "name": "hostile", "rounds": 2, "method": method, "model": {"name": "demo", "max_length": 32},
        "training": {"steps": 2, "device": "cpu"}, "data": {"source": "-", "labels": labels},
        "deployment": {"clients": 3, "quorum": 2, "join_seconds": 2},
    })  # fmt: skip


def site(folder: Path, node: int, **more: Any) -> SiteProcess:
    """Return the process of a site with 60 examples of the demo corpus."""
    rows = [json.dumps(row) for row in ROWS if row["site"] == SITES[node]][:60]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "rows.jsonl").write_text("\n".join(rows), encoding="utf-8")
    data = {"source": str(folder / "rows.jsonl")}
    values = {"name": SITES[node], "data": data, "folder": folder / "kept", "gradients": True, "tell_scores": True}
    return SiteProcess(SiteSettings(**{**values, **more}))


def play(config: RunConfig, answer: Callable[[int, Request], Reply]) -> tuple[list[Json], dict[str, bytes]]:
    """Run once; return the clients that were left out, and the server's state and records as bytes."""
    with tempfile.TemporaryDirectory() as folder:
        store = RunFolder.create(Path(folder) / "run")
        store.write_text("config.toml", "")
        transport = SiteTransport(config, Sites(answer), store, quiet, sleep=lambda seconds: None)
        transport.run()
        events = [e for e in store.events() if e["event"] == "left out"]
        state = {name: array.tobytes() for name, array in transport.server.state_dict().items()}
        return events, {**state, "records": repr(transport.records).encode()}


def record(
    config: RunConfig, folder: Path, where: tuple[str, int], spoil: Callable[[Reply], Reply]
) -> tuple[dict[Key, Reply], dict[Key, Request], dict[str, bytes]]:
    """Run with real sites, the first without its message; return replies, requests and the server's state."""
    sites = [site(folder / name, node) for node, name in enumerate(SITES)]
    replies: dict[Key, Reply] = {}
    requests: dict[Key, Request] = {}

    def answer(node: int, request: Request) -> Reply:
        key = key_of(node, request)
        requests[key], replies[key] = request, sites[node].answer(request)
        return spoil(replies[key]) if node == 0 and key[:2] == where else replies[key]

    _, state = play(config, answer)
    return replies, requests, state


# -- the simulator


class Simulated:
    """The clients of a simulated run, whose messages are recorded and can be played again."""

    def __init__(self, method: str, folder: Path) -> None:
        folder.mkdir(parents=True)
        rows = [row for site in SITES for row in [r for r in ROWS if r["site"] == site][:60]]
        (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
        clients = {"split": "column", "column": "site"}
        values = configured(method).model_dump(mode="json", exclude={"deployment"}, exclude_none=True)
        values["data"] = {"source": str(folder / "rows.jsonl"), "clients": clients}
        self.config = make_config({**values, "privacy": {"few_tokens": "allow", "small_components": "allow"}})
        self.prepared = prepare(self.config)
        self.messages: dict[Key, Any] = {}

    def play(self, where: Key, instead: bytes | None = None) -> tuple[list[Json], dict[str, bytes]]:
        """Run once; return the clients that were left out, and the server's and the clients' state as bytes.

        Args:
            where: Kind, round and client of one message that is replaced.
            instead: What is sent there; None to send what was recorded, or, at first, to record.
        """
        data, shared_model, datasets = self.prepared
        with tempfile.TemporaryDirectory() as folder, patch.object(Simulation, "evaluate", lambda *_: ()):
            store = RunFolder.create(Path(folder) / "run")
            simulation = Simulation(self.config, data, datasets, shared_model, store, quiet)
            for client in simulation.clients:
                for kind, name in (("train", "round"), ("summary", "summary"), ("gradient", "gradient")):
                    setattr(
                        client, name, partial(self._answer, client, kind, getattr(client, name), where, instead)
                    )
            simulation.run()
            events = [e for e in store.events() if e["event"] == "left out"]
            state = {name: array.tobytes() for name, array in simulation.server.state_dict().items()}
            for client in simulation.clients:
                kept = {**client.state.tensors, **client.state.memory}
                state |= {f"{client.dataset.name}/{n}": np.asarray(t).tobytes() for n, t in kept.items()}
            return events, state

    def _answer(self, client: Client, kind: str, make: Callable[..., Any], where: Key, instead: bytes | None,
                *given: Any) -> Any:  # fmt: skip
        number = given[0] if kind == "train" else 0
        key = (kind, number, client.dataset.index, 0)
        # Where a message was left out, the download of round 2 differs, and so does what is trained.
        download = given[1] if kind == "train" else None  # its bytes have the header's fields in any order
        known = (*key, download and tuple(array.tobytes() for _, array in sorted(load(download).items())))
        if known not in self.messages:
            before, reply = client.state, make(*given)
            self.messages[known] = (reply, client.state if client.state is not before else None)
        reply, state = self.messages[known]
        client.state = client.state if state is None else state
        if instead is None or key != where:
            return reply
        return replace(reply, upload=instead) if kind == "train" else instead
