"""The server of sealed sums without a model: terms, lists, references, groups, and settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
from sealed_parts import LAYOUT, RULES, SIZE, client_of, context, opened, sum_round

from trifed import make_config
from trifed.common.errors import ConfigError, MessageError
from trifed.config.sealing import sealing_notes
from trifed.experiments.compare_config import make_comparison
from trifed.federation.messages import Header, Rejected, encode
from trifed.federation.sealed.noise import SumNoise
from trifed.federation.sealed.numbers import bits_of_sum, first_steps, pack_bits
from trifed.federation.sealed.round import open_sums
from trifed.federation.sealed.rules import SumTerms, placeholder_keys
from trifed.federation.sealed.server import (
    INCOMPLETE,
    NO_PART,
    OF_CLIENTS,
    SealedServer,
    make_server,
)
from trifed.federation.sealed.upload import OWN, PENDING
from trifed.federation.server import Server
from trifed.federation.transport import Reply
from trifed.federation.upload import RECEIVED, RESIDUAL
from trifed.methods import METHODS, AggregationSettings, PersonalizationSettings, compose
from trifed.methods.base import SummarySeeds
from trifed.methods.sealed import ALONE, cannot_seal, sealed

# -- clients without a sum, and clients that send no part


def test_a_client_without_a_sum_owes_its_change_once_a_download_replaces_it():
    client, memory = client_of(RULES), {RESIDUAL: np.full(SIZE, 0.25, np.float32)}
    start = np.zeros(SIZE, np.float32)
    header = Header("upload", "run", "base", 0, 1)
    for trained in (0.5, 1.0):  # trained on: the second change has the first
        memory = client.encode(header, start + np.float32(trained), start, memory)[1]
    memory = client.receive(start, memory)
    assert PENDING not in memory and (memory[RESIDUAL] == 1.25).all()
    memory = {**client.encode(header, start + np.float32(0.5), start, memory)[1], OWN: np.zeros(SIZE, np.float32)}
    memory[OWN][600:] = 1
    owed = client.receive(start, memory)[RESIDUAL]
    assert (owed[:600] == 1.75).all() and (owed[600:] == 1.25).all()  # its own numbers have the change already


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_change_that_is_not_finite_never_comes_to_the_residual(bad):
    values = np.zeros(SIZE, np.float32)
    values[3] = bad
    with pytest.raises(MessageError):
        client_of(RULES).encode(Header("upload", "run", "base", 0, 1), values, np.zeros(SIZE, np.float32), {})


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_with_noise_nobody_learns_that_training_has_diverged(bad):
    values = np.zeros(SIZE, np.float32)
    values[3] = bad
    noised = client_of(replace(RULES, noise=SumNoise(clip=1.0, multiplier=2.0, clients=2)))
    message, memory = noised.encode(Header("upload", "run", "base", 0, 1), values, np.zeros(SIZE, np.float32), {})
    assert message is None and not memory[PENDING].any()


def test_who_sent_no_part_waits_longer_each_time_unless_there_is_no_sum_without_it():
    server, waited = opened(4), []
    for number in range(1, 30):
        lists = server.lists(range(4), number)
        assert lists.sums == [[0, 1, 2]] if lists.waiting else [[0, 1, 2, 3]]
        if lists.waiting:
            assert lists.waiting == [3]
            waited.append(number)
        server.note_parts(number, [0, 1, 2], [] if lists.waiting else [3])
    assert waited == [2, 4, 5, *range(7, 11), *range(12, 20), *range(21, 30)]
    assert server.lists([0, 1, 3], 30).sums == [[0, 1, 3]]  # it is needed
    again = make_server(server.context, 4, server.start)
    again.load_state_dict(server.state_dict())
    assert again.lists(range(4), 30).waiting == [3]
    again.note_parts(30, [3], [])
    assert again.lists(range(4), 31).waiting == []


@pytest.mark.parametrize(("code", "waits"), [("no_answer", [3]), ("too_few_for_a_sum", [3]), ("unknown_site", [])])
def test_only_who_is_at_fault_itself_waits(code, waits):
    server = opened(4)
    header, part = server.context.header, {"magnitudes": np.zeros(4, np.uint16)}

    def ask(clients, message):
        for client in clients:
            packed = pack_bits(np.zeros(SIZE, np.uint32), bits_of_sum(len(clients), 1))
            payload = encode(header("upload", number, client), {"sum": packed, **part})
            silent = client == 3 and number == 1
            yield client, Rejected(code, "") if silent else Reply(message(client), payload)

    for number, summed in ((1, False), (2, True)):
        found = open_sums(server, number, range(4), ask, lambda number, sum_terms: sum_terms)
        assert bool(found.sums) == summed
        codes = {client: rejected.code for client, rejected in found.left_out.items()}
        if number == 1:
            assert codes == {3: code, **dict.fromkeys(range(3), INCOMPLETE)}
        else:
            assert codes == dict.fromkeys(waits, NO_PART)


# -- terms


def test_terms_arrive_as_they_were_sent_and_bad_ones_are_refused():
    header = Header("terms", "run", "base", 2, 1)
    good = placeholder_keys(
        SumTerms([0, 1, 5], first_steps(LAYOUT, 0.02), np.array([3, 2, 0], np.uint16), [0, 1, 2], [2])
    )
    good = replace(good, names=("a", "b", "ü"))

    def read(sum_terms, expected=header):
        return SumTerms.decode(sum_terms.encode(header), expected, LAYOUT, 3, 3)

    found = read(good)
    assert (found.clients, found.opening, found.changed) == ([0, 1, 5], [0, 1, 2], [2])
    assert found.names == ("a", "b", "ü")
    assert (found.steps == good.steps).all() and (found.holders == good.holders).all()
    assert found.keys.shape == (3, 32) and found.signatures.shape == (3, 64)
    bad = [
        {"clients": [0, 1]}, {"clients": [0, 2, 5]}, {"clients": [1, 0, 5]}, {"clients": [0, 1, 1]},
        {"steps": good.steps[1:]}, {"steps": -good.steps}, {"steps": good.steps * np.float16(np.inf)},
        {"holders": np.array([4, 0, 0], np.uint16)}, {"holders": np.zeros(2, np.uint16)}, {"opening": [2, 1]},
        {"changed": [3]},
        {"keys": good.keys[1:]}, {"signatures": good.signatures[:, 1:]}, {"names": ("a",)},
    ]  # fmt: skip
    for changes in bad:
        with pytest.raises(MessageError):
            read(replace(good, **changes))
    with pytest.raises(MessageError, match="round"):
        read(good, replace(header, round=3))
    header = replace(header, round=0)
    assert read(SumTerms([0, 1, 5]), header).opening == []
    with pytest.raises(MessageError):
        read(SumTerms([0, 1, 5], opening=[1]), header)


# -- the server


def download(server, client):
    payload = server.download(2, client)
    if payload is None:
        return None
    reference = server.state["before"][0].astype(np.float32)
    encoding = server.context.for_download(2, payload)
    return encoding.decode(payload, server.context.header("download", 2, client), reference)[1]


def test_who_has_the_last_reference_gets_few_bits_and_others_get_it_whole():
    rng, server = np.random.default_rng(3), opened(5)
    clients, memories = [client_of(RULES)] * 5, [{} for _ in range(5)]
    assert [server.download(1, client) for client in range(5)] == [None] * 5

    def some(*which):
        return {i: (0.1 * rng.standard_normal(SIZE)).astype(np.float32) for i in which}

    sum_round(server, clients, 1, some(0, 1, 2), memories)
    sizes = [len(server.download(2, client)) for client in range(5)]
    assert len(set(sizes)) == 1 and sizes[0] < 600  # those who were absent still have the start
    sum_round(server, clients, 2, some(0, 1, 2, 3), memories)
    assert [len(server.download(3, client)) > 4 * SIZE for client in range(5)] == [False] * 4 + [True]
    arrived = [download(server, client) for client in range(5)]
    for values in arrived:
        np.testing.assert_array_equal(values, server.state["now"][0])
    np.testing.assert_array_equal(server.arrives(0), arrived[0])
    # The state is all that is needed to go on.
    again = make_server(server.context, 5, server.start)
    again.load_state_dict(server.state_dict())
    np.testing.assert_array_equal([download(again, client) for client in range(5)], arrived)
    assert {n: a.dtype for n, a in again.state.items()} == {n: a.dtype for n, a in server.state.items()}


def arrays_in(value):
    """All arrays in a value, in what it contains, and in the attributes of that."""
    if isinstance(value, np.ndarray):
        yield value
    elif isinstance(value, Mapping):
        yield from (array for item in value.values() for array in arrays_in(item))
    elif isinstance(value, list | tuple | set):
        yield from (array for item in value for array in arrays_in(item))
    elif hasattr(value, "__dict__"):
        yield from arrays_in(vars(value))


def test_the_state_has_rows_of_groups_and_no_values_of_a_client():
    server = opened(6, groups="given", members=[["a", "b", "c"], ["d", "e"]], names=[*"abcdef"])
    assert server.state["group"].tolist() == [0, 0, 0, 1, 1, ALONE]
    of_clients = {name for name, array in server.state.items() if len(array) == 6}
    assert of_clients == set(OF_CLIENTS)
    masked = {"opened_parts", "opened_signatures"}  # what a client has sent before round 1, which shows nothing
    assert all(server.state[name].ndim == 1 for name in of_clients - masked)
    lists = server.lists(range(6), 1)
    assert (lists.sums, lists.few, lists.alone) == ([[0, 1, 2]], [3, 4], [5])
    assert server.arrives(5) is None and server.download(1, 5) is None
    clients, memories = [client_of(RULES)] * 6, [{} for _ in range(6)]
    sum_round(server, clients, 1, {i: np.full(SIZE, 0.1, np.float32) for i in range(3)}, memories)
    assert server.download(2, 0) is not None and server.download(2, 3) is None
    state = server.state_dict()
    assert {array.shape for name, array in state.items() if array.size >= SIZE} == {(2, SIZE), (SIZE,)}
    # The server keeps the common start, and for each of two groups the arrays `now`, `before` and `wanted`.
    kept = [array.shape for array in arrays_in({**vars(server), "context": None}) if array.size >= SIZE]
    assert sorted(kept) == [(2, SIZE)] * 3 + [(SIZE,)]


def test_a_client_that_joins_or_leaves_changes_no_group():
    server = opened(3)
    clients, memories = [client_of(RULES)] * 4, [{} for _ in range(4)]
    for number in (1, 2):
        changes = {i: np.full(SIZE, 0.1, np.float32) for i in range(3)}
        sum_round(server, clients, number, changes, memories)
    groups = server.state["group"].tolist()
    server.admit(3, None, "new")
    assert server.state["group"].tolist() == [*groups, 0] and server.lists(range(4), 3).sums == [[0, 1, 2, 3]]
    assert len(server.download(3, 3)) > 4 * SIZE
    server.withdraw(0)
    assert server.state["group"].tolist() == [*groups, 0] and server.state["has"][0] == 0
    np.testing.assert_array_equal(server.arrives(3), server.state["now"][0])


def test_groups_follow_noised_summaries_and_a_newcomer_joins_the_most_similar_one():
    """Two groups of three clients give the two labels opposite meanings."""
    rng, settings = np.random.default_rng(0), AggregationSettings(groups="agreement")
    method = compose(METHODS["fed-xs"], PersonalizationSettings(), settings)

    def summary(sign, client):
        labels = np.arange(60) % 2
        features = rng.standard_normal((60, 16)) * 0.2 + sign * (2 * labels - 1)[:, None]
        return method.summarise(method.options(), features.astype(np.float32), labels, SummarySeeds(0, client))

    known = replace(context(), method=sealed(method, settings, True), aggregation=settings)
    server = make_server(known, 6, np.zeros(SIZE, np.float32))
    server.open({client: summary(1 if client % 2 else -1, client) for client in range(6)})
    assert server.state["group"].tolist() == [0, 1, 0, 1, 0, 1]
    server.admit(6, summary(1, 6), "new")
    assert server.state["group"].tolist() == [0, 1, 0, 1, 0, 1, 1]


def test_an_unsealed_run_has_the_server_that_it_had():
    plain = replace(context(), sums=None)
    assert type(make_server(plain, 3, np.zeros(SIZE, np.float32))) is Server
    assert type(make_server(context(), 3, np.zeros(SIZE, np.float32))) is SealedServer


# -- settings


def values(**changes):
    return {"data": {"source": "t.csv"}, "sealing": {"on": True}, **changes}


@pytest.mark.parametrize(
    ("changes", "start"),
    [
        ({"method": "ce-lora"}, "sealing"),
        ({"method": "local"}, "sealing"),
        ({"method": "rolora"}, "sealing"),
        ({"method": "fed-sb"}, "sealing"),
        ({"method": "own-prior", "personalization": {"share": False}}, "sealing"),
        ({"aggregation": {"rule": "median", "groups": "all", "weights": "equal"}}, "aggregation.rule"),
        ({"aggregation": {"screen": "multi-krum"}}, "aggregation.screen"),
        ({"aggregation": {"groups": "given", "members": [["a", "b"]]}}, "aggregation.members"),
        ({"training": {"class_weights": {"login": 1.0, "a": 1e-30}}}, "training.class_weights"),
        ({"training": {"class_weights": {"login": 21.0}}}, "training.class_weights"),  # the others count 1
        ({"sealing": {"on": True, "levels": 8}}, "sealing.levels"),
        ({"sealing": {"on": True, "at_least": 2}}, "sealing.at_least"),
    ],
)
def test_what_cannot_be_sealed_is_refused(changes, start):
    with pytest.raises(ConfigError) as refused:
        make_config(values(**changes))
    assert any(problem.startswith(start) for problem in refused.value.problems), refused.value.problems


def test_weights_that_differ_little_can_be_sealed():
    """In an open run no client hides behind the others, so weights may differ as they like there."""
    weights = {"training": {"class_weights": {"login": 20.0, "Billing": 1.0}}}
    make_config(values(**weights))
    far = {"training": {"class_weights": {"login": 1e6, "billing": 1e-6}}}
    make_config(values(sealing={"on": False}, **far))


def test_the_seal_counts_for_a_runs_identity_only_where_it_is_on():
    plain = make_config({"data": {"source": "t.csv"}})
    same = make_config(values(sealing={"on": False, "levels": 3}))
    assert same.run_id() == plain.run_id()
    ids = {make_config(values(sealing={"on": True, **more})).run_id() for more in ({}, {"levels": 2})}
    assert len(ids | {plain.run_id()}) == 3


@pytest.mark.parametrize(("clients", "share", "noted"), [(10, 0.2, True), (10, 0.3, False), (3, 0.9, False)])
def test_the_start_says_that_too_few_clients_take_part_in_a_round(clients, share, noted):
    notes = list(sealing_notes(make_config(values(participation=share)), clients))
    assert any(note.startswith("participation: ") for note in notes) == noted


def test_no_exact_summary_leaves_under_a_seal():
    assert make_config(values()).composed_method().summarise is None
    noised = make_config(values(privacy={"summary": {"epsilon": 4}})).composed_method()
    assert noised.summarise is not None
    alone = make_config(values()).with_method("alone")
    assert not alone.sealing.on and not make_config(values()).with_method("local").sealing.on
    assert cannot_seal(METHODS["local"]) and not cannot_seal(METHODS["own-prior"])
    assert RECEIVED in client_of(RULES).receive(np.zeros(SIZE, np.float32), {})


def test_a_comparison_may_seal_one_of_its_methods():
    seal = {"fedavg-lora": {"sealing": {"on": True}}}
    comparison = make_comparison(
        {"methods": ["fedavg-lora", "local"], "run": {"data": {"source": "t.csv"}}, "method_settings": seal}
    )
    on = [comparison.job("runs", "all", name, "seed-0", {}).config.sealing.on for name in comparison.methods]
    assert on == [True, False]
