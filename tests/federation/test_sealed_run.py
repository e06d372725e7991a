"""Whole sealed runs on a tiny model."""

from __future__ import annotations

import pytest

from trifed import make_config, run

SEALED = {"sealing": {"on": True}}


@pytest.mark.parametrize("method", ["own-prior", "fedavg-lora"])
def test_a_sealed_run_opens_one_sum_a_round(method, toy_values, tmp_path):
    config = make_config(toy_values(method=method, **SEALED))
    heard = []
    run(config, tmp_path / "run", heard.append)
    sums = [(e["round"], len(e["clients"]), e["bits"]) for e in heard if e["event"] == "sum"]
    opening = [(0, 3, 2)] if method == "own-prior" else []
    assert sums == [*opening, *((number, 3, 3) for number in (1, 2, 3))]
    assert [e for e in heard if e["event"] in ("left out", "no sum", "summary")] == []
