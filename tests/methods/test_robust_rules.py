"""Median and trimmed mean in place of the weighted mean, for all clients or within groups."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import trim_mean

from trifed.common.errors import ConfigError
from trifed.config.run import make_config
from trifed.methods import METHODS
from trifed.methods.aggregation import AggregationSettings, at_most, robust_mean
from trifed.methods.base import ServerContext, Upload


def joined(rule, values, suspects=0.2):
    settings = AggregationSettings(rule=rule, suspects=suspects)
    return robust_mean(np.array(values, np.float32), np.ones(np.shape(values), bool), settings)


@pytest.mark.parametrize("number", range(1, 9))
def test_the_median_is_numpys_and_the_trimmed_mean_scipys(number):
    values = np.random.default_rng(number).standard_normal((number, 5)).astype(np.float32)
    assert joined("median", values) == pytest.approx(np.median(values, axis=0))
    for suspects in (0.0, 0.25, 0.4):
        cut = min(int(np.ceil(suspects * number)), (number - 1) // 2)
        expected = trim_mean(values.astype(np.float64), (cut + 1e-9) / number, axis=0)
        assert joined("trimmed-mean", values, suspects) == pytest.approx(expected, rel=1e-5)


def test_one_third_of_hostile_uploads_do_not_move_either_beyond_the_honest_ones():
    honest = np.random.default_rng(0).standard_normal((7, 20)).astype(np.float32)
    for hostile in (1e30, -1e30, 50.0):
        values = np.concatenate([honest, np.full((3, 20), hostile, np.float32)])
        for rule in ("median", "trimmed-mean"):
            found = joined(rule, values, suspects=0.3)
            assert (found >= honest.min(0)).all() and (found <= honest.max(0)).all()


def test_values_that_do_not_count_are_left_out_and_a_value_without_any_is_zero():
    values = np.array([[1, 5, 9], [2, 6, 9], [3, 1e9, 9]], np.float32)
    counts = np.array([[1, 1, 0], [1, 1, 0], [1, 0, 0]], bool)
    assert robust_mean(values, counts, AggregationSettings(rule="median")).tolist() == [2, 5.5, 0]


@pytest.mark.parametrize("method", ["fedavg-lora", "fed-xs", "own-prior"])
def test_any_averaging_method_can_have_the_rule(method):
    config = make_config({"data": {"source": "x.csv"}, "method": method, "aggregation": {"rule": "median"}})
    assert config.composed_method().aggregate is not METHODS[method].aggregate
    assert make_config({"data": {"source": "x.csv"}, "method": method}).run_id() != config.run_id()


def test_a_server_with_weights_of_its_own_refuses_the_rule():
    with pytest.raises(ConfigError) as caught:
        make_config({"data": {"source": "x.csv"}, "method": "ce-lora", "aggregation": {"rule": "median"}})
    assert [problem.split(":")[0] for problem in caught.value.problems] == ["aggregation.rule"]


def test_the_common_mean_becomes_the_median():
    config = make_config({"data": {"source": "x.csv"}, "method": "fedavg-lora", "aggregation": {"rule": "median"}})
    context = ServerContext(3, (("x.lora_A.weight", (1, 2)),), np.zeros(2, np.float32))
    values = ([1, 2], [2, 9], [99, 3])
    sent = [Upload(i, 1, 10**i, np.array(v, np.float32)) for i, v in enumerate(values)]
    state = config.composed_method().aggregate(config.method.options(), context, {}, sent)
    assert state["mean"].tolist() == [2, 3] and state["weights"][0] == pytest.approx([1 / 3] * 3)


def test_numbers_of_examples_are_limited_by_the_median_of_those_that_have_some():
    numbers = np.array([0, 10, 20, 30, 10**9], float)
    assert at_most(numbers, 10).tolist() == [0, 10, 20, 30, 250]
    assert at_most(numbers, 0) is numbers and at_most(np.zeros(2), 10).tolist() == [0, 0]
