"""ce-lora: C̄_i = Σ_j w_ij C_j with a row-stochastic W from data and model similarity."""

from __future__ import annotations

import math

import numpy as np
import pytest
from pydantic import ValidationError

from trifed import similarity as sim
from trifed.methods import METHODS, ServerContext, Upload
from trifed.methods.base import SummarySeeds

METHOD = METHODS["ce-lora"]
RANK = 4
LAYOUT = tuple((f"layer.{i}.lora_C.weight", (RANK, RANK)) for i in range(2))
START = np.tile(np.eye(RANK, dtype=np.float32).ravel(), 2)
MEASURES = ["cosine", "cka", "cka-biased"]


def options(**values):
    return METHOD.options(**values)


def summaries(centres: list[float], chosen=None):
    """A client for each centre: 60 examples of two classes, whose features lie around that centre."""
    found = {}
    for client, centre in enumerate(centres):
        rng = np.random.default_rng(client)
        labels = np.arange(60) % 2
        features = 0.05 * rng.standard_normal((60, 16)) + 0.1 * labels[:, None]
        features[:, 0] += centre
        found[client] = METHOD.summarise(
            chosen or options(), features.astype(np.float32), labels, SummarySeeds(0, client)
        )
    return found


def begin(chosen, centres):
    context = ServerContext(len(centres), LAYOUT, START, summaries(centres, chosen))
    return context, METHOD.start(chosen, context)


def test_the_noise_floor_is_an_option():
    """Without it distances are those of the summaries: alike clients are not at 0, and similarities differ."""
    with_floor, without = (begin(options(noise_floor=on), [0.0, 0.0, 0.7])[1] for on in (True, False))
    found = summaries([0.0, 0.0, 0.7])
    distances = sim.pairwise_distances([found[client] for client in range(3)], match_labels=False)
    expected = sim.similarity_from_distances(distances)
    np.testing.assert_array_equal(without["similarity_data"], expected)
    assert not np.array_equal(with_floor["similarity_data"], expected)


def upload(client: int, values, round_number: int = 1) -> Upload:
    return Upload(client, round_number, 10, np.asarray(values, np.float32))


def planted(groups: list[int], seed: int = 0, noise: float = 0.3) -> list[np.ndarray]:
    """Cores whose change is that of their group, plus noise of their own."""
    rng = np.random.default_rng(seed)
    changes = rng.standard_normal((max(groups) + 1, len(START)))
    own = noise * rng.standard_normal((len(groups), len(START)))
    return [(START + 0.1 * (changes[g] + own[i])).astype(np.float32) for i, g in enumerate(groups)]


@pytest.mark.parametrize("measure", MEASURES)
def test_rows_sum_to_one_and_mixed_is_their_average_of_the_cores(measure):
    chosen = options(model_similarity=measure)
    context, state = begin(chosen, [0.0, 0.0, 0.7, 0.9])
    cores = planted([0, 0, 1, 1])
    after = METHOD.aggregate(chosen, context, state, [upload(i, core) for i, core in enumerate(cores)])
    weights = after["weights"]
    assert weights.shape == (4, 4) and (weights >= 0).all()
    np.testing.assert_allclose(weights.sum(1), 1.0, atol=1e-12)
    np.testing.assert_allclose(np.diag(weights), 0.5, atol=1e-12)
    for client in range(4):
        by_hand = sum(weights[client, j] * cores[j].astype(np.float64) for j in range(4))
        received = METHOD.download(after, client)
        assert received.dtype == np.float32
        np.testing.assert_allclose(received, by_hand, rtol=1e-5, atol=1e-7)
    combined = 0.5 * after["similarity_data"] + 0.5 * after["similarity_model"]
    best_other = np.where(np.eye(4, dtype=bool), -np.inf, combined).argmax(1)
    assert np.array_equal(np.where(np.eye(4, dtype=bool), -np.inf, weights).argmax(1), best_other)


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("data_share", [0.0, 0.5, 1.0])
def test_a_client_gets_more_from_its_own_group(measure, data_share):
    chosen = options(model_similarity=measure, data_share=data_share)
    groups = [0, 1, 0, 1]
    context, state = begin(chosen, [0.0, 0.8, 0.0, 0.8])
    after = METHOD.aggregate(chosen, context, state, [upload(i, core) for i, core in enumerate(planted(groups))])
    for i, group in enumerate(groups):
        inside = [after["weights"][i, j] for j in range(4) if groups[j] == group and j != i]
        across = [after["weights"][i, j] for j in range(4) if groups[j] != group]
        assert min(inside) > max(across)


def test_clients_are_not_known_by_their_place():
    chosen = options()
    centres, order = [0.0, 0.5, 0.9, 0.1, 0.6], [3, 0, 4, 2, 1]
    cores, told = planted([0, 1, 1, 0, 2]), summaries(centres)
    absent = {4}

    def outcome(places: list[int]):
        context = ServerContext(5, LAYOUT, START, {new: told[old] for new, old in enumerate(places)})
        state = METHOD.start(chosen, context)
        sent = [upload(new, cores[old]) for new, old in enumerate(places)]
        state = METHOD.aggregate(chosen, context, state, sent)
        later = [upload(n, 2 * cores[old], 2) for n, old in enumerate(places) if old not in absent]
        return METHOD.aggregate(chosen, context, state, later[::-1])

    plain, moved = outcome(list(range(5))), outcome(order)
    for name in ("weights", "similarity_data", "similarity_model"):
        np.testing.assert_allclose(moved[name], plain[name][np.ix_(order, order)], rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(moved["mixed"], plain["mixed"][order], rtol=1e-5, atol=1e-6)
    assert not np.allclose(plain["weights"], plain["weights"][np.ix_(order, order)])  # it could have failed


def test_a_self_weight_of_one_gives_back_each_clients_own_core():
    chosen = options(self_weight=1.0)
    context, state = begin(chosen, [0.0, 0.5, 0.9])
    cores = planted([0, 1, 2])
    after = METHOD.aggregate(chosen, context, state, [upload(i, core) for i, core in enumerate(cores)])
    for client, core in enumerate(cores):
        assert np.array_equal(METHOD.download(after, client), core)


def alike(**values):
    """Three clients with one and the same summary, so that every distance is 0 and S_data is 1 everywhere."""
    chosen = options(data_share=1.0, self_weight=0.4, memory=5.0, **values)
    same = summaries([0.0])[0]
    context = ServerContext(3, LAYOUT, START, dict.fromkeys(range(3), same))
    return chosen, context, METHOD.start(chosen, context)


def test_an_absent_client_decays_with_its_age():
    # λ = 1 and S = 1: w_ij ∝ decay_j for j ≠ i, decay_j = exp(-age_j / 5), the rest of the row is 1 - 0.4.
    # Round 1: all three. Rounds 2 and 3: clients 0 and 1. So client 2 is two rounds old: q = exp(-2/5).
    chosen, context, state = alike()
    cores = planted([0, 1, 2])
    state = METHOD.aggregate(chosen, context, state, [upload(i, cores[i], 1) for i in range(3)])
    np.testing.assert_allclose(state["weights"], 0.3 + 0.1 * np.eye(3), rtol=1e-12)
    for number in (2, 3):
        state = METHOD.aggregate(chosen, context, state, [upload(i, cores[i], number) for i in range(2)])
    q = math.exp(-2 / 5)
    expected = [
        [0.4, 0.6 / (1 + q), 0.6 * q / (1 + q)],
        [0.6 / (1 + q), 0.4, 0.6 * q / (1 + q)],
        [0.3, 0.3, 0.4],
    ]
    np.testing.assert_allclose(state["weights"], expected, rtol=1e-12)
    assert state["last_round"].tolist() == [3, 3, 1]
    np.testing.assert_array_equal(state["cores"][2], cores[2])  # its newest core is kept

    # It comes back: as fresh as the others.
    state = METHOD.aggregate(chosen, context, state, [upload(i, cores[i], 4) for i in range(3)])
    np.testing.assert_allclose(state["weights"], 0.3 + 0.1 * np.eye(3), rtol=1e-12)


def test_a_client_that_never_sent_counts_for_nobody_but_still_receives():
    chosen, context, state = alike()
    cores = planted([0, 1, 2])
    state = METHOD.aggregate(chosen, context, state, [upload(i, cores[i], 1) for i in range(2)])
    assert state["weights"][0].tolist() == pytest.approx([0.4, 0.6, 0.0])
    assert state["weights"][1].tolist() == pytest.approx([0.6, 0.4, 0.0])
    # A newcomer's own core says nothing, and S_data alone decides between the others, who are all alike.
    assert state["weights"][2].tolist() == pytest.approx([0.5, 0.5, 0.0])
    assert METHOD.download(state, 2) is not None


def test_one_client_alone_gets_its_own_core_back():
    chosen = options()
    context, state = begin(chosen, [0.0])
    core = planted([0])[0]
    after = METHOD.aggregate(chosen, context, state, [upload(0, core)])
    assert after["weights"].tolist() == [[1.0]]
    assert np.array_equal(METHOD.download(after, 0), core)


def test_state_in_state_out():
    chosen = options()
    context, state = begin(chosen, [0.0, 0.5])
    before = {name: array.copy() for name, array in state.items()}
    cores = planted([0, 1])
    first = METHOD.aggregate(chosen, context, state, [upload(i, core) for i, core in enumerate(cores)])
    assert set(state) == set(before)
    assert all(np.array_equal(state[name], before[name]) for name in before)
    again = METHOD.aggregate(chosen, context, state, [upload(i, core) for i, core in enumerate(cores)])
    assert all(np.array_equal(first[name], again[name]) for name in first)


def test_unlike_data_alone_separates_clients_before_their_cores_do():
    chosen = options(model_similarity="cosine")
    _, state = begin(chosen, [0.0, 0.8, 0.0])
    np.testing.assert_allclose(np.diag(state["similarity_data"]), 1.0)
    assert state["similarity_data"][0, 2] > state["similarity_data"][0, 1]


@pytest.mark.parametrize(
    "wrong",
    [
        {"data_share": 1.5},
        {"data_share": -0.1},
        {"self_weight": 1.01},
        {"temperature": 0},
        {"memory": 0},
        {"model_similarity": "euclid"},
        {"lambda": 0.5},
    ],
)
def test_options_are_validated(wrong):
    with pytest.raises(ValidationError):
        options(**wrong)
