"""A client's life: it comes late, its data change, it leaves for good, it loses its disk and has a backup."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load as load_arrays
from safetensors.torch import load_file

from trifed.common.errors import LockedError, RunError
from trifed.common.lock import held
from trifed.deployment.checkpoint import ServerCheckpoint, run_status
from trifed.deployment.membership import withdraw_from
from trifed.deployment.site_settings import LEFT
from trifed.federation.messages import Header, encode
from trifed.federation.server import Server

SITES = ["amber", "basil", "coral"]


@pytest.fixture
def sites(federation):
    """`sites("own-prior", then={("train", 1, "amber"): function})`: a coordinator, its channel, and its nodes.

    `then`: what happens once a client has answered; its answer stays as it is.
    """

    def make(method="own-prior", then=None, settings=None, **changes):
        nodes = {
            place: federation.node(site, **(settings or {}).get(site, {})) for place, site in enumerate(SITES)
        }
        coordinator, channel = federation(method, nodes=nodes, **{"rounds": 4, **changes})

        def after(happens):
            def fault(reply, request):
                happens(coordinator, channel, nodes)
                return reply

            return fault

        channel.faults = {key: after(happens) for key, happens in (then or {}).items()}
        return coordinator, channel, nodes

    return make


@pytest.fixture
def dill(federation, site_tables):
    """One more client; `dill(channel)` connects it."""

    def connect(channel, source="amber"):
        folder = site_tables / "nodes" / "dill"
        channel.clients[20] = federation.node(source, name="dill", folder=folder)

    return connect


def trained(events, coordinator, name):
    return [e["round"] for e in events(coordinator, "trained") if e["client"] == name]


# -- coming late


@pytest.mark.parametrize("method", ["own-prior", "ce-lora", "fed-sb", "fedavg-lora", "local"])
def test_who_comes_late_takes_part_from_the_next_round(method, sites, dill, events, site_tables):
    coordinator, *_ = sites(method, {("train", 1, "amber"): lambda c, channel, n: dill(channel)})
    coordinator.run()
    assert [(e["client"], e["round"]) for e in events(coordinator, "came late")] == [("dill", 2)]
    assert trained(events, coordinator, "dill") == [2, 3, 4]
    first = next(e for e in events(coordinator, "trained") if e["client"] == "dill")
    assert bool(first["down"]) == (method != "local")  # what it begins with comes from the others
    assert (site_tables / "nodes" / "dill" / coordinator.name / "model" / "adapter_model.safetensors").is_file()
    summary = coordinator.folder.read_json("summary.json")
    assert [client["name"] for client in summary["clients"]] == [*SITES, "dill"]
    if method == "ce-lora":
        assert coordinator.server.state["weights"].shape == (4, 4)


def test_nobody_comes_late_where_the_run_says_so(sites, dill, events):
    happens = {("train", 1, "amber"): lambda c, channel, n: dill(channel)}
    coordinator, *_ = sites(then=happens, deployment={"late": False})
    coordinator.run()
    assert [e["code"] for e in events(coordinator, "refused")] == ["too_late"]
    assert trained(events, coordinator, "dill") == []


def test_who_comes_late_with_bad_data_is_refused_and_the_rest_goes_on(sites, dill, events, site_tables):
    (site_tables / "weather.csv").write_text("text,label,site\nhello,weather,dill\n")
    coordinator, *_ = sites(then={("train", 1, "amber"): lambda c, channel, n: dill(channel, "weather")})
    coordinator.run()
    [refused] = events(coordinator, "refused")
    assert refused["code"] == "data_unusable" and "dill" in refused["reason"] and "weather" not in str(refused)
    assert trained(events, coordinator, "amber") == [1, 2, 3, 4]


def with_summary(change):
    """A fault: another summary than that which was made."""

    def fault(reply, request):
        payload = reply.parts["summary"]
        facts = json.loads(payload[8 : 8 + int.from_bytes(payload[:8], "little")])["__metadata__"]
        numbers = {name: int(facts[name]) for name in ("round", "client", "examples")}
        header = Header(facts["kind"], facts["run"], facts["base"], **numbers)
        arrays = {name: array.copy() for name, array in load_arrays(payload).items()}
        change(arrays)
        return replace(reply, parts={"summary": encode(header, arrays)})

    return fault


def other_labels(arrays):
    arrays["class_labels"] += 90
    arrays["labels"] += 90 * (arrays["labels"] >= 0)


def fewer_dimensions(arrays):
    for name in ("means", "variances"):
        arrays[name] = np.zeros((len(arrays[name]), 8), np.float32)


@pytest.mark.parametrize(
    ("change", "reason"),
    [(other_labels, "a label over the 3 of the head"), (fewer_dimensions, "summary.means: got shape")],
)
def test_a_summary_that_would_break_the_server_is_refused(change, reason, sites, dill, events):
    coordinator, channel, _ = sites(then={("train", 1, "amber"): lambda c, channel, n: dill(channel)})
    channel.faults[("open", 0, "dill")] = with_summary(change)
    coordinator.run()
    assert reason in str(events(coordinator, "refused"))
    assert trained(events, coordinator, "amber") == [1, 2, 3, 4] and len(coordinator.server.summaries) == 3


def test_a_run_goes_on_with_who_came_late(sites, dill, events, federation):
    then = {("train", 1, "amber"): lambda c, channel, n: dill(channel)}
    coordinator, channel, _ = sites(then=then, deployment={"quorum": 3})
    channel.faults |= {("train", 3, "amber"): "deaf", ("train", 3, "coral"): "deaf"}
    with pytest.raises(RunError, match="2 of 4"):
        coordinator.run()
    again, channel, _ = sites(deployment={"quorum": 3})
    dill(channel)
    again.run()
    assert trained(events, again, "dill") == [2, 3, 4] and len(again.records) == 4


def test_who_came_while_the_server_broke_is_let_in_again(sites, dill, events, monkeypatch):
    """It was opened, and no checkpoint knows it."""
    coordinator, _, _ = sites(then={("train", 1, "amber"): lambda c, channel, n: dill(channel)})
    save = coordinator.checkpoint.save

    def breaks(number, server, records):
        if len(records) == 4:
            raise KeyboardInterrupt
        save(number, server, records)

    monkeypatch.setattr(coordinator.checkpoint, "save", breaks)
    with pytest.raises(KeyboardInterrupt):
        coordinator.run()
    again, channel, _ = sites()
    dill(channel)
    again.run()
    assert trained(events, again, "dill") == [2, 3, 4]


# -- other data


def more_rows(coordinator, channel, nodes):
    with Path(nodes[1].settings.data["source"]).open("a", encoding="utf-8") as file:
        file.writelines(f"where is my parcel number {i},delivery,basil\n" for i in range(30))


@pytest.mark.parametrize("method", ["own-prior", "fedavg-lora"])
def test_a_client_whose_data_changed_tells_what_it_has_now(method, sites, events):
    coordinator, channel, _ = sites(method, {("train", 1, "coral"): more_rows})
    coordinator.run()
    assert [(e["client"], e["round"]) for e in events(coordinator, "left out")] == [("basil", 2)]
    [changed] = events(coordinator, "opened again")
    began = events(coordinator, "started")[0]["examples"][1]
    assert (changed["client"], changed["round"]) == ("basil", 3) and changed["examples"] > began + 10
    assert trained(events, coordinator, "basil") == [1, 3, 4]
    # It goes on from what it had trained, not anew.
    counts = [f["counts"] for kind, number, name, f in channel.asked if (kind, name) == ("train", "basil")]
    assert counts == [0, 1, 1, 3]
    if method == "own-prior":
        assert coordinator.server.state["examples"][1].sum() == changed["examples"]


def test_a_client_whose_new_summary_got_lost_tells_it_once_more(sites, events):
    """It was opened with its new data, and the server does not know: its uploads would be refused for ever."""
    coordinator, channel, _ = sites(then={("train", 1, "coral"): more_rows}, rounds=5)
    lost = []

    def loses(reply, request):
        if request.facts.get("again") and not lost:
            lost.append(reply)
            return None
        return reply

    channel.faults[("open", 0, "basil")] = loses
    coordinator.run()
    assert lost and [e["round"] for e in events(coordinator, "opened again")] == [4]
    assert trained(events, coordinator, "basil") == [1, 4, 5]


def test_data_that_cannot_be_read_any_more_are_said_so_until_they_can(sites, events):
    def spoils(coordinator, channel, nodes):
        path = Path(nodes[1].settings.data["source"])
        (path.parent / "good").write_text(path.read_text())
        path.write_text("nothing\n")

    def mends(coordinator, channel, nodes):
        path = Path(nodes[1].settings.data["source"])
        path.write_text((path.parent / "good").read_text())

    coordinator, *_ = sites(then={("train", 1, "coral"): spoils, ("train", 3, "coral"): mends}, rounds=5)
    coordinator.run()
    assert [(e["client"], e["round"]) for e in events(coordinator, "left out")] == [("basil", 2), ("basil", 3)]
    assert trained(events, coordinator, "basil") == [1, 4, 5]


def test_a_run_that_broke_while_a_client_left_does_not_keep_what_was_its_own(sites, monkeypatch):
    """Who takes part and the method's state are kept in one file, so one cannot be ahead of the other."""
    coordinator, *_ = sites("ce-lora", {("train", 1, "coral"): leaves})
    save = coordinator.checkpoint.save

    def breaks(number, server, records):
        save(number, server, records)
        if records[1].left:
            raise KeyboardInterrupt

    monkeypatch.setattr(coordinator.checkpoint, "save", breaks)
    with pytest.raises(KeyboardInterrupt):
        coordinator.run()
    again, channel, _ = sites("ce-lora")
    again.run()
    np.testing.assert_array_equal(again.server.state["cores"][1], again.server.start)
    assert not [key for key in channel.asked if key[2] == "basil" and key[0] == "train"]


def test_what_came_from_its_labels_moves_with_them(sites):
    """The prior of own-prior: log of the label shares at first, and what was learned since stays on top of it."""
    coordinator, _, nodes = sites(then={("train", 1, "coral"): more_rows}, rounds=3)
    then = {}

    def look(reply, request):
        then["bias"] = nodes[1].run.store.state_after(1, {}).tensors["head.bias"]
        then["own"] = nodes[1].run.client.local_init["head.bias"]
        return reply

    coordinator.client_manager.channel.faults[("train", 1, "basil")] = look
    coordinator.run()
    now = nodes[1].run.client.local_init["head.bias"]
    assert not np.allclose(now, then["own"])
    found = nodes[1].run.store.state_after(1, {"head.bias": now})  # what round 3 went on from
    np.testing.assert_allclose(found.tensors["head.bias"], then["bias"] + now - then["own"], atol=1e-6)


# -- leaving


def leaves(coordinator, channel, nodes):
    (nodes[1].settings.folder / LEFT).write_text("{}")


@pytest.mark.parametrize("method", ["own-prior", "ce-lora", "fedavg-lora"])
def test_who_leaves_for_good_is_deleted_at_the_server(method, sites, events):
    coordinator, channel, _ = sites(method, {("train", 1, "coral"): leaves})
    coordinator.run()
    assert [(e["client"], e["round"]) for e in events(coordinator, "withdrawn")] == [("basil", 3)]
    assert trained(events, coordinator, "basil") == [1]
    assert not [key for key in channel.asked if key[2] == "basil" and key[1] > 2]
    state = coordinator.server.state
    assert (np.delete(state["weights"], 1, 0)[:, 1] == 0).all()
    assert 1 not in coordinator.server.references.confirmed
    if method == "ce-lora":
        np.testing.assert_array_equal(state["cores"][1], coordinator.server.start)
    if method != "fedavg-lora":
        assert coordinator.server.summaries[1].class_counts.sum() == 0
    kept = load_file(coordinator.folder.path / "checkpoint.safetensors")
    assert not [name for name in kept if name.startswith("summary/1/") and kept[name].count_nonzero()]
    assert "basil" not in {e["client"] for e in events(coordinator, "delivered")}


def test_who_leaves_when_the_run_ends_is_deleted_too(sites, events):
    coordinator, *_ = sites("ce-lora", {("train", 2, "coral"): leaves}, rounds=2)
    coordinator.run()
    assert [e["client"] for e in events(coordinator, "withdrawn")] == ["basil"]
    assert coordinator.checkpoint.records[1].left
    assert coordinator.folder.events()[-1]["event"] == "finished"


def test_who_has_left_cannot_come_back(sites, events, federation):
    def returns(coordinator, channel, nodes):
        (nodes[1].settings.folder / LEFT).unlink()
        channel.clients[30] = federation.node("basil")
        del channel.clients[1]

    then = {("train", 1, "coral"): leaves, ("train", 3, "coral"): returns}
    coordinator, *_ = sites(then=then)
    coordinator.run()
    assert [e["code"] for e in events(coordinator, "refused")] == ["left"]


def test_the_server_withdraws_a_client_of_a_run_under_way(sites, events):
    told = []

    def withdraws(coordinator, channel, nodes):
        told.append(withdraw_from(coordinator.folder, coordinator.config, "basil"))

    coordinator, *_ = sites(then={("train", 1, "coral"): withdraws})
    coordinator.run()
    assert told == [False]  # by whoever leads the run, before the next round
    assert [(e["client"], e["round"]) for e in events(coordinator, "withdrawn")] == [("basil", 2)]
    assert coordinator.checkpoint.leaving() == []


def test_the_server_withdraws_a_client_of_a_run_that_is_over(sites, events):
    coordinator, *_ = sites("ce-lora", rounds=2)
    coordinator.run()
    before = load_file(coordinator.folder.path / "checkpoint.safetensors")
    assert withdraw_from(coordinator.folder, coordinator.config, "basil")
    after = load_file(coordinator.folder.path / "checkpoint.safetensors")
    assert before["server/last_round"].tolist() == [2, 2, 2] and after["server/last_round"].tolist() == [2, -1, 2]
    assert [e["event"] for e in coordinator.folder.events()][-2:] == ["finished", "withdrawn"]
    assert run_status(coordinator.folder, 2).finished
    assert [record.left for record in ServerCheckpoint(coordinator.folder).records] == [False, True, False]
    with pytest.raises(RunError, match=r"'basil'.* amber, coral"):
        withdraw_from(coordinator.folder, coordinator.config, "basil")


# -- a backup


@pytest.mark.parametrize("bits", [32, 4])
def test_a_client_goes_on_from_a_backup(bits, sites, events, site_tables):
    def keep(coordinator, channel, nodes):
        shutil.copytree(nodes[1].run.store.folder, site_tables / "backup")

    def restore(coordinator, channel, nodes):
        shutil.rmtree(nodes[1].run.store.folder)
        shutil.copytree(site_tables / "backup", nodes[1].run.store.folder)

    then = {("train", 1, "coral"): keep, ("train", 3, "coral"): restore}
    coordinator, channel, nodes = sites("ce-lora", then, rounds=6, wire={"bits": bits})
    coordinator.run()
    assert [(e["client"], e["round"]) for e in events(coordinator, "left out")] == [("basil", 4)]
    counts = [f["counts"] for kind, number, name, f in channel.asked if (kind, name) == ("train", "basil")]
    assert counts == [0, 1, 2, 3, 1, 5]  # round 5 goes on from the backup of round 1
    assert nodes[1].run.client.state.steps > 0


def test_frames_are_sent_again_to_a_client_that_lost_them(sites, events, federation):
    def loses(coordinator, channel, nodes):
        shutil.rmtree(nodes[1].settings.folder)
        channel.clients[1] = federation.node("basil")

    coordinator, *_ = sites("fed-sb", {("train", 1, "coral"): loses})
    coordinator.run()
    assert trained(events, coordinator, "basil") == [1, 3, 4]


# -- what a client insists on


def test_a_client_may_want_a_number_of_others(sites, events):
    settings = {"basil": {"at_least": 4}}
    coordinator, *_ = sites(settings=settings, rounds=2)
    coordinator.run()
    assert {e["code"] for e in events(coordinator, "left out") if e["round"] <= 2} == {"too_few_clients"}
    assert trained(events, coordinator, "basil") == []


def test_with_no_share_for_others_a_client_ends_as_it_would_alone(sites, site_tables, monkeypatch):
    coordinator, _, nodes = sites(settings={"basil": {"others_at_most": 0.0}}, rounds=3, wire={"bits": 32})
    coordinator.run()
    alone, _, others = sites(
        settings={site: {"folder": site_tables / "alone" / site} for site in SITES}, rounds=3,
        wire={"bits": 32}, folder="alone-server",
    )  # fmt: skip
    monkeypatch.setattr(Server, "download", lambda self, number, client: None)
    alone.run()
    models = [n.run.store.folder / "model" / "adapter_model.safetensors" for n in (nodes[1], others[1])]
    mine, theirs = map(load_file, models)
    for name in theirs:
        np.testing.assert_allclose(mine[name], theirs[name], atol=1e-6, err_msg=name)


def test_two_servers_do_not_lead_one_run(sites):
    coordinator, *_ = sites()
    with held(coordinator.folder.path), pytest.raises(LockedError):
        sites()[0].run()
