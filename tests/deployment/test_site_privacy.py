"""Sites in a run with [privacy]: true noise, a ledger at each, and no exact fact of the data in any message."""

from __future__ import annotations

import logging
import math
import shutil

import numpy as np
import pytest
from safetensors.numpy import load

from trifed.common.errors import RunError
from trifed.federation.privacy_report import accounts_in
from trifed.privacy import read_ledger

SITES = ["amber", "basil", "coral"]
PRIVACY = {"summary": {"epsilon": 4.0}, "update": {"epsilon": 8.0}}
TWICE = {"summary": {"epsilon": 4.0, "releases": 2}, "update": {"epsilon": 8.0}}


@pytest.fixture
def private(federation):
    """`private(then={("train", 1, "amber"): function})`: a run with [privacy]: coordinator, channel, replies.

    `then`: what happens once a client has answered.
    """

    def make(method="own-prior", then=None, settings=None, **changes):
        nodes = {
            place: federation.node(site, **(settings or {}).get(site, {})) for place, site in enumerate(SITES)
        }
        told, happens = [], then or {}

        def listen(reply, request):
            told.append((request, reply))
            key = (request.kind, request.facts.get("round", 0), SITES[request.facts.get("place", 0)])
            return happens.get(key, lambda reply: reply)(reply)

        coordinator, channel = federation(method, nodes=nodes, **{"privacy": PRIVACY, **changes})
        kinds = [(kind, number) for kind in ("open", "train", "finish") for number in range(10)]
        channel.faults = {(*kind, site): listen for kind in kinds for site in SITES}
        return coordinator, channel, told

    return make


def ledger(channel, site):
    """Entries of a site's ledger: what, round."""
    [node] = [node for node in channel.clients.values() if node.settings.name == site]
    book = read_ledger(node.run.store.folder / "privacy" / "ledger.json")
    return [(entry.what, entry.round) for entry in book.entries]


@pytest.mark.parametrize("method", ["own-prior", "ce-lora", "fedavg-lora", "pfedme-lora", "local"])
def test_a_run_goes_through_and_each_site_has_entered_what_it_sent(method, private):
    coordinator, channel, _ = private(method)
    coordinator.run()
    summaries = [("summary", 0)] if method in ("own-prior", "ce-lora") else []
    updates = [("update", 1), ("update", 2)] if method != "local" else []
    for site in SITES if summaries + updates else []:
        assert ledger(channel, site) == summaries + updates
    promised = coordinator.folder.read_json("summary.json")["privacy"]["promised"]
    assert [line["releases"] for line in promised] == [len(summaries), len(summaries + updates), len(updates)]


def test_no_reply_has_an_exact_fact_of_the_data(private):
    coordinator, channel, told = private(settings={site: {"tell_scores": True} for site in SITES})
    coordinator.run()
    for request, reply in told:
        node = channel.clients[request.facts["place"]]
        if request.kind == "open":
            summary = load(reply.parts["summary"])
            assert reply.facts["examples"] == max(1, summary["class_counts"].sum())
            assert node.run.data_hash not in map(str, reply.facts.values())
        if request.kind == "train":
            assert math.isnan(reply.facts["loss"])
            assert {**reply.facts, "loss": 0} == {"loss": 0, "steps": 0, "kept_own": 0, "seconds": 0.0}
        if request.kind == "finish":
            assert reply.facts == {}
    # Which is worth asserting only where the numbers are others than the exact ones.
    assert any(
        reply.facts["examples"] != len(channel.clients[request.facts["place"]].run.client.dataset.train)
        for request, reply in told
        if request.kind == "open"
    )


def test_that_a_site_kept_its_own_is_not_told(private, events):
    coordinator, *_ = private(settings={"basil": {"worse_by": 0.0}}, rounds=3)
    coordinator.run()
    assert events(coordinator, "kept its own") == []


def test_noise_is_not_the_runs(private):
    # The same run twice, with the same seed: no number of an upload is the same.
    uploads = []
    for folder in ("one", "two"):
        coordinator, _, told = private("fedavg-lora", folder=folder)
        coordinator.run()
        uploads.append(next(load(reply.parts["upload"])["values"] for r, reply in told if r.kind == "train"))
    assert np.mean(uploads[0] == uploads[1]) < 0.01


def more_rows(table):
    table.write_text(table.read_text() + "pay the invoice now,billing,basil\n" * 12)


@pytest.mark.parametrize("planned", [1, 2])
def test_other_data_are_a_new_release(planned, private, events, site_tables):
    change = {("train", 1, "basil"): lambda reply: (more_rows(site_tables / "basil.csv"), reply)[1]}
    coordinator, channel, _ = private(then=change, rounds=3, privacy=TWICE if planned == 2 else PRIVACY)
    coordinator.run()
    if planned == 2:
        assert ledger(channel, "basil") == [("summary", 0), ("update", 1), ("summary", 0), ("update", 3)]
        return
    codes = [event["code"] for event in events(coordinator, "left out") if event["client"] == "basil"]
    assert "privacy_limit" in codes
    assert ledger(channel, "basil") == [("summary", 0), ("update", 1)]
    assert ledger(channel, "amber") == [("summary", 0), ("update", 1), ("update", 2), ("update", 3)]


def restarted(federation, channel):
    """All nodes as new processes."""
    return {number: federation.node(node.settings.name) for number, node in channel.clients.items()}


def test_a_round_that_is_asked_for_again_gets_the_same_message(federation, private):
    coordinator, channel, told = private("own-prior", deployment={"quorum": 3})
    channel.faults["train", 2, "basil"] = "late"
    with pytest.raises(RunError, match="quorum"):
        coordinator.run()
    first = {request.facts["place"]: reply for request, reply in told if request.facts.get("round") == 2}
    nodes = restarted(federation, channel)
    again, channel = federation("own-prior", nodes=nodes, privacy=PRIVACY, deployment={"quorum": 3})
    heard = []
    for site in SITES:
        channel.faults["train", 2, site] = lambda reply, request: heard.append((request, reply)) or reply
    again.run()
    for site in SITES:  # nobody's round counts twice, basil's neither, whose answer came late
        assert ledger(channel, site) == [("summary", 0), ("update", 1), ("update", 2)]
    for request, reply in heard:
        if request.facts["place"] in first:
            assert reply.parts["upload"] == first[request.facts["place"]].parts["upload"]
    assert len(first) == 2 and len(heard) == 3


def test_a_site_that_lost_its_disk_counts_what_it_does_not_know_any_more(private, events):
    def lose(reply):
        [node] = [node for node in channel.clients.values() if node.settings.name == "basil"]
        shutil.rmtree(node.run.store.folder)
        node.run = None
        return reply

    coordinator, channel, _ = private(then={("train", 1, "basil"): lose}, rounds=4, privacy=TWICE)
    coordinator.run()
    found = ledger(channel, "basil")
    # One summary that was told before, and the new one; every round before it is back counts.
    assert found.count(("summary", 0)) == 2
    assert sorted(number for what, number in found if what == "update") == [1, 2, 3, 4]


def test_what_is_wrong_with_private_data_stays_at_the_site(private, events, site_tables, caplog):
    secret = "text,label,site\nhello,kryptonite,basil\n"
    change = {("train", 1, "basil"): lambda reply: ((site_tables / "basil.csv").write_text(secret), reply)[1]}
    coordinator, *_ = private(then=change)
    with caplog.at_level(logging.WARNING):
        coordinator.run()
    assert events(coordinator, "left out")
    assert "kryptonite" not in str(coordinator.folder.events())
    assert "kryptonite" in caplog.text  # at the site


@pytest.mark.parametrize(("most", "takes_part"), [(19.0, False), (21.0, True)])
def test_a_site_takes_part_for_no_more_than_it_gives(most, takes_part, private, events):
    # own-prior over two rounds with ε 4 and 8: 20.1 for one training example.
    settings = {"basil": {"most_epsilon": most}}
    coordinator, *_ = private(settings=settings, deployment={"clients": 2})
    coordinator.run()
    assert ("basil" in str(events(coordinator, "started")[0]["clients"])) == takes_part
    assert [e["code"] for e in events(coordinator, "refused")] == ([] if takes_part else ["privacy_limit"])


def test_a_site_that_asks_for_privacy_takes_part_in_no_run_without(private, events):
    coordinator, *_ = private(settings={"basil": {"most_epsilon": 100.0}}, privacy={}, deployment={"clients": 2})
    coordinator.run()
    assert [e["code"] for e in events(coordinator, "refused")] == ["privacy_limit"]


def test_accounts_of_a_sites_folder(private, site_tables):
    coordinator, *_ = private()
    coordinator.run()
    [account] = accounts_in(site_tables / "nodes" / "amber")
    assert account.run == coordinator.name and account.book.client == "amber"
    assert [line.releases for line in account.spent] == [1, 3, 2]


TRAINING = {"summary": {"epsilon": 4.0}, "training": {"epsilon": 6.0, "rate": 0.3}}


def test_training_is_noised_at_sites_too(private):
    coordinator, channel, _ = private(privacy=TRAINING, training={"steps": 2})
    coordinator.run()
    for site in SITES:
        assert ledger(channel, site) == [
            ("summary", 0), ("training", 1), ("update", 1), ("training", 2), ("update", 2),
        ]  # fmt: skip


def test_no_site_chooses_by_exact_losses_where_training_is_noised(private, events):
    settings = {"basil": {"worse_by": 0.1}}
    coordinator, *_ = private(
        privacy=TRAINING, training={"steps": 2}, settings=settings, deployment={"clients": 2}
    )
    coordinator.run()
    assert [e["code"] for e in events(coordinator, "refused")] == ["privacy_limit"]
