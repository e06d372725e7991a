"""Batches of an epoch, steps of a round, and the learning rate of each step."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from local_training import chosen

from trifed.federation.training.batches import (
    RoundRandom,
    epoch_batches,
    learning_rate,
    round_batches,
    steps_per_round,
)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=300), st.integers(1, 9), st.integers(0, 99))
def test_an_epoch_is_a_permutation_of_the_rows(lengths, batch_size, seed):
    batches = epoch_batches(np.array(lengths), batch_size, np.random.default_rng(seed))
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(lengths)))
    assert max(map(len, batches)) <= batch_size
    assert len(batches) == steps_per_round(len(lengths), chosen(batch_size=batch_size))


def test_batches_come_in_another_order_for_another_seed_only():
    lengths = np.arange(1, 65)
    first, again, other = (
        list(round_batches(lengths, chosen(), RoundRandom.of(seed, 1, 0))) for seed in (0, 0, 1)
    )
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(first, other, strict=True))
    assert sorted(np.concatenate(first).tolist()) == list(range(64))
    tops = [lengths[batch].max() for batch in first]
    assert tops != sorted(tops)  # short batches do not always come first


def test_clients_take_batches_of_similar_length_at_the_same_step():
    """Of 40 clients with lengths from one distribution, a step is seldom much wider than a client's own batch."""
    rng, wide, own = np.random.default_rng(3), 0, 0
    lengths = [rng.integers(5, 60, rng.integers(150, 250)) for _ in range(40)]
    rounds = [
        list(round_batches(lengths[c], chosen(steps=9, batch_size=16), RoundRandom.of(0, 1, c))) for c in range(40)
    ]
    for step in zip(*rounds, strict=True):
        widths = [lengths[client][rows].max() for client, rows in enumerate(step)]
        wide, own = wide + 40 * max(widths), own + sum(widths)
    assert wide < 1.3 * own


def test_neighbours_in_length_pad_less_than_a_random_order():
    lengths = np.random.default_rng(0).integers(4, 120, 500)
    batches = epoch_batches(lengths, 8, np.random.default_rng(1))
    order = np.random.default_rng(1).permutation(500)
    random_order = [order[i : i + 8] for i in range(0, 500, 8)]

    def padded(rows):
        return sum(len(batch) * lengths[batch].max() for batch in rows)

    assert padded(batches) < 0.75 * padded(random_order)


@pytest.mark.parametrize(
    ("examples", "values", "steps"),
    [
        (0, {}, 0),
        (1, {}, 1),
        (8, {}, 2),
        (9, {"epochs": 2}, 6),
        (9, {"steps": 5}, 5),
        (0, {"steps": 5}, 0),
    ],
)
def test_steps_a_round(examples, values, steps):
    assert steps_per_round(examples, chosen(**values)) == steps


@pytest.mark.parametrize(
    ("values", "total", "expected"),
    [
        ({}, 4, [1, 1, 1, 1]),
        ({"schedule": "linear"}, 4, [1, 3 / 4, 2 / 4, 1 / 4]),  # (total - step) / total: 0 is next
        ({"warmup": 0.5}, 4, [1 / 2, 1, 1, 1]),
        # ceil(0.25 * 8) = 2 rising steps, then (8 - step) / 6.
        ({"schedule": "linear", "warmup": 0.25}, 8, [1 / 2, 1, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6]),
        ({"warmup": 0.1}, 5, [1, 1, 1, 1, 1]),
    ],
)
def test_the_learning_rate_in_closed_form(values, total, expected):
    setting = chosen(learning_rate=0.02, **values)
    rates = [learning_rate(step, total, setting) for step in range(total)]
    np.testing.assert_allclose(rates, 0.02 * np.array(expected), rtol=1e-12)
