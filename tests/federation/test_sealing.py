"""The numbers of sealed sums without a model: integers, steps, rounding errors, and rows of the head."""

from __future__ import annotations

import numpy as np
import pytest
from sealed_parts import BY_LABEL, LAYOUT, RULES, SIZE, client_of, opened, sum_round

from trifed.federation.compression import block_starts
from trifed.federation.messages import BAD_REPLY, Rejected, encode
from trifed.federation.sealed.numbers import (
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
from trifed.federation.sealed.rules import sizes_of_part
from trifed.federation.sealed.server import UNREADABLE, SumPart
from trifed.federation.sealed.upload import OWN
from trifed.federation.upload import RESIDUAL


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
