"""A whole run with one hostile client: what the bounds and rules of [aggregation] do, and what the events say."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.torch import load_file

from trifed import make_config, run
from trifed.federation.client import Client
from trifed.federation.run_folder import RunFolder

HOSTILE = 2
"""Index of the client that sends ten thousand times its change."""


@pytest.fixture
def attacked(toy_values, tmp_path, monkeypatch):
    """`attacked(method, norm_bound=0)`: the "bounded" events, and the largest number in an honest model."""
    upload = Client._upload

    def scaled(self, number, tensors):
        if self.dataset.index == HOSTILE:
            start = self.shared_model.start
            tensors = {name: start[name] + 1e4 * (tensor - start[name]) for name, tensor in tensors.items()}
        return upload(self, number, tensors)

    monkeypatch.setattr(Client, "_upload", scaled)

    def play(method="fedavg-lora", **aggregation):
        values = toy_values(method=method, rounds=2, aggregation=aggregation, wire={"bits": 32})
        values["data"]["clients"] = {"split": "dirichlet", "count": 5, "alpha": 10.0}
        path = run(make_config(values), tmp_path / f"{method}-{len(list(tmp_path.iterdir()))}").path
        names = [c["name"] for c in json.loads((path / "summary.json").read_text())["clients"]]
        model = load_file(path / "clients" / names[0] / "adapter_model.safetensors")
        largest = max(float(tensor.abs().max()) for name, tensor in model.items() if "lora" in name)
        bounded = [e for e in RunFolder.open(path).events() if e["event"] == "bounded"]
        assert {e["client"] for e in bounded} <= {names[HOSTILE]}
        return bounded, largest

    return play


def test_the_norm_bound_holds_in_every_round_and_is_in_the_events(attacked):
    bounded, largest = attacked()
    assert [(e["round"], e["bound"]) for e in bounded] == [(1, "norm"), (2, "norm")]
    assert all(e["ratio"] > 100 for e in bounded)
    without, unbounded = attacked(norm_bound=0)
    assert without == [] and unbounded > 100 * largest


@pytest.mark.parametrize("method", ["fedavg-lora", "own-prior"])
@pytest.mark.parametrize(
    "settings", [{"rule": "median"}, {"rule": "trimmed-mean"}, {"screen": "multi-krum"}], ids=str
)
def test_each_rule_limits_one_hostile_client_without_the_norm_bound(attacked, method, settings):
    bounded, limited = attacked(method, norm_bound=0, **settings)
    _, unlimited = attacked(method, norm_bound=0)
    assert np.isfinite(limited) and unlimited > 100 * limited
    expected = [(1, "distance"), (2, "distance")] if "screen" in settings else []
    assert [(e["round"], e["bound"]) for e in bounded] == expected
