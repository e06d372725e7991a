"""A method without its exchange, the baseline that shows what sharing is worth."""

from __future__ import annotations

import json

import pytest

from trifed import make_config, run
from trifed.common.errors import ConfigError
from trifed.methods import METHODS
from trifed.reports.comparison.worth import worth_of_sharing
from trifed.reports.read import read_source
from trifed.reports.results import MethodResult, Partition, Traffic

SHARES = sorted(
    name
    for name, method in METHODS.items()
    if any(map(method.sends, ("x.lora_A.weight", "x.lora_B.weight", "x.lora_C.weight", "head.weight", "x.weight")))
)
PROJECTED = [name for name in SHARES if METHODS[name].shared_projections]


@pytest.mark.parametrize("method", [name for name in SHARES if name not in (*PROJECTED, "ce-lora-authors")])
def test_every_method_can_be_trained_alone(method, toy_values, tmp_path):
    """It sends nothing, starts as the method does, and has the method's adapter, rate and parts."""
    config = make_config(toy_values(method=method, rounds=2, baselines=["alone"]))
    done = run(config, tmp_path / "run")
    alone = done.baselines["alone"]
    assert alone.summary["bytes"]["total"] == 0 < done.summary["bytes"]["total"]
    starts = [[client["before"] for client in each.summary["clients"]] for each in (done, alone)]
    assert starts[0] == starts[1]
    other = config.with_method("alone")
    for name in ("adapter", "training", "model", "data", "seed", "rounds"):
        assert getattr(other, name) == getattr(config, name)
    parts = [each.personalization.model_dump(exclude={"share"}) for each in (config, other)]
    assert parts[0] == parts[1] and not other.personalization.share


@pytest.mark.parametrize("method", PROJECTED)
def test_projections_that_clients_make_together_exclude_it(method, toy_values):
    for changes in ({"baselines": ["alone"]}, {"personalization": {"share": False}}):
        with pytest.raises(ConfigError, match="no client can train it separately"):
            make_config(toy_values(method=method, **changes))


def test_a_private_runs_baseline_has_no_noise(toy_values, tmp_path):
    privacy = {"update": {"epsilon": 8, "clip": 1.0}}
    config = make_config(toy_values(method="fedavg-lora", rounds=1, privacy=privacy, baselines=["alone"]))
    assert config.privacy.on and not config.with_method("alone").privacy.on
    done = run(config, tmp_path / "run")
    assert "privacy" not in done.baselines["alone"].summary


@pytest.mark.parametrize(
    ("alone", "kind", "gain"),
    [
        ([0.70, 0.71, 0.69, 0.70], "gain", 0.1),
        ([0.80, 0.81, 0.79, 0.80], "unclear", 0.0),
        ([0.90, 0.91, 0.89, 0.90], "loss", -0.1),
    ],
)
def test_the_headline_says_whether_sharing_was_worth_it(alone, kind, gain):
    shared = [0.80, 0.82, 0.78, 0.80]
    methods = {
        "own-prior": MethodResult(mean=0.8, client_accuracy=shared, bytes=Traffic(total=100)),
        "alone": MethodResult(mean=sum(alone) / 4, client_accuracy=alone),
        "local": MethodResult(mean=0.5, client_accuracy=[0.5] * 4),
    }
    worth = worth_of_sharing(Partition(clients=list("abcd"), methods=methods))
    assert (worth.kind, worth.shared, worth.alone) == (kind, "own-prior", "alone")
    assert worth.gain == pytest.approx(gain) and worth.means == (0.8, pytest.approx(sum(alone) / 4))


def test_a_run_beside_it_has_that_headline(toy_values, tmp_path):
    done = run(make_config(toy_values(method="fedavg-lora", rounds=1, baselines=["alone"])), tmp_path / "run")
    source = read_source(done.path)
    worth = worth_of_sharing(next(iter(source.study.results.values())))
    assert (worth.shared, worth.alone, worth.clients) == ("fedavg-lora", "alone", 3)
    log = (done.path / "baselines" / "alone" / "events.jsonl").read_text().splitlines()
    assert json.loads(log[0])["method"] == "alone"


def test_where_nothing_is_shared_there_is_no_baseline_alone(toy_values):
    for changes in ({"method": "local"}, {"personalization": {"share": False}}):
        with pytest.raises(ConfigError, match="sends nothing itself"):
            make_config(toy_values(baselines=["alone"], **changes))
    with pytest.raises(ConfigError, match=r"method\.name"):
        make_config(toy_values(method="foo", baselines=["alone"]))


def test_other_baselines_share(toy_values):
    config = make_config(
        toy_values(method="own-prior", personalization={"share": False}, baselines=["fedavg-lora"])
    )
    assert config.with_method("fedavg-lora").personalization.share
