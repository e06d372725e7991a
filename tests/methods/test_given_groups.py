"""Groups that are given: clients in one list of `aggregation.members` share, others do not."""

from __future__ import annotations

import json

import numpy as np
import pytest

from trifed import make_config, run
from trifed.common.errors import ConfigError, RunError
from trifed.deployment.greeting import settings_to_send
from trifed.deployment.site_transport import SiteTransport
from trifed.federation.run_folder import RunFolder
from trifed.methods import METHODS, AggregationSettings, PersonalizationSettings, ServerContext, Upload, compose
from trifed.methods.base import SummarySeeds

NAMES = ("a", "b", "c", "d", "e")
MEMBERS = [["a", "d"], ["b", "e", "absent"]]  # c is in none
GIVEN = AggregationSettings(groups="given", members=MEMBERS)
LAYOUT = (("x.lora_C.weight", (2, 2)),)


def uploads(rng):
    return [Upload(i, 1, 10 * (i + 1), rng.standard_normal(4).astype(np.float32)) for i in range(5)]


def test_each_client_gets_the_average_of_its_group():
    method = compose(METHODS["fed-xs"], PersonalizationSettings(), GIVEN)
    assert method.summarise is None  # nobody has to send one
    context = ServerContext(5, LAYOUT, np.zeros(4, np.float32), names=NAMES)
    state, sent = method.start(method.options(), context), uploads(np.random.default_rng(0))
    state = method.aggregate(method.options(), context, state, sent)
    for group in ((0, 3), (1, 4), (2,)):
        counts = [sent[i].examples for i in group]
        expected = np.average([sent[i].values for i in group], axis=0, weights=counts)
        for client in group:
            np.testing.assert_allclose(method.download(state, client), expected, rtol=1e-5, atol=1e-6)
    # A client that comes later begins with the average of its group.
    later = ServerContext(6, LAYOUT, np.zeros(4, np.float32), names=(*NAMES, "absent"))
    state = method.on_membership_change(method.options(), later, state, [5])
    np.testing.assert_allclose(method.download(state, 5), method.download(state, 1), rtol=1e-6)


def test_ce_lora_weighs_within_the_groups_and_all_alike_if_asked():
    method = compose(METHODS["ce-lora"], PersonalizationSettings(), GIVEN)
    chosen, rng = method.options(others="uniform", self_weight=0.25), np.random.default_rng(1)
    features = rng.standard_normal((5, 40, 8)).astype(np.float32)
    labels = np.arange(40) % 2
    summaries = {i: method.summarise(chosen, features[i], labels, SummarySeeds(0, i)) for i in range(5)}
    context = ServerContext(5, LAYOUT, np.zeros(4, np.float32), summaries, NAMES)
    state = method.aggregate(chosen, context, method.start(chosen, context), uploads(rng))
    expected = np.eye(5) * 0.25
    for one, other in ((0, 3), (1, 4)):
        expected[one, other] = expected[other, one] = 0.75
    expected[2, 2] = 1.0
    np.testing.assert_allclose(state["weights"], expected, atol=1e-12)
    everybody = METHODS["ce-lora"]
    state = everybody.aggregate(chosen, context, everybody.start(chosen, context), uploads(rng))
    np.testing.assert_allclose(
        state["weights"], np.full((5, 5), 0.75 / 4) + np.eye(5) * (0.25 - 0.75 / 4), atol=1e-12
    )
    by_likeness = everybody.options(self_weight=0.25)
    state = everybody.aggregate(by_likeness, context, everybody.start(by_likeness, context), uploads(rng))
    assert np.ptp(state["weights"][0, 1:]) > 0.01


def test_groups_need_names_and_each_name_once():
    method = compose(METHODS["fedavg-lora"], PersonalizationSettings(), GIVEN)
    with pytest.raises(RunError, match=r"aggregation\.groups"):
        method.start(method.options(), ServerContext(5, LAYOUT, np.zeros(4, np.float32)))
    values = {"data": {"source": "t.csv"}, "method": "fedavg-lora"}
    twice = {"groups": "given", "members": [["a", "b"], ["b"]]}
    with pytest.raises(ConfigError, match=r"aggregation\.members: got b twice"):
        make_config({**values, "aggregation": twice})
    for groups in ({}, {"groups": "all"}, {"groups": "agreement"}):
        with pytest.raises(ConfigError, match=r"aggregation\.members: used with"):
            make_config({**values, "aggregation": {**groups, "members": [["a", "b"]]}})


@pytest.mark.parametrize("members", [[], [["amber", "corral"]]])
def test_groups_of_clients_that_there_are(members, toy_values, tmp_path):
    config = make_config(toy_values(method="fedavg-lora", aggregation={"groups": "given", "members": members}))
    with pytest.raises(
        ConfigError, match=r"aggregation\.members: (missing|corral: no client.*did you mean 'coral')"
    ):
        run(config, tmp_path / "run")


def test_a_run_shares_within_the_groups(toy_values, tmp_path):
    chosen = {"groups": "given", "members": [["amber", "coral"]]}
    done = run(make_config(toy_values(method="fedavg-lora", rounds=2, aggregation=chosen)), tmp_path / "run")
    heads = {path.parent.name: path.read_bytes() for path in (done.path / "clients").glob("*/head.safetensors")}
    assert heads["amber"] == heads["coral"] != heads["basil"]
    weights = RunFolder(done.path).read_arrays("matrices/round-0002.safetensors")["weights"]
    assert (weights[1] == [0, 1, 0]).all() and (weights[0] == weights[2]).all() and weights[0, 1] == 0


def test_sites_are_not_told_each_others_names(toy_values, tmp_path):
    chosen = {"groups": "given", "members": [["amber", "coral"]]}
    config = make_config(toy_values(method="fedavg-lora", aggregation=chosen))
    sent = json.loads(settings_to_send(config))
    assert sent["aggregation"]["groups"] == "given" and "amber" not in json.dumps(sent["aggregation"])
    missing = make_config(toy_values(method="fedavg-lora", aggregation={"groups": "given"}))
    with pytest.raises(ConfigError, match=r"aggregation\.members"):
        SiteTransport(missing, None, RunFolder.create(tmp_path / "server"), lambda event: None)
