"""Sealed sums between sites: the same numbers as in the simulator, and never two sums that differ by one site."""

from __future__ import annotations

import math
import re
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import load as load_arrays
from safetensors.torch import load_file
from typer.testing import CliRunner

from trifed import make_config, run
from trifed.cli.app import app
from trifed.common.errors import RunError
from trifed.config.run import to_toml
from trifed.deployment.protocol import RefusedError, Request
from trifed.deployment.release_log import read_releases
from trifed.deployment.site_store import SiteStore
from trifed.federation.messages import Header
from trifed.federation.run_folder import RunFolder
from trifed.federation.sealed_numbers import modulo
from trifed.federation.sealed_upload import PENDING
from trifed.federation.sealing import SumTerms
from trifed.federation.upload import RESIDUAL
from trifed.privacy import read_ledger

pytest.importorskip("cryptography")
from trifed.deployment.certificates import write_node_keys
from trifed.deployment.sealed_lists import ReadySites, notes_of_sums
from trifed.deployment.site_keys import collect_site_keys
from trifed.deployment.site_sums import SealedSums, digest_of_change, digest_of_terms
from trifed.privacy.masking import RoundKey

SITES = ["amber", "basil", "coral"]
FOUR = [*SITES, "dill"]
LABELS = ["billing", "delivery", "login"]
SENT, INCOMPLETE, FEW = "sum_sent", "sum_incomplete", "too_few_for_a_sum"


@pytest.fixture
def keys(site_tables):
    """`keys("amber", "basil")`: a file with their public keys; their own keys are in `keys.folder`."""
    folder = site_tables / "site-keys"
    folder.mkdir()
    for name in FOUR:
        write_node_keys(folder, name)

    def list_of(*names):
        path = folder / f"{'-'.join(names)}.pub"
        collected = folder / "-".join(names) / "keys"
        collected.mkdir(parents=True, exist_ok=True)
        for name in names:
            shutil.copy(folder / f"{name}.pub", collected)
        collect_site_keys(collected.parent).write(path)
        return path

    list_of.folder = folder
    return list_of


@pytest.fixture
def sealed(federation, site_tables, keys):
    """`sealed("one", settings={"basil": {"may_go_back": True}})`: a coordinator, its channel, nodes by name.

    A second call for the same place makes new processes over the same folders; `sites=FOUR` adds dill, which has
    amber's table. In every test a site sends for one list a round, whatever happens: `sealed.sent` has the lists
    by site, run and round.
    """
    sent, known = {}, [*SITES]

    def node(site, place="one", source=None, **more):
        settings = {
            "name": site, "folder": site_tables / place / site, "key": keys.folder / f"{site}.key",
            "sites": keys(*known), **more,
        }  # fmt: skip
        made = federation.node(source or ("amber" if site == "dill" else site), **settings)
        answer = made.answer

        def noted(request):
            reply = answer(request)
            if "sum" in reply.parts:
                key = (place, site, request.facts["run"], request.facts["round"])
                sent.setdefault(key, set()).add(digest_of_terms(request.parts["terms"]))
            return reply

        made.answer = noted
        return made

    def make(place="one", method="fedavg-lora", settings=None, faults=None, server=None, sites=SITES, **changes):
        known[:] = sites
        nodes = {site: node(site, place, **(settings or {}).get(site, {})) for site in sites}
        changes = {
            "rounds": 3,
            **changes,
            "deployment": {"quorum": 1, "clients": len(sites), **changes.pop("deployment", {})},
            "sealing": {"on": True, **changes.pop("sealing", {})},
        }
        coordinator, channel = federation(
            method, faults, server or f"{place}-server", dict(enumerate(nodes.values())), **changes
        )
        return coordinator, channel, nodes

    make.node, make.sent = node, sent
    yield make
    assert all(len(lists) == 1 for lists in sent.values()), sent


def left_out(events, coordinator):
    return {(e["client"], e["round"]): e["code"] for e in events(coordinator, "left out")}


def counted(events, coordinator, name="amber"):
    return [e["round"] for e in events(coordinator, "trained") if e["client"] == name]


def sums(events, coordinator):
    return {e["round"]: e["clients"] for e in events(coordinator, "sum")}


def with_terms(coordinator, change):
    """Let a server change the terms of its sums; the round and the terms are given to `change`."""
    opened = coordinator.open

    def opening():
        done = opened()
        terms = coordinator.server.terms
        coordinator.server.terms = lambda number, clients: change(number, terms(number, clients))
        return done

    coordinator.open = opening


class Heard:
    """Faults that change nothing and note what was asked and answered, by (kind, round, site)."""

    def __init__(self, *kinds, rounds=range(4)):
        self.requests, self.replies = {}, {}
        self.faults = {(kind, number, site): self.note for kind in kinds for number in rounds for site in FOUR}

    def note(self, reply, request):
        key = (request.kind, request.facts.get("round", 0), FOUR[request.facts["place"]])
        self.requests[key], self.replies[key] = request, reply
        return reply


def same(one, other):
    assert one.keys() == other.keys()
    return all(np.array_equal(one[name], other[name]) for name in one)


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

    def other(requests, seconds):
        for node, request in requests.items():
            if (request.kind, request.facts.get("round"), node) == (kind, 2, 1):
                parts = {"send": other_steps, "train": other_values}[kind](coordinator, request)
                requests[node] = replace(request, parts=parts)
        return ask(requests, seconds)

    channel.ask = other
    coordinator.run()
    assert left_out(events, coordinator) == {(site, 2): "sum_unreadable" for site in SITES}
    assert counted(events, coordinator) == [1, 3]


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


# -- never two sums of the same numbers


def test_the_same_request_gets_the_same_bytes_and_another_list_gets_nothing(sealed):
    heard = Heard("send", "train")
    coordinator, _, nodes = sealed(faults=heard.faults, settings={"amber": {"may_go_back": True}})
    coordinator.run()
    last, train = (heard.requests[kind, 3, "amber"] for kind in ("send", "train"))
    part = heard.replies["send", 3, "amber"].parts["sum"]
    for amber in (nodes["amber"], sealed.node("amber", may_go_back=True)):  # a new process over the same files
        assert amber.answer(last).parts["sum"] == part
        assert amber.answer(train).error == SENT
        assert amber.answer(other_list(coordinator, last, 3)).error == SENT
        for number in (1, 2):
            assert amber.answer(heard.requests["send", number, "amber"]).error == SENT
            assert amber.answer(heard.requests["train", number, "amber"]).error == SENT


def other_list(coordinator, request, number):
    """The same terms without the last site."""
    context = coordinator.server.context
    header = context.header("terms", number, 0)
    terms = SumTerms.decode(request.parts["terms"], header, context.compression.layout, 1)
    fewer = replace(
        terms,
        clients=terms.clients[:2],
        names=terms.names[:2],
        keys=terms.keys[:2],
        signatures=terms.signatures[:2],
    )
    return replace(request, parts={"terms": fewer.encode(header)})


def test_whatever_a_server_asks_a_site_sends_for_one_list_a_round(sealed):
    """A server that asks at random: rounds again, from other states, old keys, other lists; sites restart."""
    heard, agree = Heard("train", rounds=[1]), {"may_go_back": True}

    def ends(reply, request):
        raise KeyboardInterrupt

    coordinator, _, nodes = sealed(
        sites=FOUR, rounds=4, settings=dict.fromkeys(FOUR, agree),
        faults={**heard.faults, ("train", 2, "amber"): ends},
    )  # fmt: skip
    with pytest.raises(KeyboardInterrupt):
        coordinator.run()
    server, rng, ready, codes = coordinator.server, np.random.default_rng(0), {2: {}, 3: {}, 4: {}}, []
    for _ in range(60):
        place, number = int(rng.integers(4)), int(rng.integers(2, 5))
        site, request = FOUR[place], heard.requests["train", 1, FOUR[place]]
        facts = {**request.facts, "round": number, "counts": int(rng.integers(number))}
        reply = nodes[site].answer(replace(request, facts=facts, parts={}))
        codes.append(reply.error)
        if "ready" in reply.parts:
            found = ReadySites(number)
            found.read(server.context, place, reply)
            ready[number].setdefault(place, []).append(found.found[place])
        if rng.integers(6) == 0:
            nodes[site] = sealed.node(site, **agree)
        for _ in range(2):  # two lists, if there are enough keys; now and then an old key
            others = sorted(set(ready[number]) - {place})
            if place in ready[number] and len(others) > 1:
                more = rng.choice(others, 2 + int(rng.integers(len(others) - 1)), replace=False).tolist()
                clients = sorted({place, *more})
                keys = {c: ready[number][c][int(rng.integers(-2, 0)) % len(ready[number][c])] for c in clients}
                found = ReadySites(number, keys).with_keys(server.terms(number, clients), FOUR)
                part = found.encode(server.context.header("terms", number, place))
                codes.append(nodes[site].answer(Request("send", facts, {"terms": part})).error)
    assert {None, SENT, "not_ready", "bad_request"} <= set(codes)
    assert len(sealed.sent) > 5


def test_a_server_that_stops_before_its_checkpoint_loses_the_round(sealed, events):
    """All have sent in round 2. The new process asks again, and gets no second sum; the run goes on."""

    def ends(reply, request):
        raise KeyboardInterrupt

    coordinator, channel, _ = sealed(rounds=4)
    save = coordinator.save_checkpoint

    def stops(number, needed=()):
        if number == 2:
            raise KeyboardInterrupt
        save(number, needed)

    coordinator.save_checkpoint = stops
    with pytest.raises(KeyboardInterrupt):
        coordinator.run()
    again, channel, _ = sealed(rounds=4, deployment={"quorum": 3})
    again.run()
    assert left_out(events, again) == {(site, 2): SENT for site in SITES}
    assert sums(events, again).keys() == {1, 3, 4}
    assert not [key for key in channel.asked if key[:2] == ("send", 2)]


def test_a_server_that_stops_between_the_exchanges_repeats_the_round(sealed, events):
    whole, _, _ = sealed("whole")
    whole.run()

    def ends(reply, request):
        raise KeyboardInterrupt

    coordinator, _, _ = sealed(faults={("train", 2, "coral"): ends})
    with pytest.raises(KeyboardInterrupt):
        coordinator.run()
    again, _, _ = sealed()
    again.run()
    assert left_out(events, again) == {} and sums(events, again).keys() == {1, 2, 3}
    assert same(again.server.state, whole.server.state)


def test_a_run_that_goes_back_has_no_second_sum_of_its_rounds(sealed, events):
    settings = {site: {"may_go_back": True} for site in SITES}
    faults = {("train", 4, site): "late" for site in SITES}
    coordinator, _, _ = sealed(settings=settings, faults=faults, rounds=5)
    with pytest.raises(RunError):
        coordinator.run()
    again, _, _ = sealed(settings=settings, rounds=5, deployment={"quorum": 3})
    again.run(from_round=1)
    assert left_out(events, again) == {(site, number): SENT for site in SITES for number in (2, 3)}
    assert sums(events, again).keys() == {1, 4, 5}
    assert any(e["text"].startswith("rounds 2 to 3: will have no sum") for e in events(again, "trouble"))


def test_one_restored_disk_is_not_enough_for_a_second_sum(sealed, events, site_tables):
    coordinator, channel, nodes = sealed(rounds=4)
    backup = site_tables / "backup"

    def keeps(reply, request):
        shutil.copytree(nodes["basil"].run.store.folder, backup)
        return reply

    def restores(reply, request):
        shutil.rmtree(nodes["basil"].run.store.folder)
        shutil.copytree(backup, nodes["basil"].run.store.folder)
        return reply

    def asks_again(reply, request):
        """A server that asks for round 2 again gets nothing from the others, who have sent."""
        again = [nodes[site].answer(heard.requests["train", 2, site]).error for site in ("amber", "coral")]
        assert set(again) <= {"no_going_back", SENT}
        return reply

    heard = Heard("train", rounds=[2])
    happens = {("send", 1, "basil"): keeps, ("send", 2, "basil"): restores, ("train", 3, "basil"): asks_again}
    channel.faults = {**heard.faults, **happens}
    coordinator.run()
    # It is left out until server and site agree on its state; the others have too few for a sum.
    assert left_out(events, coordinator)["basil", 3] == "lost"
    assert counted(events, coordinator, "basil") == [1, 2, 4]


def test_the_same_numbers_are_not_sent_with_other_sites_in_another_run(sealed, events, keys):
    """Two runs with one seed, the second with one more site, whose numbers their difference would be.

    Steps that differ by the least that they can do not hide that.
    """
    coordinator, _, _ = sealed(rounds=1)
    coordinator.run()
    same_sites, _, _ = sealed(rounds=1, server="again")
    same_sites.run()
    assert left_out(events, same_sites) == {}
    more, _, _ = sealed(rounds=2, server="more", sites=FOUR)
    with_terms(more, lambda number, found: replace(found, steps=np.nextafter(found.steps, np.float16(1))))
    more.run()
    assert left_out(events, more) == {**{(site, 1): SENT for site in SITES}, ("dill", 1): INCOMPLETE}
    assert sums(events, more) == {2: FOUR}


def test_nor_is_who_holds_which_label_and_nobody_leaves_the_run_for_it(sealed, events):
    one, _, _ = sealed(method="own-prior", rounds=1)
    one.run()
    same_sites, _, _ = sealed(method="own-prior", rounds=1, server="again")
    same_sites.run()
    assert same(one.server.state, same_sites.server.state) and same_sites.server.state["holders"].any()
    more, _, _ = sealed(method="own-prior", rounds=2, server="more", sites=FOUR)
    more.run()
    told = [e["text"] for e in events(more, "trouble")]
    assert [site for site in FOUR if any(t.startswith(f"{site}: ") and SENT in t for t in told)] == SITES
    assert sums(events, more) == {2: FOUR} and not more.server.state["holders"].any()


@pytest.mark.parametrize("levels", [[0, 0], [1, -1]])
def test_the_record_does_not_depend_on_how_numbers_are_rounded(levels, sealed, site_tables):
    """Also if all of a site's levels are 0, which a server can bring about by large steps."""
    _, _, nodes = sealed()
    settings, memory = nodes["amber"].settings, {PENDING: np.array([0.25, -0.5], np.float32)}
    codes = []
    header = Header("ready", "one", "b", 1, 0)
    for name, names in (("one", SITES), ("again", SITES), ("other", FOUR)):
        sums_of_run = SealedSums(name, settings, 3, SiteStore.at(settings.folder / name, {}))
        sums_of_run.ready(SimpleNamespace(header=lambda *_: header), 1, 0, 0)
        keys_of_others = np.array([np.frombuffer(RoundKey.generate().public, np.uint8) for _ in names])
        terms = SumTerms(range(len(names)), steps=np.ones(1, np.float16), keys=keys_of_others, names=names)
        mask = sums_of_run.mask(sums_of_run.take(1), terms, np.zeros(2, np.float32), "", digest_of_change(memory))
        try:
            mask(modulo(np.array(levels), 4), 4)
            codes.append("")
        except RefusedError as error:
            codes.append(error.code)
    assert codes == ["", "", SENT]
    assert SealedSums("one", settings, 2, SiteStore(settings.folder / "one")).at_least == 3
    rest = {**memory, RESIDUAL: np.array([0.0, 0.1], np.float32)}
    assert digest_of_change(rest) != digest_of_change(memory)


@pytest.mark.parametrize("kind", ["ready", "send"])
def test_a_site_that_misses_the_sum_of_label_holders_stays_in_the_run(kind, sealed, events):
    coordinator, _, _ = sealed(method="own-prior", faults={(kind, 0, "basil"): "late"}, rounds=2)
    coordinator.run()
    assert left_out(events, coordinator) == {}
    assert any(
        e["text"].startswith("basil: ") and "no_answer" in e["text"] for e in events(coordinator, "trouble")
    )
    assert sums(events, coordinator) == {1: SITES, 2: SITES} and not coordinator.server.state["holders"].any()


def test_a_damaged_record_of_an_old_run_keeps_only_its_site_from_being_ready(sealed, events, caplog):
    coordinator, _, nodes = sealed(rounds=1, sites=FOUR)
    for site, text in (
        ("amber", '{"rounds": {"1": {"terms": "a", "sites": ["x"], "numbers": "b", "later": 1}}, "later": []}'),
        ("basil", '{"rounds": {"1"'),
    ):
        old = nodes[site].settings.folder / "old"
        old.mkdir(parents=True)
        (old / "sums.json").write_text(text)
    coordinator.run()
    assert left_out(events, coordinator) == {("basil", 1): "storage"}
    assert sums(events, coordinator) == {1: ["amber", "coral", "dill"]}
    assert "old/sums.json: damaged" in caplog.text


# -- who is in a sum


BAD = {
    "too few": ("too_few_for_a_sum", lambda terms: fewer(terms, 2)),
    "not itself": ("bad_request", lambda terms: replace(terms, names=("amber2", *terms.names[1:]))),
    "another key of its own": ("bad_request", lambda terms: replace(terms, keys=terms.keys[::-1].copy())),
    "a site that it does not know": (
        "unknown_site",
        lambda terms: replace(terms, names=(*terms.names[:2], "dill")),
    ),
    "a key of the server's": ("unknown_site", lambda terms: replace(terms, keys=other_key(terms.keys))),
    "a name twice": ("bad_request", lambda terms: replace(terms, names=(*terms.names[:2], "basil"))),
    "no signatures": ("bad_request", lambda terms: replace(terms, signatures=terms.signatures[:0])),
}


def fewer(terms, n):
    return replace(
        terms,
        clients=terms.clients[:n],
        names=terms.names[:n],
        keys=terms.keys[:n],
        signatures=terms.signatures[:n],
    )


def other_key(keys):
    changed = keys.copy()
    changed[2, 0] ^= 1
    return changed


@pytest.mark.parametrize("change", BAD)
def test_a_site_sends_nothing_for_a_list_that_it_does_not_accept(change, sealed, events):
    code, changed = BAD[change]
    coordinator, channel, nodes = sealed(rounds=1)
    ask = channel.ask

    def other(requests, seconds):
        for node, request in requests.items():
            if request.kind == "send" and node == 0:
                context = coordinator.server.context
                header = context.header("terms", 1, 0)
                terms = SumTerms.decode(request.parts["terms"], header, context.compression.layout, 1)
                requests[node] = replace(request, parts={"terms": changed(terms).encode(header)})
        return ask(requests, seconds)

    channel.ask = other
    coordinator.run()
    assert left_out(events, coordinator)["amber", 1] == code
    assert not (nodes["amber"].run.store.folder / "sums.json").is_file()
    assert not [r for r in read_releases(nodes["amber"].settings.folder) if "sum" in r.parts]


def test_a_sites_own_at_least_counts_too(sealed, events):
    faults = {("train", 2, "basil"): "deaf"}
    coordinator, _, _ = sealed(settings={"amber": {"at_least": 4}}, faults=faults, sites=FOUR)
    coordinator.run()
    assert left_out(events, coordinator) == {
        ("amber", 2): FEW,
        ("basil", 2): "no_answer",
        ("coral", 2): INCOMPLETE,
        ("dill", 2): INCOMPLETE,
        ("amber", 3): "no_part_before",
    }
    assert sums(events, coordinator) == {1: FOUR, 3: ["basil", "coral", "dill"]}


def test_a_site_that_wants_more_sites_in_a_sum_refuses_a_run_that_sums_fewer_holders(sealed, events):
    settings, wait = {"amber": {"at_least": 4}}, {"clients": 3, "quorum": 3}
    coordinator, _, _ = sealed(method="own-prior", settings=settings, sites=FOUR, rounds=1, deployment=wait)
    coordinator.run()
    assert [e["code"] for e in events(coordinator, "refused")] == [FEW]


def test_other_holders_of_labels_than_at_the_beginning_are_refused(sealed, events):
    coordinator, _, _ = sealed(method="own-prior")

    with_terms(coordinator, lambda n, found: replace(found, holders=found.holders + 1) if n == 2 else found)
    coordinator.run()
    assert {code for (_, number), code in left_out(events, coordinator).items()} == {"bad_request"}


def test_a_newcomer_takes_part_once_all_have_the_new_list(sealed, events, keys):
    coordinator, channel, _ = sealed(rounds=5)
    four = keys(*SITES, "dill")

    def joins(reply, request):
        channel.clients[3] = sealed.node("dill", source="amber", sites=four)
        return reply

    def trust(reply, request):
        for place, site in enumerate(SITES):
            channel.clients[place] = sealed.node(site, sites=four)
        return reply

    channel.faults = {("send", 1, "coral"): joins, ("send", 3, "coral"): trust}
    coordinator.run()
    assert left_out(events, coordinator) == {("dill", 2): "other_sites", ("dill", 3): "other_sites"}
    assert sums(events, coordinator) == {1: SITES, 2: SITES, 3: SITES, 4: [*SITES, "dill"], 5: [*SITES, "dill"]}


def test_without_a_list_or_with_sealed_only_a_site_takes_no_part(sealed, events, keys):
    coordinator, _, _ = sealed(
        settings={"basil": {"sites": keys.folder / "none.pub"}},
        deployment={"clients": 2, "quorum": 2},
    )
    coordinator.run()
    assert [e["code"] for e in events(coordinator, "refused")] == ["no_site_keys"]
    open_run, _, _ = sealed(
        "open",
        settings={"basil": {"sealed_only": True}},
        sealing={"on": False},
        deployment={"clients": 2, "quorum": 2},
    )
    open_run.run()
    assert [e["code"] for e in events(open_run, "refused")] == ["not_sealed"]


def test_an_open_run_asks_for_no_sum(federation):
    codes = []

    def asks(reply, request):
        facts = {**request.facts, "counts": 0}
        codes.extend(channel.clients[10].answer(Request(kind, facts, {})).error for kind in ("ready", "send"))
        return reply

    coordinator, channel = federation("fedavg-lora", {("train", 1, "coral"): asks}, rounds=1)
    coordinator.run()
    assert codes == ["wrong_phase", "not_asked_for"]


def test_the_start_says_who_is_in_the_sum_and_what_is_off(sealed, events):
    coordinator, _, _ = sealed(rounds=1)
    coordinator.run()
    texts = " ".join(e["text"] for e in events(coordinator, "trouble"))
    assert all(site in texts for site in SITES) and "at least 3" in texts and "norm_bound" in texts
    assert any("there are 2" in note for note in notes_of_sums(coordinator.config, SITES[:2]))
    enough = coordinator.config.deployment.model_copy(update={"clients": 3, "quorum": 3})
    fewer = enough.model_copy(update={"clients": 2, "quorum": 2})
    configs = [coordinator.config.model_copy(update={"deployment": each}) for each in (enough, fewer)]
    named = [re.findall(r"deployment\.\w+", " ".join(notes_of_sums(each, SITES))) for each in configs]
    assert named == [[], ["deployment.clients", "deployment.quorum"]]
