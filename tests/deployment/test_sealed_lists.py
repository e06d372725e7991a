"""Who is in a sealed sum: the sites of each site's own list, and enough of them."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from trifed.common.errors import RunError
from trifed.deployment.protocol import Request
from trifed.deployment.release_log import read_releases
from trifed.federation.sealed.rules import SumTerms

pytest.importorskip("cryptography")
from sealed_sites import FEW, FOUR, INCOMPLETE, SITES, left_out, sums

from trifed.deployment.sealed_lists import notes_of_sums

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

    def other(requests, *rest):
        for node, request in requests.items():
            if request.kind == "send" and node == 0:
                context = coordinator.server.context
                header = context.header("terms", 1, 0)
                terms = SumTerms.decode(request.parts["terms"], header, context.compression.layout, 1)
                requests[node] = replace(request, parts={"terms": changed(terms).encode(header)})
        return ask(requests, *rest)

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
        settings={"basil": {"sites": keys.folder / "none.pub"}}, deployment={"clients": 3, "quorum": 3}
    )
    with pytest.raises(RunError, match=r"2 of 3 clients .* 1 node was refused"):
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
