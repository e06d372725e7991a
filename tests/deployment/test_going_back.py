"""A run between sites that goes back: its numbers, the sites' consent, and what the ledger counts."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import load, load_file

from trifed.common.errors import RunError
from trifed.deployment.protocol import Request
from trifed.deployment.release_log import read_releases
from trifed.federation.kept_checkpoints import kept_rounds
from trifed.privacy import read_ledger

SITES = ["amber", "basil", "coral"]
ANY = {"quorum": 1}
PRIVACY = {"summary": {"epsilon": 4.0}, "update": {"epsilon": 8.0}}
BACK, LOST, LIMIT = "no_going_back", "lost", "privacy_limit"


@pytest.fixture
def sites(federation, site_tables):
    """`sites("own-prior", "one", {"basil": {"may_go_back": False}})`: a coordinator, its channel, nodes by name.

    A second call for the same place makes new processes over the same folders. Sites may go back by default.
    """

    def make(method, place="one", settings=None, faults=None, **changes):
        nodes = {}
        for site in SITES:
            more = {"folder": site_tables / place / site, "may_go_back": True, **(settings or {}).get(site, {})}
            nodes[site] = federation.node(site, **more)
        coordinator, channel = federation(
            method, faults, f"{place}-server", dict(enumerate(nodes.values())), **{"rounds": 6, **changes}
        )
        return coordinator, channel, nodes

    return make


def poison(reply, request):
    """A whole message with wrong values: the signs of numbers of 32 bits, or some of the codes, are turned."""
    upload = reply.parts["upload"]
    start = int.from_bytes(upload[:8], "little") + 8
    turned = bytes(byte ^ 0x80 if place % 4 == 3 else byte for place, byte in enumerate(upload[start:]))
    return replace(reply, parts={"upload": upload[:start] + turned})


def stopped(sites, method, last=4, good=2, **changes):
    """Run to the end of round `last`, poisoned after round `good`; all sites have trained the next round too."""
    faults = {("train", number, site): poison for number in range(good + 1, last + 1) for site in SITES[:2]}
    faults |= {("train", last + 1, site): "late" for site in SITES}
    changes = {"deployment": ANY, **changes}
    coordinator, channel, nodes = sites(method, faults={**faults, **changes.pop("faults", {})}, **changes)
    with pytest.raises(RunError):
        coordinator.run()
    assert kept_rounds(coordinator.folder.path) == [last - 2, last - 1, last]
    return coordinator, channel, nodes


def kept_arrays(coordinator, nodes):
    """All arrays at the server, and of the sites' states and models."""
    found = {f"server/{name}": array for name, array in coordinator.server.state_dict().items()}
    for site, node in nodes.items():
        folder = node.run.store.folder
        for path in sorted(folder.rglob("*.safetensors")):
            found |= {f"{site}/{path.relative_to(folder)}/{n}": array for n, array in load_file(path).items()}
    return found


def trained(events, coordinator, name):
    return [event["round"] for event in events(coordinator, "trained") if event["client"] == name]


def left_out(events, coordinator, name):
    return [(e["round"], e["code"]) for e in events(coordinator, "left out") if e["client"] == name]


def counts_of(channel, name):
    """By round, the round that the server counted on when it asked a site to train."""
    return {number: f["counts"] for kind, number, site, f in channel.asked if (kind, site) == ("train", name)}


# -- the numbers


@pytest.mark.parametrize(
    ("method", "number", "changes"),
    [
        ("own-prior", 2, {}),
        ("own-prior", 3, {"participation": 0.6}),
        ("fedavg-lora", 2, {}),
        ("fedavg-lora", 4, {}),
        ("ce-lora", 3, {"wire": {"bits": 4}}),
        ("rolora", 3, {"participation": 0.6}),
    ],
)
def test_a_run_that_went_back_equals_one_that_never_went_further(method, number, changes, sites, events):
    whole, _, others = sites(method, "whole", deployment=ANY, **changes)
    whole.run()
    before, _, _ = stopped(sites, method, min(number + 2, 5), number, **changes)
    assert any(not np.array_equal(whole.server.state[name], array) for name, array in before.server.state.items())
    again, channel, nodes = sites(method, deployment=ANY, **changes)
    again.run(from_round=number)
    assert [event["round"] for event in events(again, "resumed")] == [number]
    assert min(key[1] for key in channel.asked if key[0] == "train") == number + 1
    assert events(again, "left out") == []
    mine, theirs = kept_arrays(again, nodes), kept_arrays(whole, others)
    assert mine.keys() == theirs.keys()
    for name, array in theirs.items():
        np.testing.assert_array_equal(mine[name], array, err_msg=name)


def test_to_the_opening(sites, events):
    whole, _, others = sites("own-prior", "whole")
    whole.run()
    stopped(sites, "own-prior", last=2)
    again, _, nodes = sites("own-prior")
    again.run(from_round=0)
    mine, theirs = kept_arrays(again, nodes), kept_arrays(whole, others)
    assert mine.keys() == theirs.keys() and all(np.array_equal(mine[name], theirs[name]) for name in theirs)


# -- what the server refuses


def test_a_round_that_is_not_kept_or_a_run_that_has_ended(sites):
    stopped(sites, "fedavg-lora")
    again, channel, _ = sites("fedavg-lora")
    for number in (0, 1, 5, 99):
        with pytest.raises(RunError, match="2, 3, 4"):
            again.run(from_round=number)
    assert channel.asked == [] and again.folder.rounds_done() == 4
    again.run()
    log = again.folder.events()
    with pytest.raises(RunError, match="4, 5, 6"):
        sites("fedavg-lora")[0].run(from_round=5)
    (again.folder.path / "summary.json").unlink()  # killed before it was written
    with pytest.raises(RunError, match="4, 5, 6"):
        sites("fedavg-lora")[0].run(from_round=5)
    assert again.folder.rounds_done() == 6 and again.folder.events() == log


# -- consent


def test_a_site_that_does_not_go_back_is_left_out_until_the_run_has_passed_it(sites, events):
    settings = {"basil": {"may_go_back": False}}
    stopped(sites, "own-prior", settings=settings, rounds=8)
    again, channel, nodes = sites("own-prior", settings=settings, rounds=8)
    files = {}

    def note(reply, request):
        folder = nodes["basil"].run.store.folder
        files[request.facts["round"]] = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
        return reply

    channel.faults = {("train", number, "basil"): note for number in (3, 4, 5)}
    again.run(from_round=2)
    # It has done round 5. In round 6 the server learns which state it has; then both drop their references.
    assert left_out(events, again, "basil") == [(3, BACK), (4, BACK), (5, BACK), (6, LOST)]
    assert files[3] == files[4] == files[5]
    assert counts_of(channel, "basil") == {3: 2, 4: 2, 5: 2, 6: 2, 7: 5, 8: 7}
    assert trained(events, again, "basil") == [1, 2, 7, 8]
    assert trained(events, again, "amber") == list(range(1, 9))
    assert "back_to" not in {fact for r in read_releases(nodes["basil"].settings.folder) for fact in r.facts}


def test_below_the_quorum_a_run_that_went_back_stops_and_goes_on_once_a_site_agrees(sites, events):
    stopped(sites, "fedavg-lora", settings={"basil": {"may_go_back": False}})
    refuses, _, _ = sites("fedavg-lora", settings={"basil": {"may_go_back": False}}, deployment={"quorum": 3})
    with pytest.raises(RunError):
        refuses.run(from_round=2)
    agrees, _, _ = sites("fedavg-lora", deployment={"quorum": 3})
    agrees.run()
    assert trained(events, agrees, "basil") == list(range(1, 7))


def test_the_sites_record_notes_the_going_back(sites):
    stopped(sites, "fedavg-lora")
    again, _, nodes = sites("fedavg-lora")
    again.run(from_round=2)
    releases = [r for r in read_releases(nodes["amber"].settings.folder) if r.kind == "train"]
    assert [r.round for r in releases] == [1, 2, 3, 4, 5, 3, 4, 5, 6]
    assert [r.facts.get("back_to") for r in releases] == [None] * 5 + [2] + [None] * 3


def test_a_site_that_no_longer_has_the_state_starts_anew(sites, events):
    settings = {"basil": {"keep_rounds": 1}}
    stopped(sites, "own-prior", settings=settings)
    again, channel, nodes = sites("own-prior", settings=settings)
    again.run(from_round=2)
    assert left_out(events, again, "basil") == [(3, LOST)]
    assert counts_of(channel, "basil") == {3: 2, 4: 0, 5: 4, 6: 5}
    back = [r.facts.get("back_to") for r in read_releases(nodes["basil"].settings.folder) if r.round == 4]
    assert back == [None, 0]


def test_a_site_that_joined_after_the_round_is_opened_as_a_new_one(sites, events):
    later = {}

    def joins(reply, request):
        later["channel"].clients[2] = later["node"]
        return reply

    faults = {("train", 3, "amber"): joins, **{("train", 6, site): "late" for site in SITES}}
    first, channel, nodes = sites("own-prior", faults=faults, deployment={**ANY, "clients": 2})
    later |= {"channel": channel, "node": channel.clients.pop(2)}
    with pytest.raises(RunError):
        first.run()
    assert [(e["client"], e["round"]) for e in events(first, "came late")] == [("coral", 4)]
    again, channel, nodes = sites("own-prior", deployment={"clients": 2})
    again.run(from_round=3)
    assert [(e["client"], e["round"]) for e in events(again, "came late")] == [("coral", 4)]
    assert trained(events, again, "coral") == [4, 5, 6]
    back = [r.facts["back_to"] for r in read_releases(nodes["coral"].settings.folder) if "back_to" in r.facts]
    assert back == [0]


@pytest.mark.parametrize("agrees", [True, False])
def test_a_server_that_went_back_to_before_a_new_beginning_is_told_so(agrees, sites, events):
    """The site has no reference of round 3 any more; the server of round 3 has one."""
    faults = {("train", 6, site): "late" for site in SITES}
    first, channel, nodes = sites("own-prior", faults=faults, deployment=ANY, rounds=9)
    backup = nodes["basil"].settings.folder.parent / "backup"

    def keeps(reply, request):
        shutil.copytree(nodes["basil"].run.store.folder, backup)
        return reply

    def restores(reply, request):
        shutil.rmtree(nodes["basil"].run.store.folder)
        shutil.copytree(backup, nodes["basil"].run.store.folder)
        return reply

    channel.faults |= {("train", 3, "basil"): keeps, ("train", 4, "basil"): restores}
    with pytest.raises(RunError):
        first.run()
    assert left_out(events, first, "basil")[0] == (5, LOST)
    settings = {"basil": {"may_go_back": agrees}}
    again, channel, nodes = sites("own-prior", settings=settings, rounds=9)
    again.run(from_round=3)
    if agrees:
        assert left_out(events, again, "basil") == [(4, LOST)] and counts_of(channel, "basil")[5] == 0
    else:
        assert left_out(events, again, "basil") == [(4, BACK), (5, BACK), (6, LOST)]
        assert counts_of(channel, "basil")[7] == 6
    reference = again.server.references.confirmed[1]
    assert np.array_equal(nodes["basil"].run.store.state_after(9, {}).memory["received"], reference)


# -- a server that does not follow the protocol


def test_without_consent_no_request_brings_a_site_back(sites):
    coordinator, channel, nodes = sites("own-prior", settings={"amber": {"may_go_back": False}}, rounds=9)
    seen, codes = {}, {}

    def ends(reply, request):
        seen["request"] = request
        raise KeyboardInterrupt

    channel.faults = {("train", 4, "amber"): ends}
    with pytest.raises(KeyboardInterrupt):
        coordinator.run()
    amber, request = nodes["amber"], seen["request"]

    def asked(number, counts):
        reply = amber.answer(Request("train", {**request.facts, "round": number, "counts": counts}))
        codes[number, counts] = reply.error or (LOST if reply.lost else None)
        return codes[number, counts]

    for number, counts in [(1, 0), (2, 1), (3, 2), (3, 0), (4, 0), (4, 2)]:
        assert asked(number, counts) == BACK
    assert asked(5, 1) == LOST  # and the state of round 4 is a new beginning
    assert asked(1, 0) == asked(4, 3) == BACK
    assert asked(6, 0) is None  # it starts anew, as one that has lost its disk
    assert asked(1, 0) == asked(5, 0) == BACK
    assert asked(6, 0) is None  # as the answer was lost


# -- [privacy]


def entries(node):
    book = read_ledger(node.run.store.folder / "privacy" / "ledger.json")
    return [(entry.what, entry.round) for entry in book.entries]


def test_what_is_released_after_going_back_counts_anew_and_has_new_noise(sites, events):
    heard = []

    def note(reply, request):
        heard.append((request, reply))
        return reply

    faults = {("train", number, "amber"): note for number in range(1, 5)}
    _, channel, nodes = stopped(sites, "own-prior", privacy=PRIVACY, rounds=9, faults=faults)
    assert entries(nodes["amber"]) == [("summary", 0)] + [("update", number) for number in range(1, 6)]
    spent = [r.epsilon for r in read_releases(nodes["amber"].settings.folder)][-1]
    first = {request.facts["round"]: load(reply.parts["upload"]) for request, reply in heard}
    heard.clear()
    again, channel, nodes = sites("own-prior", privacy=PRIVACY, rounds=9)
    channel.faults = {("train", number, "amber"): note for number in range(3, 8)}
    with pytest.raises(RunError):  # the budget is that of nine releases
        again.run(from_round=2)
    assert entries(nodes["amber"])[6:] == [("update", number) for number in range(3, 7)]
    assert [reply.error for _, reply in heard] == [None] * 4 + [LIMIT]
    assert heard[0][1].facts["back_to"] == 2
    again_sent = {request.facts["round"]: load(reply.parts["upload"]) for request, reply in heard[:4]}
    for number in (3, 4):
        assert any(not np.array_equal(again_sent[number][name], first[number][name]) for name in first[number])
    assert [r.epsilon for r in read_releases(nodes["amber"].settings.folder)][-1] > spent
    # The same request once more: the same upload, and nothing is entered.
    before, request = entries(nodes["amber"]), heard[3][0]
    for node in (nodes["amber"], sites("own-prior", privacy=PRIVACY, rounds=9)[2]["amber"]):
        assert node.answer(request).parts["upload"] == heard[3][1].parts["upload"]
        assert entries(node) == before
    # The budget is spent before anything is trained: the states stay as they are.
    states = nodes["amber"].run.store.rounds()
    assert nodes["amber"].answer(heard[4][0]).error == LIMIT and nodes["amber"].run.store.rounds() == states


def test_an_earlier_request_byte_for_byte_is_a_new_release(sites):
    """Only the last upload is stored; who repeats an older request gets other noise, and the ledger counts it."""
    heard = {}

    def note(reply, request):
        heard[request.facts["round"]] = (request, reply)
        return reply

    faults = {("train", number, "amber"): note for number in range(1, 5)}
    _, _, nodes = stopped(sites, "own-prior", privacy=PRIVACY, rounds=9, faults=faults)
    request, first = heard[3]
    sent, again = (load(reply.parts["upload"]) for reply in (first, nodes["amber"].answer(request)))
    assert any(not np.array_equal(again[name], sent[name]) for name in sent)
    assert entries(nodes["amber"])[-1] == ("update", 3) and len(entries(nodes["amber"])) == 7
    assert nodes["amber"].run.store.rounds() == [2, 3]
