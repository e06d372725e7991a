"""The bounds on one upload: what is over them is scaled down or left out, and nothing else changes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from trifed.config.run import make_config
from trifed.federation.context import run_context
from trifed.federation.screening import FEWEST, ROUNDS, Screening, krum
from trifed.federation.server import Server
from trifed.methods.aggregation import AggregationSettings
from trifed.methods.base import Upload

ZERO = np.zeros(2, np.float32)


def before(client):
    return ZERO


def uploads(*values, examples=None):
    counts = examples or [10] * len(values)
    return [Upload(i, 1, n, np.array(v, np.float32)) for i, (v, n) in enumerate(zip(values, counts, strict=True))]


def screened(*values, examples=None, settings=None, screening=None):
    screening = screening or Screening(AggregationSettings(**(settings or {})))
    return screening.apply(uploads(*values, examples=examples), before)


def test_uploads_within_all_bounds_are_the_very_same():
    given = uploads([1, 0], [0, 1.5], [-4, 0])
    found, bounded = Screening(AggregationSettings()).apply(given, before)
    assert all(one is other for one, other in zip(found, given, strict=True)) and bounded == []


@pytest.mark.parametrize("factor", [6.0, 1e6, 1e30, 1e38])
def test_a_long_change_is_scaled_to_the_bound_in_its_own_direction(factor):
    found, [bounded] = screened([1, 0], [0, 1], [-factor, 0], [0, -1])
    assert found[2].values == pytest.approx([-5, 0]) and (bounded.client, bounded.bound) == (2, "norm")
    assert bounded.ratio == pytest.approx(factor / 5)


def test_the_change_is_counted_from_the_values_that_the_client_began_with():
    start = {0: [100, 0], 1: [0, 100], 2: [50, 50]}
    given = uploads([101, 0], [0, 101], [50, 70])
    found, [bounded] = Screening(AggregationSettings()).apply(given, lambda c: np.array(start[c], np.float32))
    assert found[2].values == pytest.approx([50, 55]) and bounded.client == 2


def test_the_bound_is_a_running_median_that_a_hostile_majority_of_one_round_cannot_move():
    screening = Screening(AggregationSettings())
    for _ in range(ROUNDS):
        screened([1, 0], [0, 1], [1, 0], screening=screening)
    found, bounded = screened([1, 0], [1e6, 0], [1e6, 0], screening=screening)
    assert [b.client for b in bounded] == [1, 2] and found[1].values == pytest.approx([5, 0])


def test_without_history_two_uploads_are_not_compared_and_with_it_one_is():
    screening = Screening(AggregationSettings())
    assert FEWEST == 3
    assert screened([1, 0], [1e6, 0], screening=screening)[1] == [] and screening.norms == [[]]
    screened([1, 0], [0, 1], [1, 0], screening=screening)
    [one], [bounded] = screened([0, 1e6], screening=screening)
    assert one.values == pytest.approx([0, 5]) and bounded.bound == "norm"


def test_changes_of_one_turn_are_not_measured_by_those_of_another():
    """B starts at 0 and moves far; A moves little. Five medians of both would bound one by the other."""
    config = make_config({"data": {"source": "x.csv"}, "method": "rolora"})
    layout = (("x.lora_A.weight", (1, 1)), ("x.lora_B.weight", (1, 1)))
    server, again = (Server(run_context(config, layout, "f" * 64), 3, ZERO) for _ in range(2))
    for number in range(1, 7):
        step = np.array([0, 100] if number % 2 else [1, 0], np.float32)
        sent = [Upload(client, number, 10, server._values_before(client) + step) for client in range(3)]
        assert server.aggregate(sent) == []
    again.load_state_dict(server.state_dict())
    assert again.screening.norms == server.screening.norms == [[100.0] * 3, [1.0] * 3]
    assert not [name for name in again.state if name.startswith("screening/")]
    sent[2] = Upload(2, 8, 10, server._values_before(2) + np.array([50, 0], np.float32))
    sent = [replace(upload, round=8) for upload in sent]
    [bounded] = again.aggregate(sent)
    assert (bounded.client, bounded.bound) == (2, "norm") and bounded.ratio == pytest.approx(10, rel=0.1)


def test_a_claim_of_very_many_examples_counts_as_a_multiple_of_the_median():
    found, [bounded] = screened([1, 0], [0, 1], [1, 1], examples=[20, 40, 10**9])
    assert [u.examples for u in found] == [20, 40, 400]
    assert (bounded.client, bounded.bound) == (2, "examples") and bounded.ratio == pytest.approx(2.5e6)


def test_bounds_that_are_off_change_nothing():
    given = uploads([1, 0], [0, 1], [1e6, 0], examples=[1, 1, 10**9])
    found, bounded = Screening(AggregationSettings(norm_bound=0, most_examples=0)).apply(given, before)
    assert found == given and bounded == []


def test_multi_krum_leaves_out_the_farthest():
    near = [[1, 0], [1.1, 0], [0.9, 0.1], [1, 0.1], [1, -0.1], [1.05, 0]]
    found, bounded = screened(*near, [-1, 0], settings={"screen": "multi-krum", "suspects": 0.15})
    assert {b.client for b in bounded if b.bound == "distance"} >= {6} and 6 not in [u.client for u in found]
    assert np.array_equal(krum(np.zeros((3, 2)), 0.4), np.ones(3))  # too few to compare


@pytest.mark.parametrize(("number", "suspects"), [(7, 0.15), (10, 0.3), (12, 0.1)])
def test_multi_krum_keeps_what_its_definition_says(number, suspects):
    """n - f uploads with the smallest sums of squared distances to their n - f - 2 nearest others."""
    rng = np.random.default_rng(number)
    values = rng.normal(size=(number, 2)).astype(np.float32)
    found, bounded = screened(*values, settings={"screen": "multi-krum", "suspects": suspects, "norm_bound": 0})
    hostile = int(np.ceil(suspects * number))
    sums = []
    for mine in values.astype(float):
        squares = sorted(float(((mine - other) ** 2).sum()) for other in values.astype(float))
        sums.append(sum(squares[1 : number - hostile - 1]))
    kept = sorted(np.argsort(sums)[: number - hostile].tolist())
    assert [upload.client for upload in found] == kept
    assert sorted(b.client for b in bounded) == sorted(set(range(number)) - set(kept))


def test_the_running_median_outlives_a_restart_with_the_same_numbers():
    config = make_config({"data": {"source": "x.csv"}, "method": "fedavg-lora"})
    context = run_context(config, (("x.lora_A.weight", (1, 2)),), "f" * 64)
    server, again = Server(context, 3, ZERO), Server(context, 3, ZERO)
    server.aggregate(uploads([1, 0], [0, 1], [1, 1]))
    again.load_state_dict(server.state_dict())
    assert again.screening.norms == server.screening.norms != [[]]
    assert "screening/norms" not in again.state
    one, other = (s.aggregate(uploads([3, 0], [0, 1], [1e6, 1])) for s in (server, again))
    assert one == other and np.array_equal(server.state["mean"], again.state["mean"])


def test_one_hostile_upload_moves_the_mean_no_further_than_its_bound():
    """1e38 ended a run for good: the mean became infinite, and was in the checkpoint."""
    config = make_config({"data": {"source": "x.csv"}, "method": "fedavg-lora"})
    server = Server(run_context(config, (("x.lora_A.weight", (1, 2)),), "f" * 64), 3, ZERO)
    [bounded] = server.aggregate(uploads([1, 0], [1, 0], [-3e38, 3e38]))
    assert bounded.client == 2 and np.abs(server.state["mean"]).max() < 2
