"""How many sites hold a label: each site computes it itself, whatever the server says."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from trifed.deployment.protocol import RefusedError
from trifed.deployment.release_log import read_releases
from trifed.federation.sealed.numbers import bits_of_count
from trifed.federation.sealed.rules import SumTerms

pytest.importorskip("cryptography")
from sealed_sites import FEW, FOUR, SENT, SITES, Heard, left_out, same, sums, with_terms

from trifed.deployment.sealed_site_run import held_by
from trifed.deployment.site_opening import KnownHolders, check_holders


def test_nor_is_who_holds_which_label_and_nobody_leaves_the_run_for_it(sealed, events):
    one, _, _ = sealed(method="own-prior", rounds=1)
    one.run()
    same_sites, _, _ = sealed(method="own-prior", rounds=1, server="again")
    same_sites.run()
    states = [
        {name: array for name, array in each.server.state.items() if not name.startswith("opened_")}
        for each in (one, same_sites)
    ]  # without what is masked and signed with new keys
    assert same(*states) and same_sites.server.state["holders"].any()
    more, _, _ = sealed(method="own-prior", rounds=2, server="more", sites=FOUR)
    more.run()
    told = [e["text"] for e in events(more, "trouble")]
    assert [site for site in FOUR if any(t.startswith(f"{site}: ") and SENT in t for t in told)] == SITES
    assert sums(events, more) == {2: FOUR} and not more.server.state["holders"].any()


@pytest.mark.parametrize("kind", ["ready", "send"])
def test_a_site_that_misses_the_sum_of_label_holders_stays_in_the_run(kind, sealed, events):
    coordinator, _, _ = sealed(method="own-prior", faults={(kind, 0, "basil"): "late"}, rounds=2)
    coordinator.run()
    assert left_out(events, coordinator) == {}
    assert any(
        e["text"].startswith("basil: ") and "no_answer" in e["text"] for e in events(coordinator, "trouble")
    )
    assert sums(events, coordinator) == {1: SITES, 2: SITES} and not coordinator.server.state["holders"].any()


def test_a_site_that_wants_more_sites_in_a_sum_refuses_a_run_that_sums_fewer_holders(sealed, events):
    settings, wait = {"amber": {"at_least": 4}}, {"clients": 3, "quorum": 3}
    coordinator, _, _ = sealed(method="own-prior", settings=settings, sites=FOUR, rounds=1, deployment=wait)
    coordinator.run()
    assert [e["code"] for e in events(coordinator, "refused")] == [FEW]


def all_hold(found):
    """All sites hold every label."""
    return replace(found, holders=np.full_like(found.holders, len(found.opening)))


def forged(found):
    """The same lie, with parts that add up to it."""
    lie, proof = all_hold(found), found.proof
    wanted = lie.holders.astype(np.int64) - proof.parts[1:].sum(axis=0, dtype=np.int64)
    parts = np.concatenate([np.mod(wanted, 1 << bits_of_count(len(proof.parts)))[None], proof.parts[1:]])
    lied = replace(lie, proof=replace(proof, parts=parts.astype(np.uint16)))
    assert lied.proof.holders().tolist() == lie.holders.tolist()
    return lied


def without_one(found):
    """The parts of all sites but one, whose masks do not cancel."""
    proof = found.proof
    fewer = replace(proof, names=proof.names[1:], parts=proof.parts[1:], signatures=proof.signatures[1:])
    return replace(found, proof=fewer, opening=found.opening[1:], holders=fewer.holders().clip(max=2))


def exchanged(found):
    """The places of two sites exchanged: one that is absent would count as the other one."""
    names, order = found.proof.names, [1, 0, *range(2, len(found.proof.names))]
    other = {name: getattr(found.proof, name)[order] for name in ("parts", "signatures")}
    return replace(found, proof=replace(found.proof, names=tuple(names[place] for place in order), **other))


LIES = {
    "other numbers": ("other_holders", all_hold),
    "no parts": ("other_holders", lambda found: replace(all_hold(found), proof=None)),
    "a part of the server's": ("unknown_site", forged),
    "a part left out": ("unknown_site", without_one),
    "two places exchanged": ("unknown_site", exchanged),
    "a part twice": (
        "other_holders",
        lambda found: replace(found, proof=replace(found.proof, names=(found.proof.names[0],) * 3)),
    ),
}


@pytest.fixture
def rare(site_tables):
    """The label 'login' is amber's alone."""
    for site in SITES[1:]:
        table = pd.read_csv(site_tables / f"{site}.csv")
        table[table["label"] != "login"].to_csv(site_tables / f"{site}.csv", index=False)


@pytest.mark.parametrize("lie", LIES)
def test_a_server_that_lies_about_the_holders_of_a_label_gets_no_part(lie, sealed, events, rare):
    """Otherwise it could say that all hold a label of one site, whose row of the head is then that of the sum."""
    code, change = LIES[lie]
    coordinator, _, nodes = sealed(method="own-prior", rounds=1)
    with_terms(coordinator, lambda number, found: change(found) if number else found)
    coordinator.run()
    assert coordinator.server.state["holders"][0].tolist() == [3, 3, 1]
    assert left_out(events, coordinator) == {(site, 1): code for site in SITES}
    for node in nodes.values():
        sent = [release.round for release in read_releases(node.settings.folder) if "sum" in release.parts]
        assert sent == [0]


P256 = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
"""Order of the curve: with (r, s) also (r, P256 − s) is a signature."""


def other_signature(context, request):
    """The same terms with another signature that is as valid: names, keys and counts are the same."""
    header = context.header("terms", 0, 1)
    found = SumTerms.decode(request.parts["terms"], header, context.compression.layout, 1)
    signatures = found.signatures.copy()
    s = P256 - int.from_bytes(signatures[0, 32:].tobytes())
    signatures[0, 32:] = np.frombuffer(s.to_bytes(32), np.uint8)
    return {"terms": replace(found, signatures=signatures).encode(header)}


@pytest.mark.parametrize("honest", [True, False])
def test_unlike_terms_at_one_site_before_round_1_never_pass_for_a_count(honest, sealed, events, rare):
    """Masks do not cancel then. The sum is a random number, which a server that lies takes for the count."""
    coordinator, channel, _ = sealed(method="own-prior", rounds=1)
    ask, opened = channel.ask, coordinator.open

    def asks(requests, *rest):
        for node, request in requests.items():
            if (request.kind, request.facts.get("round"), node) == ("send", 0, 1):
                requests[node] = replace(request, parts=other_signature(coordinator.server.context, request))
        return ask(requests, *rest)

    def opening():
        done, server = opened(), coordinator.server
        add = server.add

        def takes(number, terms, parts):
            wrong = add(number, terms, parts)
            if honest or number:
                return wrong
            total = np.sum([part.integers for part in parts], axis=0, dtype=np.int64) % 8
            server._set(0, holders=total.clip(max=3), opened_members=parts[0].members)
            arrays = {f"opened_{n}": np.stack([getattr(part, a) for part in parts]) for n, a in OF_PARTS.items()}
            server._set([0, 1, 2], opening=True, **arrays)
            return None

        server.add = takes
        return done

    channel.ask, coordinator.open = asks, opening
    coordinator.run()
    if honest:
        assert left_out(events, coordinator) == {} and not coordinator.server.state["holders"].any()
    else:
        assert left_out(events, coordinator) == {(site, 1): "unknown_site" for site in SITES}


OF_PARTS = {"parts": "integers", "signatures": "signature"}
"""Arrays of the server's state, and those of a part that they have."""


def test_other_holders_than_before_get_no_part_either(sealed, events):
    coordinator, _, _ = sealed(method="own-prior")
    with_terms(coordinator, lambda n, found: replace(found, holders=found.holders - 1) if n == 2 else found)
    coordinator.run()
    assert left_out(events, coordinator) == {(site, 2): "other_holders" for site in SITES}


def test_each_site_counts_the_holders_itself_and_gets_the_parts_once(sealed, rare):
    """The number of holders is that of the sites' own data, and a newcomer gets the parts too."""
    heard, known = Heard("send"), {}
    coordinator, _, nodes = sealed(method="own-prior", faults=heard.faults)
    coordinator.run()
    held = [held_by(node.run.client) for node in nodes.values()]
    for site, node in nodes.items():
        known[site] = node.run.sums.record.holders()
        assert (
            known[site].holders == np.sum(held, axis=0).tolist() == coordinator.server.state["holders"][0].tolist()
        )
        assert known[site].sites == dict(enumerate(SITES))
    sizes = [len(heard.requests["send", number, "amber"].parts["terms"]) for number in (1, 2, 3)]
    assert sizes[0] > sizes[1] + 3 * 64 and sizes[1] == sizes[2]
    server = coordinator.server
    assert server.terms(4, [0, 1, 2]).proof is None
    server.admit(3, None, "dill")
    assert server.terms(4, [0, 1, 2, 3]).proof.names == SITES


def test_a_site_whose_labels_have_changed_sends_nothing_if_the_terms_do_not_say_so():
    known = KnownHolders({0: "amber", 1: "basil", 2: "coral"}, [3, 2])
    found = SumTerms([0, 1, 2], holders=np.array([3, 2], np.uint16), opening=[0, 1, 2], names=tuple(SITES))
    check_holders(known, 0, found, "as before", "as before")
    check_holders(known, 0, replace(found, changed=[0]), "others", "as before")
    check_holders(known, 0, found, "others", "")  # it has sent no part of the sum of label holders
    with pytest.raises(RefusedError):
        check_holders(known, 0, found, "others", "as before")
    with pytest.raises(RefusedError):
        check_holders(known, 0, replace(found, names=("amber", "coral", "basil")), "as before", "as before")
    with pytest.raises(RefusedError):
        check_holders(known, 0, replace(found, opening=[0, 1]), "as before", "as before")
