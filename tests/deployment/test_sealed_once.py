"""A site never sends the same numbers in two sums, not after a restart and not in another run."""

from __future__ import annotations

import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from trifed.common.errors import RunError
from trifed.deployment.protocol import RefusedError, Request
from trifed.deployment.site_store import SiteStore
from trifed.federation.messages import Header
from trifed.federation.sealed.numbers import modulo
from trifed.federation.sealed.rules import SumTerms
from trifed.federation.sealed.upload import PENDING
from trifed.federation.upload import RESIDUAL

pytest.importorskip("cryptography")
from sealed_sites import FOUR, INCOMPLETE, SENT, SITES, Heard, counted, left_out, same, sums, with_terms

from trifed.deployment.sealed_lists import ReadySites
from trifed.deployment.site_sums import SealedSums, digest_of_change
from trifed.privacy.masking import RoundKey


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


@pytest.mark.parametrize("levels", [[0, 0], [1, -1]])
def test_the_record_does_not_depend_on_how_numbers_are_rounded(levels, sealed, site_tables):
    """Also if all of a site's levels are 0, which a server can bring about by large steps."""
    _, _, nodes = sealed()
    settings, memory = nodes["amber"].settings, {PENDING: np.array([0.25, -0.5], np.float32)}
    codes = []
    header = Header("ready", "one", "b", 1, 0)
    for name, names in (("one", SITES), ("again", SITES), ("other", FOUR)):
        sums_of_run = SealedSums(name, settings, 3, SiteStore.at(settings.folder / name, {}), [])
        sums_of_run.ready(SimpleNamespace(header=lambda *_: header), 1, 0, 0)
        keys_of_others = np.array([np.frombuffer(RoundKey.generate().public, np.uint8) for _ in names])
        terms = SumTerms(range(len(names)), steps=np.ones(1, np.float16), keys=keys_of_others, names=names)
        mask = sums_of_run.mask(sums_of_run.take(1), terms, [], "", digest_of_change(memory))
        try:
            mask(modulo(np.array(levels), 4), 4)
            codes.append("")
        except RefusedError as error:
            codes.append(error.code)
    assert codes == ["", "", SENT]
    assert SealedSums("one", settings, 2, SiteStore(settings.folder / "one"), []).at_least == 3
    rest = {**memory, RESIDUAL: np.array([0.0, 0.1], np.float32)}
    assert digest_of_change(rest) != digest_of_change(memory)


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
