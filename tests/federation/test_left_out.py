"""A simulated run leaves out a client that sends garbage, and only that client, as a run between sites does."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from trifed import make_config, run
from trifed.common.errors import RunError
from trifed.experiments.runner import run_or_resume
from trifed.federation.client import Client
from trifed.federation.round import FederatedRun
from trifed.federation.run_folder import RunFolder

GARBAGE = b"\x08\0\0\0\0\0\0\0garbage!"
OUT = 1
"""Index of the client that sends garbage."""


def models(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.glob("clients/**/*.safetensors"))}


def left_out(folder):
    events = RunFolder.open(folder).events()
    names = [json.loads((folder / "summary.json").read_text())["clients"][OUT]["name"]]
    found = [(e["client"], e["round"], e["code"]) for e in events if e["event"] == "left out"]
    assert {client for client, *_ in found} <= set(names)
    return [(number, code) for _, number, code in found]


@pytest.mark.parametrize("method", ["own-prior", "fedavg-lora", "fed-sb", "ce-lora"])
def test_a_bad_upload_changes_nothing_for_the_others(method, toy_values, tmp_path, monkeypatch):
    config = make_config(toy_values(method=method, rounds=3, training={"clients_at_once": 1}))
    with monkeypatch.context() as patch:
        select = FederatedRun.select
        patch.setattr(FederatedRun, "select", lambda self, n: [c for c in select(self, n) if n != 2 or c != OUT])
        expected = run(config, tmp_path / "not selected").path
    train = Client.end_round

    def sends_garbage(self, training, *rest):
        done, number = train(self, training, *rest), training.number
        return replace(done, upload=GARBAGE) if (number, self.dataset.index) == (2, OUT) else done

    monkeypatch.setattr(Client, "end_round", sends_garbage)
    found = run(config, tmp_path / "garbage").path
    assert left_out(found) == [(2, "bad_reply")]
    assert models(found) == models(expected) and len(models(found)) > 1


def stopped(config, path, monkeypatch, last):
    """Run until round `last`, which is not finished."""
    train = Client.begin_round

    def stops(self, number, *rest, **more):
        if number == last:
            raise KeyboardInterrupt
        return train(self, number, *rest, **more)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Client, "begin_round", stops)
        run(config, path)


@pytest.mark.parametrize(("method", "kind"), [("own-prior", "summary"), ("fed-sb", "gradient")])
def test_a_bad_opening_leaves_its_client_out_of_the_whole_run(method, kind, toy_values, tmp_path, monkeypatch):
    config, path = make_config(toy_values(method=method, rounds=2)), tmp_path / "run"
    make = getattr(Client, kind)
    monkeypatch.setattr(
        Client, kind, lambda self, *rest: GARBAGE if self.dataset.index == OUT else make(self, *rest)
    )
    stopped(config, path, monkeypatch, 2)
    run_or_resume(config, path)
    assert left_out(path) == [(0, "bad_reply")]
    rounds = [client["rounds"] for client in json.loads((path / "summary.json").read_text())["clients"]]
    assert rounds == [0 if client == OUT else 2 for client in range(len(rounds))]


@pytest.mark.parametrize("participation", [0.4, 1.0])
@pytest.mark.parametrize("garbage", [False, True])
@pytest.mark.parametrize("method", ["fedavg-lora", "own-prior"])
def test_a_resumed_run_has_the_same_numbers(method, garbage, participation, toy_values, tmp_path, monkeypatch):
    """Also for clients that are not selected, or left out, in the round after the checkpoint."""
    config, train = make_config(toy_values(method=method, rounds=3, participation=participation)), Client.end_round

    def sends_garbage(self, training, *rest):
        done, number = train(self, training, *rest), training.number
        return replace(done, upload=GARBAGE) if garbage and (number, self.dataset.index) == (3, OUT) else done

    monkeypatch.setattr(Client, "end_round", sends_garbage)
    expected, found = run(config, tmp_path / "unbroken").path, tmp_path / "resumed"
    stopped(config, found, monkeypatch, 3)
    run_or_resume(config, found)
    scores = [json.loads((path / "summary.json").read_text())["clients"] for path in (expected, found)]
    assert scores[0] == scores[1]
    assert models(expected) == models(found)


def test_a_run_without_any_client_ends(toy_values, tmp_path, monkeypatch):
    train = Client.end_round
    monkeypatch.setattr(Client, "end_round", lambda self, *a, **b: replace(train(self, *a, **b), upload=GARBAGE))
    with pytest.raises(RunError, match="round 1"):
        run(make_config(toy_values(method="fedavg-lora")), tmp_path / "run")


def test_values_that_are_not_finite_count_as_a_bad_upload(toy_values, tmp_path, monkeypatch):
    config, train = make_config(toy_values(method="fedavg-lora")), Client._upload

    def infinite(self, number, tensors):
        bad = (number, self.dataset.index) == (1, OUT)
        return train(self, number, {n: t * np.inf if bad else t for n, t in tensors.items()})

    monkeypatch.setattr(Client, "_upload", infinite)
    assert left_out(run(config, tmp_path / "run").path) == [(1, "bad_reply")]
