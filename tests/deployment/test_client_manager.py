"""Who takes part in a run between sites, who is refused, and who comes back."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest

from trifed.common.errors import RunError
from trifed.deployment.client_manager import MAX_UNANSWERED
from trifed.deployment.greeting import settings_to_send
from trifed.deployment.protocol import Reply, Request

SITES = ["amber", "basil", "coral"]


def test_another_base_model_is_refused(federation, site_tables, tiny_encoder, tmp_path, events):
    import torch
    from transformers import BertModel

    other = tmp_path / "other-base"
    shutil.copytree(tiny_encoder, other)
    model = BertModel.from_pretrained(other)
    with torch.no_grad():
        model.embeddings.word_embeddings.weight[5] += 1
    model.save_pretrained(other)
    nodes = {place: federation.node(site) for place, site in enumerate(SITES)}
    nodes[7] = federation.node("amber", model=str(other), name="dill", folder=site_tables / "nodes" / "dill")
    coordinator, _ = federation(nodes=nodes)
    coordinator.run()
    [refused] = events(coordinator, "refused")
    assert refused["code"] == "other_base" and "dill" in refused["reason"]
    assert {e["client"] for e in events(coordinator, "trained")} == set(SITES)


def test_a_site_trains_with_its_own_settings(federation, events):
    nodes = {place: federation.node(site) for place, site in enumerate(SITES)}
    nodes[0] = federation.node(SITES[0], training={"steps": 1})
    coordinator, _ = federation(nodes=nodes)
    coordinator.run()
    steps = {e["client"]: e["steps"] for e in events(coordinator, "trained")}
    assert steps[SITES[0]] == 1 and min(steps[site] for site in SITES[1:]) > 1


@pytest.mark.parametrize("name", ["", "a/b", "x" * 101])
def test_who_has_no_usable_name_is_refused(federation, name, events):
    nodes = {place: federation.node(site) for place, site in enumerate(SITES)}
    coordinator, channel = federation(nodes=nodes)
    nodes[9] = federation.node("amber", name="dill", folder=nodes[0].settings.folder / "dill")
    channel.clients[9] = nodes[9]
    channel.faults[("hello", 0, "dill")] = lambda reply, request: replace(
        reply, facts={**reply.facts, "name": name}
    )
    coordinator.run()
    [refused] = events(coordinator, "refused")
    assert (refused["node"], refused["code"]) == ("9", "bad_name")
    assert not name or repr(name) not in refused["reason"]


@pytest.mark.parametrize(
    "request_",
    [
        Request("train", {"run": "../../elsewhere", "round": 1, "counts": 0}),
        Request("hello", {"run": "a-1", "config": "{"}),
        Request("hello", {"run": "a-1"}),
        Request("dance", {"run": "a-1"}),
        Request("train"),
    ],
)
def test_what_a_server_asks_wrongly_is_refused_by_a_client(federation, site_tables, request_):
    node = federation.node("amber")
    assert node.answer(request_) == Reply(error="bad_request")
    assert not (site_tables / "nodes").exists() or not list((site_tables / "nodes").rglob("*.json"))


def test_too_few_clients_and_a_name_twice(federation, events):
    nodes = {0: federation.node("amber"), 1: federation.node("basil"), 2: federation.node("basil")}
    coordinator, _ = federation(nodes=nodes)
    with pytest.raises(RunError, match=r"^2 of 3"):
        coordinator.run()
    assert [e["code"] for e in events(coordinator, "refused")] == ["name_taken"]


@pytest.mark.parametrize("bound", [True, False])
def test_a_name_stays_with_its_key_unless_the_run_says_otherwise(bound, federation, events):
    nodes = {place: federation.node(site) for place, site in enumerate(SITES)}
    coordinator, channel = federation(nodes=nodes, rounds=3, deployment={"bound": bound})

    def moves(reply, request):
        channel.clients[99] = federation.node("basil")  # another node that calls itself so
        del channel.clients[1]
        return reply

    channel.faults[("train", 1, "amber")] = moves
    coordinator.run()
    trained = [e["round"] for e in events(coordinator, "trained") if e["client"] == "basil"]
    joined = [e["client"] for e in events(coordinator, "joined")]
    if bound:
        assert trained == [] and joined == SITES
        assert events(coordinator, "refused")[0]["code"] == "other_key"
    else:
        assert trained == [2, 3] and joined == [*SITES, "basil"]
        assert [record.node for record in coordinator.checkpoint.records] == [0, 99, 2]


def test_a_name_stays_with_its_key_when_the_run_goes_on(federation, events):
    nodes = {place: federation.node(site) for place, site in enumerate(SITES)}
    coordinator, _ = federation(nodes=nodes, faults={("train", 2, site): "deaf" for site in SITES})
    with pytest.raises(RunError, match="0 of 3"):
        coordinator.run()
    moved = {0: nodes[0], 50: federation.node("basil"), 2: nodes[2]}
    again, _ = federation(nodes=moved)
    again.run()
    assert events(again, "refused")[0]["code"] == "other_key"
    assert {e["client"] for e in events(again, "trained") if e["round"] == 2} == {"amber", "coral"}


def test_who_never_answers_a_greeting_is_not_greeted_for_ever(federation, events):
    nodes = {place: federation.node(site) for place, site in enumerate(SITES)}
    nodes[9] = federation.node("amber", name="dill", folder=nodes[0].settings.folder / "dill")
    coordinator, channel = federation(nodes=nodes, faults={("hello", 0, "dill"): "deaf"}, rounds=4)
    coordinator.run()
    assert len([kind for kind, _, name, _ in channel.asked if (kind, name) == ("hello", "dill")]) == MAX_UNANSWERED
    [refused] = events(coordinator, "refused")
    assert refused["node"] == "9" and refused["code"] == "no_answer"


def test_bad_data_at_a_client_are_said_by_name(federation, site_tables):
    (site_tables / "basil.csv").write_text("text,label,site\nhello,weather,basil\n" * 1)
    coordinator, _ = federation(deployment={"quorum": 3})
    with pytest.raises(RunError, match=r"^basil ") as raised:
        coordinator.run()
    assert "weather" not in str(raised.value)


def test_who_cannot_be_opened_keeps_its_index_and_has_no_examples(federation, site_tables, events):
    (site_tables / "amber.csv").write_text("text,label,site\nhello,weather,amber\n")
    coordinator, channel = federation()
    coordinator.run()
    [left_out] = events(coordinator, "left out")
    assert (left_out["round"], left_out["client"], left_out["code"]) == (0, "amber", "data_unusable")
    records = [(record.name, record.examples > 0, record.left) for record in coordinator.checkpoint.records]
    assert records == [("amber", False, True), ("basil", True, False), ("coral", True, False)]
    assert [e["round"] for e in events(coordinator, "trained") if e["client"] == "basil"] == [1, 2]
    assert not [key for key in channel.asked if key[2] == "amber" and key[0] in ("train", "finish")]


@pytest.mark.parametrize("first", ["hello", "later"], ids=["one by one", "at once"])
def test_a_wrong_base_that_connects_first_is_refused(first, federation, site_tables, events):
    """The base of the agreeing clients counts, whoever connects first."""
    nodes = {place: federation.node(site) for place, site in enumerate(SITES)}
    coordinator, channel = federation(nodes=nodes, deployment={"join_seconds": 10})
    dill = federation.node("amber", name="dill", folder=site_tables / "nodes" / "dill")
    channel.clients = {9: dill}
    channel.faults[("hello", 0, "dill")] = lambda reply, request: replace(
        reply, facts={**reply.facts, "base": "0" * 64}
    )
    later = iter(sorted(nodes))

    def connect(seconds):
        for place in [*later] if first == "hello" else [next(later)]:
            channel.clients[place] = nodes[place]

    coordinator.client_manager.sleep = connect
    coordinator.run()
    [refused] = events(coordinator, "refused")
    assert (refused["node"], refused["code"]) == ("9", "other_base")
    assert {e["client"] for e in events(coordinator, "trained")} == set(SITES)


def test_a_wait_says_that_a_refused_node_is_not_asked_again(federation, events):
    """Otherwise the operator mends the reason, and waits for nothing."""
    coordinator, channel = federation(deployment={"clients": 3, "quorum": 3})
    channel.faults["hello", 0, "basil"] = lambda reply, request: Reply(error="no_site_keys")
    with pytest.raises(RunError, match=r"2 of 3 clients .* 1 node was refused"):
        coordinator.run()
    [refused] = events(coordinator, "refused")
    assert f"node {refused['node']}: " in refused["reason"]
    assert "refused node" in events(coordinator, "waiting")[0]["text"]


def test_without_agreement_on_a_base_no_run_begins(federation):
    nodes = {place: federation.node(site) for place, site in enumerate(SITES)}
    coordinator, channel = federation(nodes=nodes)
    for site in SITES:
        channel.faults[("hello", 0, site)] = lambda reply, request: replace(
            reply, facts={**reply.facts, "base": reply.facts["name"]}
        )
    with pytest.raises(RunError, match=r"3 of 3 clients .*, with 3 different base models"):
        coordinator.run()


def test_without_labels_a_run_between_sites_says_so(federation, events):
    coordinator, _ = federation(data={})
    values = coordinator.config.model_copy(
        update={"data": coordinator.config.data.model_copy(update={"labels": None})}
    )
    coordinator.config, coordinator.name = values, f"{values.run_id()}-1"
    coordinator.client_manager.hello = replace(
        coordinator.client_manager.hello,
        facts={**coordinator.client_manager.hello.facts, "config": settings_to_send(values)},
    )
    with pytest.raises(RunError, match="0 of 3"):
        coordinator.run()
    assert events(coordinator, "refused")[0]["code"] == "settings_unusable"
