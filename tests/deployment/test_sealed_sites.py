"""Sealed sums between sites: the same numbers as in the simulator, and what a site costs that drops out."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import load as load_arrays
from safetensors.torch import load_file
from typer.testing import CliRunner

from trifed import make_config, run
from trifed.cli.app import app
from trifed.common.errors import RunError
from trifed.config.run import to_toml
from trifed.deployment.release_log import read_releases
from trifed.federation.run_folder import RunFolder
from trifed.federation.sealed.rules import SumTerms
from trifed.privacy import read_ledger

pytest.importorskip("cryptography")
from sealed_sites import FOUR, INCOMPLETE, LABELS, SITES, Heard, counted, left_out, same, sums

# -- the numbers


@pytest.mark.parametrize(
    ("method", "changes"),
    [
        ("own-prior", {}),
        ("fedavg-lora", {"sealing": {"levels": 3}, "wire": {"bits": 32}}),
    ],
)
def test_it_reaches_what_the_simulator_reaches(method, changes, sealed, toy_values, site_tables, events):
    coordinator, _, nodes = sealed(method=method, **changes)
    coordinator.run()
    values = {"rounds": 3, "data": {"labels": LABELS}, "training": {"clients_at_once": 1}, **changes}
    values["sealing"] = {"on": True, **changes.get("sealing", {})}
    done = run(make_config(toy_values(method=method, **values)), site_tables / "simulated")
    assert events(coordinator, "left out") == []
    theirs = [e for e in RunFolder.open(done.path).events() if e["event"] == "sum"]
    assert events(coordinator, "sum") == theirs and {e["round"] for e in theirs} >= {1, 2, 3}
    assert coordinator.folder.read_json("summary.json")["sealing"] == done.summary["sealing"]
    for site, node in nodes.items():
        own = load_file(node.run.store.model / "adapter_model.safetensors")
        simulated = load_file(done.path / "clients" / site / "adapter_model.safetensors")
        assert set(own) == set(simulated)
        for name in own:
            np.testing.assert_array_equal(own[name].numpy(), simulated[name].numpy(), err_msg=f"{site} {name}")


def test_parts_are_masked_with_new_keys_and_their_sum_is_the_same(sealed):
    one, other = Heard("send"), Heard("send")
    first, _, _ = sealed("one", faults=one.faults)
    first.run()
    second, _, _ = sealed("other", faults=other.faults)
    second.run()
    assert same(first.server.state, second.server.state)
    for key, reply in one.replies.items():
        mine, theirs = (load_arrays(each.parts["sum"]) for each in (reply, other.replies[key]))
        assert all((mine[name] != theirs[name]).any() for name in mine)


def test_nothing_beside_the_sum_leaves_in_the_open(sealed, site_tables):
    coordinator, _, nodes = sealed(method="own-prior", settings={"amber": {"tell_scores": True}})
    seen = []
    answer = nodes["amber"].answer
    nodes["amber"].answer = lambda request: seen.append((request.kind, answer(request))) or seen[-1][1]
    coordinator.folder.write_text("config.toml", to_toml(coordinator.config))
    coordinator.run()
    kinds = [kind for kind, _ in seen]
    assert kinds == ["hello", "open", "ready", "send", *["train", "send"] * 3, "finish"]
    parts = {kind: set(reply.parts) for kind, reply in seen}
    assert parts == {
        "hello": set(),
        "open": {"start"},
        "ready": {"ready"},
        "train": {"ready"},
        "send": {"sum"},
        "finish": set(),
    }
    for kind, reply in seen:
        if kind == "open":
            assert reply.facts["examples"] == 1
        if kind == "train":
            assert math.isnan(reply.facts["loss"]) and reply.facts["steps"] == reply.facts["seconds"] == 0
        if kind in ("send", "finish"):
            assert reply.facts == {}
    releases = [release for release in read_releases(nodes["amber"].settings.folder) if "sum" in release.parts]
    assert [release.round for release in releases] == [0, 1, 2, 3]
    assert releases[1].parts["sum"].tensors and not releases[0].parts["sum"].tensors
    folder = site_tables / "shown"
    folder.mkdir()
    (folder / "node.toml").write_text(
        f'name = "amber"\ndata = {{source = "x"}}\nfolder = "{nodes["amber"].settings.folder}"\n'
    )
    told = CliRunner().invoke(app, ["flower", "log", str(folder)], env={"COLUMNS": "200"})
    assert told.exit_code == 0 and told.output.count("sum (masked)") == 4, told.output
    told = CliRunner().invoke(app, ["flower", "status", str(coordinator.folder.path)], env={"COLUMNS": "200"})
    assert told.exit_code == 0 and "3 sums" in told.output and told.output.count("not told") == 3, told.output


def test_a_site_without_a_group_trains_on_alone(sealed, events):
    coordinator, channel, _ = sealed(aggregation={"groups": "given", "members": [SITES]}, sites=FOUR)
    coordinator.run()
    assert left_out(events, coordinator) == {} and counted(events, coordinator, "dill") == [1, 2, 3]
    assert sums(events, coordinator) == dict.fromkeys((1, 2, 3), SITES)
    assert not [key for key in channel.asked if key[0] == "send" and key[2] == "dill"]


def test_groups_come_from_noised_summaries_alone(sealed, events):
    coordinator, _, nodes = sealed(method="own-prior", rounds=2, privacy={"summary": {"epsilon": 4.0}})
    coordinator.run()
    assert left_out(events, coordinator) == {} and sums(events, coordinator) == dict.fromkeys(range(3), SITES)
    opened = next(r for r in read_releases(nodes["amber"].settings.folder) if r.kind == "open")
    assert "summary" in opened.parts and opened.facts["examples"] == 1
    ledger = read_ledger(nodes["amber"].run.store.folder / "privacy" / "ledger.json")
    noised = [(entry.what, entry.round) for entry in ledger.entries if entry.multiplier]
    assert noised == [("summary", 0)] and len(ledger.entries) == 4  # the parts of three sums have no noise


# -- a site that drops out


def test_a_site_that_drops_out_after_it_was_ready_costs_the_round_and_nothing_else(sealed, events):
    """The sum is not opened, and no site sends again. All go back: the run equals one without that round's sum."""
    coordinator, channel, nodes = sealed(faults={("send", 2, "basil"): "late"}, rounds=4)
    coordinator.run()
    assert left_out(events, coordinator) == {
        ("amber", 2): INCOMPLETE,
        ("basil", 2): "no_answer",
        ("coral", 2): INCOMPLETE,
    }
    assert [e["round"] for e in events(coordinator, "no sum")] == [2]
    assert sums(events, coordinator).keys() == {1, 3, 4}
    asked = [(kind, number) for kind, number, site, _ in channel.asked if (site, kind) == ("amber", "send")]
    assert asked == [("send", number) for number in (1, 2, 3, 4)]
    told = {
        number: facts["counts"]
        for kind, number, site, facts in channel.asked
        if (site, kind) == ("amber", "train")
    }
    assert told == {1: 0, 2: 1, 3: 1, 4: 3}
    other, _, others = sealed("other", faults={("send", 2, site): "deaf" for site in SITES}, rounds=4)
    other.run()
    assert same(coordinator.server.state, other.server.state)
    for site, node in nodes.items():
        path = node.run.store.folder / "state.safetensors"
        mine, theirs = load_file(path), load_file(others[site].run.store.folder / path.name)
        assert mine.keys() == theirs.keys() and all((mine[name] == theirs[name]).all() for name in mine)


def test_who_is_not_ready_is_in_no_list_and_the_others_have_a_sum(sealed, events):
    coordinator, _, _ = sealed(faults={("train", 2, "basil"): "deaf"}, sites=FOUR)
    coordinator.run()
    assert left_out(events, coordinator) == {("basil", 2): "no_answer"}
    assert sums(events, coordinator) == {1: FOUR, 2: ["amber", "coral", "dill"], 3: FOUR}


def test_with_fewer_than_a_sum_needs_nobody_is_asked_to_send(sealed, events):
    coordinator, channel, _ = sealed(faults={("train", 2, "basil"): "deaf"})
    coordinator.run()
    assert left_out(events, coordinator) == {("basil", 2): "no_answer"}
    assert not [key for key in channel.asked if key[:2] == ("send", 2)]
    # They keep what they trained: the server counts on round 2, and a round later their sum is opened.
    told = {(site, n): facts["counts"] for kind, n, site, facts in channel.asked if kind == "train"}
    assert [told[site, 3] for site in SITES] == [2, 1, 2]
    assert counted(events, coordinator) == [1, 2, 3] and sums(events, coordinator).keys() == {1, 3}


def test_a_round_below_the_quorum_ends_before_a_part_is_sent_and_is_repeated(sealed, events):
    faults, wait = {("train", 2, "basil"): "deaf"}, {"quorum": 4}
    coordinator, channel, _ = sealed(sites=FOUR, faults=faults, deployment=wait)
    with pytest.raises(RunError):
        coordinator.run()
    assert not [key for key in channel.asked if key[:2] == ("send", 2)]
    again, _, _ = sealed(sites=FOUR, deployment=wait)
    again.run()
    assert sums(events, again) == {1: FOUR, 2: FOUR, 3: FOUR}


def test_a_process_that_ends_between_the_two_exchanges_has_nothing_to_send(sealed, events):
    coordinator, channel, _ = sealed()

    def restarts(reply, request):
        channel.clients[1] = sealed.node("basil", "one")  # its key is gone
        return reply

    channel.faults = {("train", 2, "basil"): restarts}
    coordinator.run()
    assert left_out(events, coordinator) == {
        ("amber", 2): INCOMPLETE,
        ("basil", 2): "not_ready",
        ("coral", 2): INCOMPLETE,
    }
    assert counted(events, coordinator, "basil") == [1, 3]


def test_a_site_that_leaves_between_the_two_exchanges(sealed, events):
    coordinator, channel, nodes = sealed(sites=FOUR, rounds=4)

    def leaves(reply, request):
        (nodes["basil"].settings.folder / "left.json").write_text("{}")
        return reply

    channel.faults = {("train", 2, "basil"): leaves}
    coordinator.run()
    assert left_out(events, coordinator) == {
        ("amber", 2): INCOMPLETE,
        ("basil", 2): "left",
        ("coral", 2): INCOMPLETE,
        ("dill", 2): INCOMPLETE,
    }
    assert [(e["client"], e["round"]) for e in events(coordinator, "withdrawn")] == [("basil", 3)]
    three = ["amber", "coral", "dill"]
    assert sums(events, coordinator) == {1: FOUR, 3: three, 4: three}


@pytest.mark.parametrize("kind", ["train", "send"])
def test_another_reference_or_other_terms_at_one_site_spoil_the_sum(kind, sealed, events):
    """The masks depend on both, so a server cannot make all parts but one predictable."""
    coordinator, channel, _ = sealed()
    ask = channel.ask

    def other(requests, *rest):
        for node, request in requests.items():
            if (request.kind, request.facts.get("round"), node) == (kind, 2, 1):
                parts = {"send": other_steps, "train": other_values}[kind](coordinator, request)
                requests[node] = replace(request, parts=parts)
        return ask(requests, *rest)

    channel.ask = other
    coordinator.run()
    assert left_out(events, coordinator) == {(site, 2): "sum_unreadable" for site in SITES}
    assert counted(events, coordinator) == [1, 3]


OTHER_SETTINGS = {
    "training": {"learning_rate": 1e-30},
    "adapter": {"alpha": 1e-3},
    "model": {"max_length": 7},
}


@pytest.mark.parametrize("table", OTHER_SETTINGS)
def test_other_settings_at_one_site_spoil_all_sums(table, sealed, events):
    """Otherwise a server could give all sites but one a learning rate of almost 0, and have that one's upload."""
    coordinator, channel, _ = sealed(rounds=2)
    ask = channel.ask

    def other(requests, *rest):
        for node, request in requests.items():
            if (request.kind, node) == ("hello", 1):
                values = json.loads(request.facts["config"])
                values[table] |= OTHER_SETTINGS[table]
                requests[node] = replace(request, facts={**request.facts, "config": json.dumps(values)})
        return ask(requests, *rest)

    channel.ask = other
    coordinator.run()
    assert events(coordinator, "refused") == []
    wanted = {(site, number): "sum_unreadable" for site in SITES for number in (1, 2)}
    assert left_out(events, coordinator) == wanted and sums(events, coordinator) == {}


def test_a_site_refuses_weights_that_leave_one_holder_of_a_label_alone_in_the_sum(sealed, caplog):
    coordinator, _, nodes = sealed(rounds=1)
    hello = coordinator.client_manager.hello
    values = json.loads(hello.facts["config"])
    values["training"]["class_weights"] = {"login": 1.0, "billing": 1e-30, "delivery": 1e-30}
    reply = nodes["amber"].answer(replace(hello, facts={**hello.facts, "config": json.dumps(values)}))
    assert reply.error == "settings_unusable" and caplog.text.count("training.class_weights") == 1


def test_settings_of_a_sites_own_change_no_mask(sealed, events):
    own = {"basil": {"training": {"batch_size": 4}}, "coral": {"device": "cpu", "worse_by": 5.0}}
    coordinator, _, _ = sealed(rounds=2, settings=own)
    coordinator.run()
    assert left_out(events, coordinator) == {} and sums(events, coordinator) == {1: SITES, 2: SITES}


def test_a_sealed_run_goes_on_with_settings_of_one_meaning_alone(sealed):
    """A later version of the server may send more settings, at their defaults; other numbers need another run."""
    coordinator, _, nodes = sealed(rounds=1)
    coordinator.run()
    hello, amber = coordinator.client_manager.hello, nodes["amber"]
    was, values = amber.run, json.loads(hello.facts["config"])

    def greets(**changes):
        return amber.answer(replace(hello, facts={**hello.facts, "config": json.dumps({**values, **changes})}))

    assert greets().error is None and amber.run is was
    training = dict(values["training"])
    assert greets(training={**training, "learning_rate": 1e-30}).error == "wrong_run" and amber.run is was
    del training["weight_decay"]  # as if it were a new setting
    assert greets(training=training).error is None and amber.run is not was
    assert amber.run.greeted != was.greeted and amber.run.config == was.config
    assert sealed.node("amber").answer(hello).error is None


def other_steps(coordinator, request):
    header, layout = (
        coordinator.server.context.header("terms", 2, 1),
        coordinator.server.context.compression.layout,
    )
    found = SumTerms.decode(request.parts["terms"], header, layout, 1)
    return {"terms": replace(found, steps=(2 * found.steps).astype(np.float16)).encode(header)}


def other_values(coordinator, request):
    download = request.parts["download"]
    return {"download": download[:-1] + bytes([download[-1] ^ 0x80])}
