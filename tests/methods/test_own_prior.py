"""own-prior: the prior, who shares with whom, and the average by example and by label against plain loops."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import load_file

from trifed import make_config, run
from trifed.data import make_clients
from trifed.methods import METHODS, AggregationSettings, PersonalizationSettings, ServerContext, Upload, compose
from trifed.methods.base import SummarySeeds
from trifed.methods.own_prior import PARTS

METHOD = METHODS["own-prior"]
LAYOUT = (("x.lora_C.weight", (2, 2)), ("head.weight", (3, 4)))
SIZE = 4 + 12
START = np.linspace(-1, 1, SIZE).astype(np.float32)
CENTRES = np.random.default_rng(9).standard_normal((3, 8))


def summary(counts, centres=CENTRES, seed=0):
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(3), counts)
    features = (centres[labels] + 0.3 * rng.standard_normal((len(labels), 8))).astype(np.float32) / 4
    return METHOD.summarise(METHOD.options(), features, labels, SummarySeeds(0, seed))


def with_parts(personalization=None, aggregation=None):
    personal = PersonalizationSettings(**{**PARTS["personalization"], **(personalization or {})})
    return compose(METHOD, personal, AggregationSettings(**{**PARTS["aggregation"], **(aggregation or {})}))


def server(*summaries, layout=LAYOUT, **aggregation):
    method, chosen = with_parts(aggregation=aggregation), METHOD.options()
    context = ServerContext(len(summaries), layout, START[: sum(int(np.prod(s)) for _, s in layout)])
    with_all = ServerContext(context.clients, layout, context.start, dict(enumerate(summaries)))
    state = method.start(chosen, with_all)
    return state, lambda state, sent: method.aggregate(chosen, context, state, sent)


def uploads(clients, counts, size=SIZE, seed=1):
    rng = np.random.default_rng(seed)
    values = {client: rng.standard_normal(size).astype(np.float32) for client in range(10)}
    return [Upload(client, 1, counts[client].sum(), values[client]) for client in clients]


def test_the_bias_starts_at_the_log_of_the_own_label_shares():
    """Counts 3, 1, 0 and ½ added to each: 3.5, 1.5 and 0.5 of 5.5."""
    labels = np.array([0, 0, 1, 0])
    start = with_parts({"prior_smoothing": 0.5}).local_init(METHOD.options(), labels, 3)
    assert list(start) == ["head.bias"] and start["head.bias"].dtype == np.float32
    np.testing.assert_allclose(np.exp(start["head.bias"]), np.array([3.5, 1.5, 0.5]) / 5.5, rtol=1e-6)


def test_a_client_without_examples_starts_with_equal_shares():
    start = METHOD.local_init(METHOD.options(), np.zeros(0, np.int64), 4)
    np.testing.assert_allclose(np.exp(start["head.bias"]), 0.25, rtol=1e-6)


def test_cores_by_examples_and_rows_of_the_head_by_examples_of_their_label():
    counts = np.array([[30, 0, 0], [10, 40, 0], [5, 5, 0]])
    state, aggregate = server(*(summary(row, seed=i) for i, row in enumerate(counts)))
    sent = uploads([0, 1, 2], counts)
    state = aggregate(state, sent)
    expected = START.astype(np.float64).copy()
    expected[:4] = sum(u.examples * u.values[:4].astype(np.float64) for u in sent) / counts.sum()
    for label in (0, 1):  # nobody has label 2: its row stays where it began
        row = slice(4 + 4 * label, 8 + 4 * label)
        behind = sum(counts[u.client, label] * u.values[row].astype(np.float64) for u in sent)
        expected[row] = behind / counts[:, label].sum()
    for client in range(3):
        np.testing.assert_allclose(METHOD.download(state, client), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(state["weights"], np.tile(counts.sum(1) / counts.sum(), (3, 1)), rtol=1e-12)


def test_clients_share_whose_labels_mean_the_same_however_often_they_occur():
    other = [summary(row, CENTRES[[1, 2, 0]], seed=i + 2) for i, row in enumerate(([60, 40, 40], [40, 60, 60]))]
    state, aggregate = server(summary([90, 25, 30]), summary([25, 80, 30], seed=1), *other)
    counts = state["examples"].astype(int)
    sent = uploads(range(4), counts)
    state = aggregate(state, sent)
    pair = np.arange(4) // 2
    np.testing.assert_array_equal(state["weights"] > 0, pair[:, None] == pair[None])
    np.testing.assert_allclose(state["weights"].sum(1), 1, rtol=1e-12)
    mean = np.average([sent[0].values[:4], sent[1].values[:4]], axis=0, weights=[145, 135])
    np.testing.assert_allclose(METHOD.download(state, 0)[:4], mean, rtol=1e-5)
    assert np.array_equal(METHOD.download(state, 0), METHOD.download(state, 1))


def test_whoever_has_no_label_in_common_shares():
    state, _ = server(summary([40, 0, 0]), summary([0, 40, 0]), summary([9, 9, 9]), summary([0, 0, 0]))
    assert (state["similarity_data"] == 1).all()


def test_without_anybody_to_share_with_in_a_round_a_client_keeps_what_it_has():
    other = summary([60, 60, 60], CENTRES[[1, 2, 0]], seed=2)
    state, aggregate = server(summary([60, 60, 60]), summary([50, 60, 60], seed=1), other)
    assert [METHOD.download(state, client) for client in range(3)] == [None] * 3
    counts = state["examples"].astype(int)
    first = aggregate(state, uploads([0], counts))
    assert METHOD.download(first, 2) is None
    np.testing.assert_allclose(METHOD.download(first, 1), uploads([0], counts)[0].values, rtol=1e-6)
    second = aggregate(first, uploads([2], counts, seed=2))
    assert np.array_equal(METHOD.download(second, 1), METHOD.download(first, 1))
    np.testing.assert_allclose(METHOD.download(second, 2), uploads([2], counts, seed=2)[0].values, rtol=1e-6)


def test_the_order_of_the_clients_does_not_matter():
    rows = np.array([[60, 40, 40], [25, 80, 30], [50, 60, 60]])
    made = [summary(row, CENTRES[[1, 2, 0]] if i == 2 else CENTRES, seed=i) for i, row in enumerate(rows)]
    order = [2, 0, 1]
    state, aggregate = server(*made)
    state = aggregate(state, uploads(range(3), rows))
    turned, aggregate = server(*(made[i] for i in order))
    sent = [Upload(place, 1, rows[i].sum(), uploads([i], rows)[0].values) for place, i in enumerate(order)]
    turned = aggregate(turned, sent)
    np.testing.assert_allclose(turned["mixed"], state["mixed"][order], rtol=1e-6)
    np.testing.assert_allclose(turned["weights"], state["weights"][np.ix_(order, order)], rtol=1e-12)


@pytest.mark.parametrize("apart", [0, 1.1, 1e9])
def test_from_how_far_labels_count_as_different_is_a_setting(apart):
    other = summary([60, 60, 60], CENTRES[[1, 2, 0]], seed=2)
    state, aggregate = server(summary([60, 60, 60]), other, agreement=apart)
    state = aggregate(state, uploads(range(2), state["examples"].astype(int)))
    np.testing.assert_array_equal(state["weights"] > 0, np.full((2, 2), True) if apart == 1e9 else np.eye(2))


def test_apart_at_nothing_everybody_is_alone_with_what_it_sent():
    state, aggregate = server(summary([60, 60, 60]), summary([50, 60, 60], seed=1), agreement=0)
    sent = uploads(range(2), state["examples"].astype(int))
    state = aggregate(state, sent)
    np.testing.assert_array_equal(state["weights"], np.eye(2))
    for client in range(2):
        np.testing.assert_allclose(METHOD.download(state, client), sent[client].values, rtol=1e-6)


def test_without_a_head_cores_alone_are_shared():
    state, aggregate = server(summary([40, 0, 0]), summary([0, 60, 0]), layout=LAYOUT[:1])
    counts = np.array([[40], [60]])
    sent = uploads(range(2), counts, size=4)
    mean = 0.4 * sent[0].values + 0.6 * sent[1].values
    np.testing.assert_allclose(METHOD.download(aggregate(state, sent), 0), mean, rtol=1e-5, atol=1e-6)


def state_of(rng, clients, groups):
    """Who shares at random, in groups or not; label 2 is nobody's."""
    apart = rng.integers(0, groups, clients)
    shares = apart[:, None] == apart[None] if groups < clients else np.triu(rng.random((clients, clients)) < 0.4)
    examples = np.where(rng.random((clients, 3)) < 0.3, 0, rng.integers(1, 90, (clients, 3)))
    examples[:, 2] = 0
    return {
        "similarity_data": np.where(shares | shares.T | np.eye(clients, dtype=bool), 1.0, 0.1),
        "examples": examples.astype(np.float64),
        "mixed": rng.standard_normal((clients, SIZE)).astype(np.float32),
        "received": np.zeros(clients, bool),
    }


def one_by_one(state, sent):
    """Σ_j s_ij k_j θ_j / Σ_j s_ij k_j, every client and every value by itself."""
    mixed, weights = state["mixed"].astype(np.float64), np.zeros((len(state["mixed"]),) * 2)
    for i in range(len(mixed)):
        own = [u for u in sent if u.client == i or state["similarity_data"][i, u.client] == 1]
        total = sum(u.examples for u in own)
        for u in own:
            weights[i, u.client] = u.examples / max(total, 1)
        for place in range(SIZE):
            k = [u.examples if place < 4 else state["examples"][u.client, (place - 4) // 4] for u in own]
            if sum(k):
                mixed[i, place] = sum(n * float(u.values[place]) for n, u in zip(k, own, strict=True)) / sum(k)
    return mixed, weights


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("groups", [1, 3, 9])
def test_one_average_for_all_that_share_alike_is_the_average_of_each(groups, seed):
    """In groups, or with other neighbours for everyone; a third does not upload; and in any order."""
    rng = np.random.default_rng([8, seed, groups])
    state = state_of(rng, 9, groups)
    sent = [
        Upload(int(client), 1, int(state["examples"][client].sum()), rng.standard_normal(SIZE).astype(np.float32))
        for client in rng.permutation(9)[:6]
    ]
    chosen, context = METHOD.options(), ServerContext(9, LAYOUT, START)
    found = METHOD.aggregate(chosen, context, state, sent)
    mixed, weights = one_by_one(state, sent)
    np.testing.assert_allclose(found["mixed"], mixed, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(found["weights"], weights, rtol=1e-12)
    order = rng.permutation(9)
    place = np.argsort(order)
    turned = {name: array[order] for name, array in state.items()}
    turned["similarity_data"] = turned["similarity_data"][:, order]
    moved = [Upload(int(place[u.client]), 1, u.examples, u.values) for u in sent]
    again = METHOD.aggregate(chosen, context, turned, moved)
    np.testing.assert_allclose(again["mixed"], found["mixed"][order], rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(again["weights"], found["weights"][np.ix_(order, order)], rtol=1e-12)
    np.testing.assert_array_equal(again["received"], found["received"][order])


def test_in_a_run_every_client_starts_at_its_own_prior(toy_values, tmp_path):
    """Trained at a rate of nothing, the bias is the log of the label shares: in the end validation's count too."""
    training = toy_values()["training"] | {"learning_rate": 1e-12}
    config = make_config(toy_values(method="own-prior", rounds=1, training=training))
    run(config, tmp_path / "run")
    data = make_clients(config.data, config.seed)
    for client in data.clients:
        labels = np.concatenate([client.train.labels, client.valid.labels])
        counts = np.bincount(labels, minlength=len(data.label_names)) + 0.1
        head = load_file(tmp_path / "run" / "clients" / client.name / "head.safetensors")
        (bias,) = (values for name, values in head.items() if name.endswith("bias"))
        np.testing.assert_allclose(np.exp(bias), counts / counts.sum(), atol=1e-6)


def test_a_summary_that_claims_very_many_examples_does_not_own_the_label_rows():
    counts = np.array([[30, 0, 0], [10, 40, 0], [5, 5, 0]])
    made = [summary(row, seed=i) for i, row in enumerate(counts)]
    claimed = replace(made[0], class_counts=np.full_like(made[0].class_counts, 10**9))
    honest, state = (server(first, *made[1:])[0] for first in (made[0], claimed))
    assert honest["examples"].tolist() == counts.tolist()
    assert state["examples"][0].sum() == pytest.approx(10 * 50) and np.array_equal(
        state["examples"][1:], counts[1:]
    )


@pytest.mark.parametrize("rule", ["median", "trimmed-mean"])
def test_a_robust_rule_joins_the_uploads_of_a_group_and_of_a_label(rule):
    """Client 2 has no examples of label 1, so its row does not count there."""
    counts = np.array([[30, 30, 0], [10, 40, 0], [25, 0, 0], [30, 20, 0]])
    state, aggregate = server(*(summary(row, seed=i) for i, row in enumerate(counts)), groups="all", rule=rule)
    sent = uploads([0, 1, 2, 3], counts)
    values = np.stack([u.values.astype(np.float64) for u in sent])
    mixed = aggregate(state, sent)["mixed"]
    join = np.median if rule == "median" else (lambda v, axis: np.sort(v, axis=0)[1:-1].mean(axis))
    np.testing.assert_allclose(mixed[0, :8], join(values[:, :8], axis=0), rtol=1e-6)
    np.testing.assert_allclose(mixed[0, 8:12], join(values[[0, 1, 3], 8:12], axis=0), rtol=1e-6)
    np.testing.assert_array_equal(mixed[0, 12:], START[12:])
