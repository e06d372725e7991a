"""Noise in sealed sums between sites: the simulator's integers, and a ledger that counts each sum once."""

from __future__ import annotations

import math

import numpy as np
import pytest
from safetensors.torch import load_file

from trifed import make_config, run
from trifed.federation.dp_mechanism import DpMechanism
from trifed.federation.privacy_report import promise
from trifed.federation.run_folder import RunFolder
from trifed.federation.training.batches import NOISE, seeded
from trifed.privacy import noise_multiplier, read_ledger, seeded_noise
from trifed.privacy.ledger import EVERYTHING

pytest.importorskip("cryptography")
from sealed_sites import LABELS, SITES, Heard, counted, left_out, sums

from trifed.deployment import site_run
from trifed.federation.dp_mechanism import make_privacy

PRIVACY = {"update": {"epsilon": 8.0, "clip": 0.2}}


def ledger(node):
    book = read_ledger(node.run.store.folder / "privacy" / "ledger.json")
    return [(entry.what, entry.round) for entry in book.entries]


@pytest.mark.parametrize("method", ["own-prior", "fedavg-lora"])
def test_with_the_same_noise_it_reaches_what_the_simulator_reaches(
    method, sealed, toy_values, site_tables, events, monkeypatch
):
    def from_the_seed(config, client, folder, draw):
        def drawn(purpose, number):
            return seeded_noise(seeded(config.seed, NOISE, purpose, number, SITES.index(client)))

        return make_privacy(config, client, folder, drawn)

    monkeypatch.setattr(site_run, "make_privacy", from_the_seed)
    coordinator, _, nodes = sealed(method=method, privacy=PRIVACY)
    coordinator.run()
    values = {"data": {"labels": LABELS}, "training": {"clients_at_once": 1}, "sealing": {"on": True}}
    done = run(make_config(toy_values(method=method, privacy=PRIVACY, **values)), site_tables / "simulated")
    theirs = [e for e in RunFolder.open(done.path).events() if e["event"] == "sum"]
    assert events(coordinator, "left out") == []
    assert events(coordinator, "sum") == theirs and [e["round"] for e in theirs] == [1, 2, 3]
    for site, node in nodes.items():
        assert ledger(node) == [("update", n) for n in (1, 2, 3)]
        own = load_file(node.run.store.model / "adapter_model.safetensors")
        simulated = load_file(done.path / "clients" / site / "adapter_model.safetensors")
        assert set(own) == set(simulated)
        for name in own:
            np.testing.assert_array_equal(own[name].numpy(), simulated[name].numpy(), err_msg=f"{site} {name}")


def test_noise_of_a_site_has_no_seed_and_no_exact_fact_leaves(sealed):
    one, other = Heard("send"), Heard("send")
    first, _, nodes = sealed("one", method="own-prior", faults=one.faults, privacy=PRIVACY, rounds=1)
    seen = []
    answer = nodes["amber"].answer
    nodes["amber"].answer = lambda request: seen.append((request.kind, answer(request))) or seen[-1][1]
    first.run()
    second, _, _ = sealed("other", method="own-prior", faults=other.faults, privacy=PRIVACY, rounds=1)
    second.run()
    assert (first.server.state["now"] != second.server.state["now"]).mean() > 0.5
    assert [kind for kind, _ in seen] == ["hello", "open", "train", "send", "finish"]  # no sum of label holders
    for kind, reply in seen:
        if kind == "open":
            assert reply.facts["examples"] == 1 and set(reply.parts) == {"start"}
        if kind == "train":
            assert math.isnan(reply.facts["loss"]) and reply.facts["steps"] == reply.facts["seconds"] == 0
        if kind in ("send", "finish"):
            assert reply.facts == {}


def test_a_sum_is_counted_once_whatever_is_asked_again(sealed):
    heard = Heard("send", "train")
    coordinator, _, nodes = sealed(faults=heard.faults, privacy=PRIVACY, settings={"amber": {"may_go_back": True}})
    coordinator.run()
    last, train = (heard.requests[kind, 3, "amber"] for kind in ("send", "train"))
    part = heard.replies["send", 3, "amber"].parts["sum"]
    for amber in (nodes["amber"], sealed.node("amber", may_go_back=True)):  # a new process over the same files
        assert amber.answer(last).parts["sum"] == part
        assert amber.answer(train).error == "sum_sent"  # other noise would need a part that is sent again
        assert ledger(amber) == [("update", n) for n in (1, 2, 3)]


def test_a_part_that_was_stored_before_it_was_entered_is_entered_when_it_leaves(sealed, monkeypatch):
    heard = Heard("send")
    coordinator, _, nodes = sealed(faults=heard.faults, privacy=PRIVACY)
    enter = DpMechanism.on_release

    def ends(self, number, payload):
        if (number, self.context.client) == (3, "amber"):
            raise OSError("the process ends here")
        enter(self, number, payload)

    with monkeypatch.context() as patch:
        patch.setattr(DpMechanism, "on_release", ends)
        coordinator.run()
    assert ledger(nodes["amber"]) == [("update", 1), ("update", 2)]
    amber = sealed.node("amber", may_go_back=True)  # a finished run answers no more otherwise
    assert "sum" in amber.answer(heard.requests["send", 3, "amber"]).parts
    assert ledger(amber) == [("update", 1), ("update", 2), ("update", 3)]


def test_who_is_absent_spends_nothing_and_a_lost_sum_costs_those_who_sent(sealed, events):
    faults = {("train", 1, "basil"): "deaf", ("send", 2, "coral"): "deaf"}
    coordinator, _, nodes = sealed(faults=faults, privacy=PRIVACY, rounds=3)
    coordinator.run()
    assert left_out(events, coordinator)["basil", 1] == "no_answer" and sums(events, coordinator).keys() == {3}
    assert counted(events, coordinator) == [1, 3]
    # Nobody could open the sum of round 2, but only the server knows that, so those who sent count it.
    assert ledger(nodes["amber"]) == ledger(nodes["basil"]) == [("update", 2), ("update", 3)]
    assert ledger(nodes["coral"]) == [("update", 3)]
    z = noise_multiplier(8.0, 1e-5, 3, in_sums=True)
    entries = read_ledger(nodes["amber"].run.store.folder / "privacy" / "ledger.json").entries
    assert {(entry.multiplier, entry.clients) for entry in entries} == {(z, 2)}


def test_noised_training_of_a_round_without_a_sum_counts_too(sealed, events):
    """In round 2 too few sites are ready; their part of round 3 has what they trained in both rounds."""
    heard, privacy = Heard("train"), {"training": {"epsilon": 6.0, "rate": 0.3}}
    faults = {**heard.faults, ("train", 2, "basil"): "deaf"}
    coordinator, _, nodes = sealed(privacy=privacy, faults=faults, training={"steps": 2})
    coordinator.run()
    assert sums(events, coordinator).keys() == {1, 3} and counted(events, coordinator) == [1, 2, 3]
    with_both = [("training", 1), ("update", 1), ("training", 2), ("training", 3), ("update", 3)]
    assert ledger(nodes["amber"]) == with_both
    assert ledger(nodes["basil"]) == [("training", 1), ("update", 1), ("training", 3), ("update", 3)]
    planned = next(line.epsilon for line in promise(coordinator.config) if line.covers == EVERYTHING)
    assert nodes["amber"].run.spent_epsilon() == pytest.approx(planned)
    assert nodes["basil"].run.spent_epsilon() < planned


@pytest.mark.parametrize("update", [None, {"epsilon": 8.0, "clip": 0.2}])
def test_noised_training_goes_through(update, sealed, events):
    privacy = {"training": {"epsilon": 6.0, "rate": 0.3}} | ({"update": update} if update else {})
    coordinator, _, nodes = sealed(privacy=privacy, rounds=2, training={"steps": 2})
    coordinator.run()
    assert left_out(events, coordinator) == {} and sums(events, coordinator).keys() == {1, 2}
    assert ledger(nodes["amber"]) == [(what, n) for n in (1, 2) for what in ("training", "update")]
