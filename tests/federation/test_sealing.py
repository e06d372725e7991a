"""Sealed sums without a model: the integers, the terms, the server's state, and a client's part."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from trifed import make_config
from trifed.common.errors import ConfigError, MessageError
from trifed.config.sealing import sealing_notes
from trifed.config.settings import WireSettings
from trifed.experiments.compare_config import make_comparison
from trifed.federation.compression import Compression, block_starts, make_compression
from trifed.federation.context import RunContext
from trifed.federation.messages import BAD_REPLY, Header, Rejected, encode
from trifed.federation.sealed_numbers import (
    bits_of_count,
    bits_of_sum,
    centred,
    first_steps,
    magnitudes,
    modulo,
    next_steps,
    of_each,
    pack_bits,
    to_levels,
    unpack_bits,
)
from trifed.federation.sealed_round import open_sums
from trifed.federation.sealed_server import (
    INCOMPLETE,
    NO_PART,
    OF_CLIENTS,
    UNREADABLE,
    SealedServer,
    SumPart,
    make_server,
)
from trifed.federation.sealed_upload import OWN, PENDING, SealedUploads, held_labels
from trifed.federation.sealing import SumRules, SumTerms, placeholder_keys, sizes_of_part
from trifed.federation.server import Server
from trifed.federation.transport import Reply
from trifed.federation.upload import RECEIVED, RESIDUAL
from trifed.methods import METHODS, AggregationSettings, PersonalizationSettings, compose
from trifed.methods.base import SummarySeeds
from trifed.methods.sealed import ALONE, cannot_seal, sealed

LAYOUT = (("x.lora_C.weight", (20, 20)), ("head.weight", (3, 100)))
SIZE = 700
RULES = SumRules(at_least=3, levels=1, learning_rate=0.02, by_label=False)
BY_LABEL = replace(RULES, by_label=True)


def context(rules=RULES, bits=1, **aggregation):
    settings = AggregationSettings(**aggregation)
    method = sealed(compose(METHODS["fed-xs"], PersonalizationSettings(), settings), settings, False)
    downloads = make_compression(LAYOUT, WireSettings(bits=bits))
    return RunContext(
        method, method.options(), downloads, downloads, LAYOUT, "run", "base", 20, aggregation=settings, sums=rules
    )


def opened(n=4, rules=RULES, bits=1, names=(), **aggregation):
    server = make_server(context(rules, bits, **aggregation), n, np.zeros(SIZE, np.float32), names)
    server.open({})
    return server


def client_of(rules, *labels):
    return SealedUploads(Compression(LAYOUT), rules, held_labels(np.array(labels), rules.labels(LAYOUT)))


def sum_round(server, clients, number, changes, memories, mask=lambda client: None):
    """One sum of the changes, by index of the client; returns the terms and why it was refused."""
    sum_terms = server.terms(number, sorted(changes))
    parts = []
    for client in sorted(changes):
        header = server.context.header("upload", number, client)
        if number:
            memories[client][PENDING] = changes[client]
        payload, memories[client] = clients[client].send(header, sum_terms, memories[client], mask(client))
        parts.append(server.read_part(number, client, payload, sum_terms))
        assert not isinstance(parts[-1], Rejected)
    return sum_terms, server.add(number, sum_terms, parts)


@pytest.mark.parametrize(
    ("n", "levels", "bits"), [(2, 1, 3), (3, 1, 3), (4, 1, 4), (10, 1, 5), (10, 7, 8), (100, 1, 8)]
)
def test_the_bits_are_the_fewest_that_hold_every_sum(n, levels, bits):
    assert bits_of_sum(n, levels) == bits == int(np.ceil(np.log2(2 * n * levels + 1)))
    assert bits_of_count(n) == int(np.ceil(np.log2(n + 1))) + 1
    every = np.arange(-n * levels, n * levels + 1)
    assert (centred(modulo(every, bits), bits) == every).all()
    packed = pack_bits(modulo(every, bits), bits)
    assert len(packed) == -(-len(every) * bits // 8)
    assert (unpack_bits(packed, len(every), bits) == modulo(every, bits)).all()


@pytest.mark.parametrize("bits", [1, 32])
def test_a_sum_equals_ten_lines_of_numpy(bits):
    rng, server = np.random.default_rng(0), opened(bits=bits)
    clients, memories = [client_of(RULES)] * 4, [{} for _ in range(4)]
    changes = {i: (0.1 * rng.standard_normal(SIZE)).astype(np.float32) for i in range(4)}
    sum_terms, wrong = sum_round(server, clients, 1, changes, memories)
    step = np.float32(np.float16(0.1))
    levels = [np.clip(np.rint(changes[i] / step), -1, 1) for i in range(4)]
    assert wrong is None and set(sum_terms.steps) == {np.float16(0.1)}
    np.testing.assert_allclose(server.state["wanted"][0], step * np.sum(levels, axis=0) / 4, rtol=1e-6)
    for i in range(4):
        np.testing.assert_allclose(memories[i][RESIDUAL], changes[i] - step * levels[i], atol=1e-7)
    if bits == 32:
        np.testing.assert_array_equal(server.state["now"][0], server.state["wanted"][0])
    # The next steps: 1.5 times the mean magnitude of a block, as the sum of rounded ones has it.
    means = np.mean([np.add.reduceat(np.abs(changes[i]), block_starts(LAYOUT)) for i in range(4)], axis=0)
    np.testing.assert_allclose(
        server.state["steps"][0].astype(float), 1.5 * means / [256, 144, 256, 44], rtol=0.01
    )


def test_masks_that_cancel_change_nothing_and_hide_each_part():
    """Two clients add and subtract one stream, modulo the bits that they are told."""
    rng = np.random.default_rng(0)
    changes = {i: (0.1 * rng.standard_normal(SIZE)).astype(np.float32) for i in range(3)}
    told = []

    def mask(client):
        stream = np.random.default_rng(7)
        sign = {0: 1, 1: -1, 2: 0}[client]

        def add(integers, bits):
            told.append((len(integers), bits))
            return (
                integers + np.uint32(sign % 2**32) * stream.integers(2**bits, size=len(integers), dtype=np.uint32)
            ) % np.uint32(2**bits)

        return add

    states = []
    for masks in (mask, lambda client: None):
        server = opened(3)
        assert sum_round(server, [client_of(RULES)] * 3, 1, changes, [{} for _ in range(3)], masks)[1] is None
        states.append(server.state)
    assert all((states[0][name] == states[1][name]).all() for name in states[0])
    assert set(told) == {(SIZE, 3), (4, 16)}


def test_rounding_errors_are_not_lost():
    """Delivered changes and what clients and server owe add up to the wanted changes, over all rounds."""
    rng, server = np.random.default_rng(1), opened(3)
    clients, memories = [client_of(RULES)] * 3, [{} for _ in range(3)]
    wanted, before = np.zeros(SIZE), server.state["now"][0].astype(float)
    for number in range(1, 8):
        changes = {i: (rng.standard_normal(SIZE) * rng.uniform(0.01, 0.2)).astype(np.float32) for i in range(3)}
        assert sum_round(server, clients, number, changes, memories)[1] is None
        wanted += np.mean(list(changes.values()), axis=0)
    owed = np.mean([memories[i][RESIDUAL] for i in range(3)], axis=0)
    rounding = server.state["wanted"][0] - server.state["now"][0]
    np.testing.assert_allclose(server.state["now"][0] - before + rounding + owed, wanted, atol=1e-4)
    assert np.abs(owed).mean() < 0.2  # and it stays small: the steps follow the changes


def test_the_steps_follow_what_clients_send_and_no_further_than_eight_times():
    steps, senders = first_steps(LAYOUT, 0.02), np.full(4, 4.0)
    layout_steps = of_each(steps, LAYOUT)
    assert len(layout_steps) == SIZE and (to_levels(np.zeros(SIZE, np.float32), layout_steps, 1) == 0).all()
    for size, expected in ((0.2, 0.3), (1e-5, 0.1 / 8), (9.0, 0.8)):
        change = np.full(SIZE, size, np.float32)
        total = 4 * magnitudes(change, steps, LAYOUT, 4)
        found = next_steps(steps, total, senders, 4, 1, steps)
        if size == 1e-5:  # nothing was there to be counted: the step stays
            assert (total == 0).all() and (found == steps).all()
        else:
            np.testing.assert_allclose(found.astype(float), expected, rtol=0.01)
    # Half of the clients send nothing of a block, which its magnitudes do not make smaller.
    total = 2 * magnitudes(np.full(SIZE, 0.2, np.float32), steps, LAYOUT, 4)
    np.testing.assert_allclose(next_steps(steps, total, senders / 2, 4, 1, steps).astype(float), 0.3, rtol=0.01)
    largest = magnitudes(np.full(SIZE, 1e9, np.float32), steps, LAYOUT, 1000)
    assert largest.max() * 1000 < 2**16
    # One client that always says the most cannot drive the steps beyond 64 times the first ones.
    found = steps
    for _ in range(5):
        found = next_steps(
            found, magnitudes(np.full(SIZE, 1e9, np.float32), found, LAYOUT, 4), senders, 4, 1, steps
        )
    np.testing.assert_allclose(found.astype(float), 64 * steps.astype(float), rtol=1e-3)


def test_a_sum_out_of_range_is_refused_and_changes_nothing():
    server = opened(3)
    before = {name: array.copy() for name, array in server.state.items()}
    sum_terms = server.terms(1, [0, 1, 2])
    assert bits_of_sum(3, 1) == 3  # of −4 to 3, a sum of three levels is −3 to 3
    parts = []
    for client, level in ((0, 2), (1, 1), (2, 1)):
        integers = pack_bits(modulo(np.full(SIZE, level), 3), 3)
        payload = encode(
            server.context.header("upload", 1, client), {"sum": integers, "magnitudes": np.zeros(4, np.uint16)}
        )
        parts.append(server.read_part(1, client, payload, sum_terms))
    wrong = server.add(1, sum_terms, parts)
    assert wrong is not None and wrong.code == UNREADABLE
    assert all((server.state[name] == before[name]).all() for name in before)


@pytest.mark.parametrize("n", [3, 4, 7])
def test_more_holders_of_a_label_than_clients_are_found(n):
    """With 3 and 7 clients too, where the fewest bits have no number above n."""
    server = opened(n, BY_LABEL)
    sum_terms = server.terms(0, range(n))
    largest = np.full(3, 2 ** bits_of_count(n) - 1, np.uint32)  # what a mask that does not cancel can leave
    parts = [
        SumPart(largest if client == 0 else np.zeros(3, np.uint32), np.zeros(0, np.uint32)) for client in range(n)
    ]
    wrong = server.add(0, sum_terms, parts)
    assert wrong is not None and wrong.code == UNREADABLE
    assert not server.state["holders"].any() and not server.state["opening"].any()


def test_magnitudes_that_no_clients_can_have_sent_are_refused():
    server = opened(4)
    sum_terms = server.terms(1, range(4))
    parts = [SumPart(np.zeros(SIZE, np.uint32), np.full(4, units, np.uint32)) for units in (65533, 0, 0, 0)]
    wrong = server.add(1, sum_terms, parts)  # four clients send up to 16383 units each, so up to 65532
    assert wrong is not None and wrong.code == UNREADABLE and server.state["sums"].tolist() == [0]


@pytest.mark.parametrize(
    "arrays",
    [
        {"sum": np.zeros(3, np.uint8), "magnitudes": np.zeros(4, np.uint16)},
        {"sum": np.zeros(263, np.uint8), "magnitudes": np.zeros(4, np.uint32)},
        {"sum": np.zeros(263, np.uint8)},
        {"values": np.zeros(SIZE, np.float32)},
    ],
)
def test_a_part_that_is_none_is_refused(arrays):
    server = opened(3)
    found = server.read_part(
        1, 0, encode(server.context.header("upload", 1, 0), arrays), server.terms(1, [0, 1, 2])
    )
    assert isinstance(found, Rejected) and found.code == BAD_REPLY
    assert sizes_of_part(LAYOUT, 3, RULES) == {"x.lora_C.weight": 150 + 4, "head.weight": 113 + 4}


# -- rows of the head


def with_holders(*held):
    """A server after its opening sum, with its clients; `held`: the labels of each."""
    server = opened(len(held), BY_LABEL, weights="label-rows")
    clients, memories = [client_of(BY_LABEL, *labels) for labels in held], [{} for _ in held]
    assert sum_round(server, clients, 0, dict.fromkeys(range(len(held))), memories)[1] is None
    return server, clients, memories


def test_a_row_is_averaged_over_its_holders_and_a_rare_one_is_sent_by_nobody():
    server, clients, memories = with_holders([0, 1], [0, 1], [0, 1], [0], [0, 2])
    assert server.state["holders"][0].tolist() == [5, 3, 1]
    changes = {i: np.full(SIZE, 0.1, np.float32) for i in range(5)}
    sum_round(server, clients, 1, changes, memories)
    found, step = server.state["wanted"][0], float(np.float16(0.1))
    np.testing.assert_allclose(found[:600], step, rtol=1e-5)  # rows of labels 0 and 1 too: by 3 holders, not 5
    assert (found[600:] == 0).all()
    # Row 2 is no part of any sum: every client, its holder too, keeps its own, and nothing of it is owed.
    for client in range(5):
        assert memories[client][OWN][600:].all() and not memories[client][OWN][:600].any()
        assert (memories[client][RESIDUAL][600:] == 0).all()


def test_a_row_rests_while_too_few_of_its_holders_can_be_sure_to_be_there():
    server, clients, memories = with_holders([0, 1], [0, 1], [0, 1], [0], [0])
    changes = {i: np.full(SIZE, 0.1, np.float32) for i in range(4)}  # the fifth is absent
    sum_terms, _ = sum_round(server, clients, 1, changes, memories)
    assert BY_LABEL.summed_labels(sum_terms).tolist() == [True, False, False]
    found, step = server.state["wanted"][0], float(np.float16(0.1))
    np.testing.assert_allclose(found[:500], step, rtol=1e-5)
    assert (found[500:] == 0).all()
    # Meanwhile each client keeps its own row, so that its training is not lost, until a sum has the row again.
    assert memories[0][OWN][500:600].all() and not memories[0][OWN][:500].any()
    sum_round(server, clients, 2, {i: np.full(SIZE, 0.1, np.float32) for i in range(5)}, memories)
    assert (server.state["wanted"][0][500:600] > 0).all() and not memories[0][OWN][:600].any()


def test_nothing_is_kept_as_own_once_every_row_is_summed():
    server, clients, memories = with_holders([0, 1, 2], [0, 1, 2], [0, 1], [0, 1, 2])
    for number, present, own in ((1, range(3), False), (2, range(2), True), (3, range(4), False)):
        changes = {i: np.full(SIZE, 0.1, np.float32) for i in (*present, 3)}
        sum_round(server, clients, number, {i: changes[i] for i in sorted(changes)}, memories)
        assert (OWN in memories[3]) == own


def test_who_was_opened_again_no_longer_counts_as_a_holder():
    server, clients, memories = with_holders([0, 1], [0, 1], [0, 1], [0], [0])
    server.admit(1, None, "b")
    sum_terms = server.terms(1, range(5))
    assert (sum_terms.opening, sum_terms.changed) == ([0, 1, 2, 3, 4], [1])
    assert BY_LABEL.summed_labels(sum_terms).tolist() == [True, False, False]
    assert BY_LABEL.summed_labels(server.terms(1, [0, 2, 3, 4])).tolist() == [True, False, False]  # absent once
    clients[1] = client_of(BY_LABEL, 2)
    sum_round(server, clients, 1, {i: np.full(SIZE, 0.1, np.float32) for i in range(5)}, memories)
    assert (server.state["wanted"][0][500:] == 0).all() and memories[1][OWN][500:].all()


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
    assert not server.references.confirmed and not server.references.uploaded


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
        ({"privacy": {"update": {"epsilon": 8}, "summary": {"epsilon": 8}}}, "privacy.update"),
        ({"aggregation": {"groups": "given", "members": [["a", "b"]]}}, "aggregation.members"),
        ({"sealing": {"on": True, "levels": 8}}, "sealing.levels"),
        ({"sealing": {"on": True, "at_least": 2}}, "sealing.at_least"),
    ],
)
def test_what_cannot_be_sealed_is_refused(changes, start):
    with pytest.raises(ConfigError) as refused:
        make_config(values(**changes))
    assert any(problem.startswith(start) for problem in refused.value.problems), refused.value.problems


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
