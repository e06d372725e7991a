"""Summaries of raw features between sites: all agree on their width, and the run can be resumed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from trifed import make_config, run
from trifed.common.errors import RunError
from trifed.federation.run_folder import RunFolder

SITES = ["amber", "basil", "coral"]
LABELS = ["billing", "delivery", "login"]
METHOD = "ce-lora-authors"


@pytest.fixture
def sites(federation):
    """Three nodes that send such summaries, and whose own guard lets them pass."""
    allow = {"privacy": {"small_components": "allow"}, "raw_summaries": True}
    return lambda: {10 - place: federation.node(site, **allow) for place, site in enumerate(SITES)}


def test_it_reaches_what_the_simulator_reaches(federation, sites, toy_values, site_tables):
    coordinator, _ = federation(METHOD, nodes=sites())
    coordinator.run()
    values = toy_values(method=METHOD, rounds=2, data={"labels": LABELS}, privacy={"small_components": "allow"})
    done = run(make_config(values), site_tables / "simulated")
    simulated = RunFolder.open(done.path).read_arrays("matrices/round-0002.safetensors")
    assert coordinator.server.context.summary_dim == 32 and set(simulated) >= {"similarity_data", "weights"}
    for name, array in simulated.items():
        np.testing.assert_array_equal(coordinator.server.state[name], array, err_msg=name)


@pytest.mark.parametrize(
    ("own", "kind", "code", "setting"),
    [
        ({"raw_summaries": True}, "open", "guard", "privacy.small_components"),
        ({"privacy": {"small_components": "allow"}}, "hello", "raw_summaries_off", "raw_summaries = true"),
    ],
)
def test_a_site_decides_by_itself_whether_it_sends_one(own, kind, code, setting, federation, caplog):
    """Whatever the server's settings say: they allow all."""
    nodes = {10 - place: federation.node(site, **own) for place, site in enumerate(SITES)}
    coordinator, _ = federation(METHOD, nodes=nodes, privacy={"small_components": "allow"})
    replies = []
    ask = coordinator.client_manager.channel.ask

    def recorded(requests, seconds, missing):
        found = ask(requests, seconds, missing)
        replies.extend((requests[place].kind, reply.error) for place, reply in found.items())
        return found

    coordinator.client_manager.channel.ask = recorded
    with pytest.raises(RunError):
        coordinator.run()
    assert {error for asked, error in replies if asked == kind} == {code}
    assert setting in caplog.text


def test_a_site_with_features_of_another_width_is_left_out(federation, sites, events):
    def other(reply, request):
        return replace(reply, facts={**reply.facts, "features": 31})

    coordinator, _ = federation(METHOD, nodes=sites(), faults={("open", 0, "basil"): other})
    coordinator.run()
    assert {(e["round"], e["client"]) for e in events(coordinator, "left out")} == {(0, "basil")}


def test_a_resumed_run_still_knows_the_width(federation, sites):
    nodes = sites()
    coordinator, channel = federation(METHOD, nodes=nodes, rounds=2)

    def stop(reply, request):
        raise KeyboardInterrupt

    channel.faults = {("train", 2, site): stop for site in SITES}
    with pytest.raises(KeyboardInterrupt):
        coordinator.run()
    again, _ = federation(METHOD, nodes=nodes, rounds=2)
    again.run()
    assert again.server.context.summary_dim == 32 and again.folder.rounds_done() == 2
