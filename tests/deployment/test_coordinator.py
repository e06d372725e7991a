"""Server and clients with nothing between them but requests and replies, and everything that goes wrong."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
from safetensors.torch import load_file
from typer.testing import CliRunner

from trifed import load_client, make_config, run
from trifed.cli.app import app
from trifed.common.errors import RunError
from trifed.config.run import to_toml
from trifed.deployment.checkpoint import run_status
from trifed.deployment.greeting import settings_to_send
from trifed.deployment.protocol import Reply
from trifed.federation.messages import ENVELOPE, Header, encode_values
from trifed.federation.run_folder import RunFolder

SITES = ["amber", "basil", "coral"]
LABELS = ["billing", "delivery", "login"]


def traffic(folder):
    """Every message with its bytes, but for the envelope's: a run between sites has a longer name."""
    for event in folder.events():
        for way in ("up", "down"):
            sizes = {name: size for name, size in event.get(way, {}).items() if name != ENVELOPE}
            if sizes:
                yield event["event"], event.get("round", 0), event["client"], way, sorted(sizes.items())


def state_of(coordinator):
    return {name: array.copy() for name, array in coordinator.server.state.items()}


def assert_same(one, other):
    assert set(one) == set(other)
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


@pytest.mark.parametrize(
    ("method", "changes"),
    [
        ("own-prior", {}), ("ce-lora", {}), ("ce-lora", {"wire": {"bits": 4}}), ("fed-sb", {}), ("local", {}),
        ("fedavg-lora", {"participation": 0.5}), ("ce-lora", {"personalization": {"interpolate": "auto"}}),
        ("fedavg-lora", {"aggregation": {"groups": "given", "members": [["amber", "coral"]]}}),
        ("co-lora-like", {}), ("rolora", {"participation": 0.7, "rounds": 4, "wire": {"bits": 1}}),
        ("fedrod-lora", {}), ("fedex-lora", {"wire": {"bits": 8}}),
        ("fedalt", {"wire": {"bits": 1}}), ("feddpa", {}), ("fedper-lora", {"wire": {"bits": 4}}),
    ],
)  # fmt: skip
def test_it_reaches_what_the_simulator_reaches(method, changes, federation, toy_values, site_tables):
    coordinator, _ = federation(method, **changes)
    coordinator.run()
    alone = {"clients_at_once": 1}  # more at once differ by rounding errors
    values = toy_values(method=method, **{"rounds": 2, **changes, "data": {"labels": LABELS}, "training": alone})
    done = run(make_config(values), site_tables / "simulated")
    mine, theirs = (sorted(traffic(folder)) for folder in (coordinator.folder, RunFolder.open(done.path)))
    assert mine == theirs
    for site in SITES:
        own = load_file(site_tables / "nodes" / site / coordinator.name / "model" / "adapter_model.safetensors")
        simulated = load_file(done.path / "clients" / site / "adapter_model.safetensors")
        assert set(own) == set(simulated)
        for name in own:
            np.testing.assert_array_equal(own[name].numpy(), simulated[name].numpy(), err_msg=f"{site} {name}")


def test_what_a_client_has_in_the_end_predicts(federation, site_tables):
    coordinator, _ = federation()
    coordinator.run()
    client = load_client(site_tables / "nodes" / "amber" / coordinator.name / "model")
    assert client.labels == LABELS
    assert set(client.predict(["invoice refund charge"])) <= set(LABELS)


def test_the_server_learns_neither_paths_nor_scores(federation, site_tables, events):
    coordinator, _ = federation()
    sent = settings_to_send(coordinator.config)
    assert "source" not in sent and "toy.csv" not in sent
    coordinator.run()
    assert events(coordinator, "scores") == []
    everything = (coordinator.folder.path / "events.jsonl").read_text()
    assert str(site_tables) not in everything


def test_scores_are_told_where_the_client_allows_it(federation, events):
    nodes = {place: federation.node(site, tell_scores=site == "basil") for place, site in enumerate(SITES)}
    coordinator, _ = federation(nodes=nodes)
    coordinator.run()
    assert {e["client"] for e in events(coordinator, "scores")} == {"basil"}


# -- what goes wrong in a round


def broken(change):
    """A fault: the upload is another one."""
    return lambda reply, request: replace(reply, parts={"upload": change(reply.parts["upload"], request)})


def values_instead(values):
    def change(upload, request):
        header = Header("upload", request.facts["run"], "0" * 16, int(request.facts["round"]), 1, 10)
        return encode_values(header, np.asarray(values, np.float32))

    return change


FAULTS = {
    "no answer": "deaf",
    "an answer that comes too late": "late",
    "an error": lambda reply, request: Reply(error="storage"),
    "NaN": broken(values_instead([np.nan] * 64)),
    "a wrong shape": broken(values_instead([0.0] * 3)),
    "another run's message": broken(
        lambda upload, request: upload.replace(request.facts["run"].encode(), b"0" * 21)
    ),
    "no message at all": broken(lambda upload, request: b"hello"),
    "nothing": lambda reply, request: Reply(facts={"loss": 0.0, "steps": 1}),
    "more examples than it had": broken(
        lambda upload, request: re.sub(rb'"examples":"\d\d"', b'"examples":"99"', upload)
    ),
    "a loss that is no number": lambda reply, request: replace(reply, facts={"loss": "low", "steps": 1}),
}


@pytest.fixture(scope="module")
def states_without_basil():
    """By method, the server's state after a run in whose round 1 basil was absent; filled by the first test."""
    return {}


@pytest.mark.parametrize("method", ["own-prior", "ce-lora"])
@pytest.mark.parametrize("fault", FAULTS)
def test_who_answers_wrongly_is_left_out_and_the_rest_goes_on(
    method, fault, federation, events, states_without_basil
):
    """The state is, bit for bit, that of a run from which it was absent in that round."""
    bad, _ = federation(method, {("train", 1, "basil"): FAULTS[fault]}, folder="bad")
    bad.run()
    if method not in states_without_basil:
        nodes = {place: federation.node(site, folder=bad.folder.path / site) for place, site in enumerate(SITES)}
        absent, _ = federation(method, {("train", 1, "basil"): "deaf"}, folder="absent", nodes=nodes)
        absent.run()
        states_without_basil[method] = state_of(absent)
    [left] = events(bad, "left out")
    assert (left["client"], left["round"]) == ("basil", 1) and left["reason"]
    codes = {"an error": "storage", "no answer": "no_answer", "an answer that comes too late": "no_answer"}
    assert left["code"] == codes.get(fault, "bad_reply")
    assert_same(state_of(bad), states_without_basil[method])
    assert {e["round"] for e in events(bad, "trained") if e["client"] == "basil"} == {2}


def test_a_client_whose_answer_got_lost_goes_back_to_what_counts(federation, events):
    """It has trained in round 1, and the server does not know: it trains again from before, not from after."""
    coordinator, channel = federation(faults={("train", 2, "coral"): "late"}, rounds=3)
    coordinator.run()
    told = [facts for kind, number, name, facts in channel.asked if (kind, number, name) == ("train", 3, "coral")]
    assert told[0]["counts"] == 1
    assert [e["round"] for e in events(coordinator, "trained") if e["client"] == "coral"] == [1, 3]


def test_a_client_that_lost_all_it_had_and_its_process_is_greeted_again(federation, events):
    nodes = {place: federation.node(site) for place, site in enumerate(SITES)}
    coordinator, channel = federation(nodes=nodes, rounds=4)

    def loses_all(reply, request):
        shutil.rmtree(nodes[1].settings.folder)
        channel.clients[1] = federation.node("basil")  # the node is known by its key, so its number stays
        return reply

    channel.faults[("train", 1, "basil")] = loses_all
    coordinator.run()
    assert [(e["round"], e["client"]) for e in events(coordinator, "left out")] == [(2, "basil")]
    assert [e["round"] for e in events(coordinator, "trained") if e["client"] == "basil"] == [1, 3, 4]


def test_a_client_that_lost_its_disk_starts_anew(federation, site_tables, events):
    nodes = {place: federation.node(site) for place, site in enumerate(SITES)}
    coordinator, channel = federation(nodes=nodes, rounds=4)

    def forgets(reply, request):
        for name in ("state.safetensors", "state-before.safetensors"):
            (nodes[1].run.store.folder / name).unlink(missing_ok=True)
        return reply

    channel.faults[("train", 1, "basil")] = forgets
    coordinator.run()
    assert [(e["round"], e["client"]) for e in events(coordinator, "left out")] == [(2, "basil")]
    assert events(coordinator, "left out")[0]["code"] == "lost"
    assert [e["round"] for e in events(coordinator, "trained") if e["client"] == "basil"] == [1, 3, 4]


def test_below_the_quorum_it_stops_and_can_be_resumed(federation, events):
    whole, _ = federation(folder="whole")
    whole.run()
    stopped, _ = federation(
        faults={("train", 2, "amber"): "deaf", ("train", 2, "coral"): "deaf"},
        nodes={place: federation.node(site, folder=whole.folder.path / site) for place, site in enumerate(SITES)},
    )
    with pytest.raises(RunError, match=r"1 of 3.*round is 1"):
        stopped.run()
    # New processes everywhere; basil has trained round 2 already and goes back.
    again, channel = federation(
        nodes={place: federation.node(site, folder=whole.folder.path / site) for place, site in enumerate(SITES)}
    )
    assert again.name == stopped.name
    again.run()
    assert not [facts for kind, number, *_, facts in channel.asked if kind in ("open", "train") and number == 1]
    assert_same(state_of(whole), state_of(again))
    assert [e["event"] for e in again.folder.events()].count("finished") == 1


def test_how_the_sites_stand(federation, site_tables, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    coordinator, _ = federation(
        faults={("train", 2, "basil"): "deaf", ("train", 3, "basil"): "deaf", ("train", 1, "coral"): "deaf"},
        rounds=3,
    )
    coordinator.folder.write_text("config.toml", to_toml(coordinator.config))
    coordinator.run()
    found = run_status(coordinator.folder, 3)
    assert (found.round, found.finished) == (3, True)
    assert [(c.name, c.last, c.left_out) for c in found.clients] == [
        ("amber", 3, 0),
        ("basil", 1, 2),
        ("coral", 3, 1),
    ]
    assert [bool(c.reason) for c in found.clients] == [False, True, False]
    told = CliRunner().invoke(app, ["flower", "status", str(coordinator.folder.path)])
    assert told.exit_code == 0 and "no answer within" in told.output, told.output
    simulated = RunFolder.create(site_tables / "other")
    simulated.write_text("config.toml", to_toml(coordinator.config))
    with pytest.raises(RunError, match=str(site_tables / "other")):
        run_status(simulated, 3)


def test_between_sites_names_of_groups_that_have_not_joined_are_reported(federation, events):
    chosen = {"groups": "given", "members": [["amber", "corral"], ["basil", "dill"]]}
    coordinator, _ = federation("fedavg-lora", rounds=2, aggregation=chosen)
    coordinator.run()
    [trouble] = events(coordinator, "trouble")
    assert "corral, dill" in trouble["text"] and "amber" not in trouble["text"]
