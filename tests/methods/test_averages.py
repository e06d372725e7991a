"""Each method's server against ten lines of NumPy: Σ_j w_j θ_j over the round's uploads."""

from __future__ import annotations

import numpy as np
import pytest

from trifed.methods import METHODS, ServerContext, Upload
from trifed.methods.base import Gradient, directions
from trifed.methods.packing import pack, unpack

SIZE, CLIENTS = 23, 4
LAYOUT = (("x.lora_A.weight", (2, 5)), ("x.lora_B.weight", (5, 2)), ("head.bias", (3,)))
START = np.linspace(-1, 1, SIZE).astype(np.float32)
SETTING = ServerContext(CLIENTS, LAYOUT, START)
BY_EXAMPLES = [
    "fed-sb", "fed-xs", "fedavg-full", "fedavg-lora", "feddpa", "fedper-lora", "fedprox-lora", "fedrod-lora",
    "fedsa-lora", "ffa-lora", "rolora",
]  # fmt: skip


def uploads(examples, round_number=1):
    rng = np.random.default_rng(round_number)
    return [
        Upload(client, round_number, count, rng.standard_normal(SIZE).astype(np.float32))
        for client, count in examples.items()
    ]


def average(sent, weights):
    total = np.zeros(SIZE)
    for upload, weight in zip(sent, weights, strict=True):
        total += weight / sum(weights) * upload.values.astype(np.float64)
    return total


def round_of(method, state, sent, **options):
    chosen = method.options(**options)
    return method.aggregate(chosen, SETTING, state or method.start(chosen, SETTING), sent)


@pytest.mark.parametrize("examples", [{0: 10, 1: 20, 2: 30, 3: 5}, {0: 10, 2: 30, 3: 60}, {1: 7}])
@pytest.mark.parametrize("name", [*BY_EXAMPLES, "fedavg-tri"])
def test_the_mean_over_those_who_took_part(name, examples):
    method, sent = METHODS[name], uploads(examples)
    state = round_of(method, {}, sent)
    weights = [1] * len(sent) if name == "fedavg-tri" else list(examples.values())
    for client in range(CLIENTS):  # those who were absent get it too
        received = method.download(state, client)
        assert received.dtype == np.float32
        np.testing.assert_allclose(received, average(sent, weights), rtol=1e-6, atol=1e-7)
    row = np.zeros(CLIENTS)
    row[list(examples)] = np.array(weights) / sum(weights)
    np.testing.assert_allclose(state["weights"], np.tile(row, (CLIENTS, 1)), rtol=1e-12)


@pytest.mark.parametrize("name", [*BY_EXAMPLES, "fedavg-tri"])
def test_only_this_rounds_uploads_count_and_none_change_nothing(name):
    method = METHODS[name]
    second = uploads({2: 9}, 2)
    state = round_of(method, round_of(method, {}, uploads({0: 5, 1: 5})), second)
    assert np.array_equal(method.download(state, 0), second[0].values)
    assert round_of(method, state, []) is state
    assert method.download(method.start(method.options(), SETTING), 0) is None


def test_what_a_turn_of_rolora_leaves_comes_back_bit_for_bit_and_the_products_average_exactly():
    """With one A at all clients, mean(B_j) A = mean(B_j A); a mean of equal numbers has to be that number."""
    method, examples = METHODS["rolora"], {0: 10, 1: 23, 3: 7}
    sent = uploads(examples)
    common = unpack(START, LAYOUT)["x.lora_A.weight"]
    sent = [
        Upload(
            each.client, 1, each.examples, pack({**unpack(each.values, LAYOUT), "x.lora_A.weight": common}, LAYOUT)
        )
        for each in sent
    ]
    got = unpack(method.download(round_of(method, {}, sent), 2), LAYOUT)
    np.testing.assert_array_equal(got["x.lora_A.weight"], common)
    exact = sum(
        each.examples / 40 * unpack(each.values, LAYOUT)["x.lora_B.weight"].astype(np.float64) @ common
        for each in sent
    )
    np.testing.assert_allclose(got["x.lora_B.weight"] @ common, exact, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("beta", [1.0, 0.25])
def test_pfedme_takes_a_share_beta_of_the_way_to_the_mean(beta):
    method = METHODS["pfedme-lora"]
    first, second = uploads({0: 10, 1: 30}, 1), uploads({1: 5, 3: 15}, 2)
    expected = START.astype(np.float64)
    state = {}
    for sent, counts in ((first, [10, 30]), (second, [5, 15])):
        expected = (1 - beta) * expected + beta * average(sent, counts)
        state = round_of(method, state, sent, beta=beta)
        np.testing.assert_allclose(method.download(state, 2), expected, rtol=1e-5, atol=1e-6)


def test_fedex_sends_what_the_means_of_a_and_b_lose_and_adds_it_up():
    """B̄ Ā + R = Σ w_i B_i A_i + (the R that the clients had), in every round and for clients that were absent."""
    method, rng = METHODS["fedex-lora"], np.random.default_rng(0)
    shapes = {"x.lora_A.weight": (2, 5), "x.lora_B.weight": (4, 2), "x.lora_R.weight": (4, 5), "head.bias": (3,)}
    sent, received = directions(method, tuple(shapes.items()))
    assert dict(received) == shapes and dict(sent) == {n: s for n, s in shapes.items() if n != "x.lora_R.weight"}
    context = ServerContext(CLIENTS, sent, np.zeros(21, np.float32), received=received)
    state, residual = method.start(method.options(), context), np.zeros((4, 5))
    for number, examples in ((1, {0: 10, 1: 30}), (2, {1: 5, 3: 15}), (3, {2: 1})):
        own = {c: {n: rng.standard_normal(s).astype(np.float32) for n, s in sent} for c in examples}
        uploads = [Upload(c, number, n, pack(own[c], sent)) for c, n in examples.items()]
        state = method.aggregate(method.options(), context, state, uploads)
        share = {c: n / sum(examples.values()) for c, n in examples.items()}
        mean = {n: sum(share[c] * own[c][n].astype(np.float64) for c in own) for n, _ in sent}
        changes = {c: own[c]["x.lora_B.weight"] @ own[c]["x.lora_A.weight"].astype(np.float64) for c in own}
        exact = sum(share[c] * change for c, change in changes.items())
        for client in range(CLIENTS):
            got = unpack(method.download(state, client), received)
            for name, values in mean.items():
                np.testing.assert_allclose(got[name], values, rtol=1e-6, atol=1e-7)
            product = got["x.lora_B.weight"] @ got["x.lora_A.weight"]
            np.testing.assert_allclose(product + got["x.lora_R.weight"], exact + residual, atol=1e-5)
        residual = residual + exact - mean["x.lora_B.weight"] @ mean["x.lora_A.weight"]
    assert np.abs(residual).max() > 0.1  # of one client alone nothing is lost, but earlier rounds stay
    assert method.aggregate(method.options(), context, state, []) is state


def test_fedalt_sends_each_client_the_even_mean_of_the_others_last_factors():
    method, rng = METHODS["fedalt"], np.random.default_rng(0)
    shapes = {
        f"x.lora_{part}.weight": shape
        for part, shape in {"A": (2, 5), "B": (4, 2), "rest_A": (2, 5), "rest_B": (4, 2)}.items()
    }
    sent, received = directions(method, tuple(shapes.items()))
    assert [name for name, _ in sent] == ["x.lora_A.weight", "x.lora_B.weight"]
    assert [name for name, _ in received] == ["x.lora_rest_A.weight", "x.lora_rest_B.weight"]
    context = ServerContext(CLIENTS, sent, np.zeros(18, np.float32), received=received)
    state, last = method.start(method.options(), context), {}
    for number, clients in ((1, [1]), (2, [0, 1, 3])):
        for client in clients:
            last[client] = rng.standard_normal(18).astype(np.float32)
        uploads = [Upload(client, number, 10 * (client + 1), last[client]) for client in clients]
        state = method.aggregate(method.options(), context, state, uploads)
        for client in range(CLIENTS):
            others = [values for other, values in last.items() if other != client]
            got = method.download(state, client)
            if not others:
                assert got is None
                continue
            np.testing.assert_allclose(got, np.mean(others, axis=0, dtype=np.float64), rtol=1e-6)
            assert state["weights"][client].sum() == pytest.approx(1) and state["weights"][client, client] == 0
    gone = method.on_membership_change(method.options(), context, state, [3])
    np.testing.assert_array_equal(method.download(gone, 0), last[1])


def test_fed_sb_starts_at_the_best_low_rank_form_of_the_first_full_step():
    method, rng, eta = METHODS["fed-sb"], np.random.default_rng(0), 0.5
    parts = [rng.standard_normal((6, 4)).astype(np.float32) for _ in range(2)]
    gradients = [Gradient(0, 10, {"x": parts[0]}), Gradient(1, 30, {"x": parts[1]})]
    shared_projections = method.shared_projections(method.options(first_step=eta), gradients, 2)
    assert {name: values.shape for name, values in shared_projections.items()} == {
        "x.lora_A.weight": (2, 4), "x.lora_B.weight": (6, 2), "x.lora_C.weight": (2, 2),
    }  # fmt: skip
    a, b, c = (shared_projections[f"x.lora_{part}.weight"] for part in "ABC")
    step = -eta * np.sign(0.25 * parts[0] + 0.75 * parts[1])
    # Eckart-Young: the error of the best rank-2 approximation is the energy in the other singular values.
    left_out = np.linalg.svd(step, compute_uv=False)[2:]
    assert np.linalg.norm(step - b @ c @ a) == pytest.approx(np.linalg.norm(left_out), rel=1e-5)
    np.testing.assert_allclose(a @ a.T, np.eye(2), atol=1e-6)
    np.testing.assert_allclose(b.T @ b, np.eye(2), atol=1e-6)
    assert np.allclose(c, np.diag(np.diag(c))) and (np.diag(c) > 0).all()


CORES = (("x.lora_C.weight", (2, 2)), ("y.lora_C.weight", (2, 2)))


def test_co_lora_like_averages_by_the_cosine_of_the_changes():
    method, rng = METHODS["co-lora-like"], np.random.default_rng(0)
    start = rng.standard_normal(8).astype(np.float32)
    context = ServerContext(4, CORES, start)
    options = method.options(self_weight=0.4, temperature=0.5)
    sent = [Upload(i, 1, 10 * i, rng.standard_normal(8).astype(np.float32)) for i in range(3)]
    state = method.aggregate(options, context, method.start(options, context), sent)
    change = np.stack([upload.values.astype(np.float64) - start for upload in sent])
    unit = change / np.linalg.norm(change, axis=1, keepdims=True)
    others = np.exp(unit @ unit.T / 0.5) * (1 - np.eye(3))
    weights = 0.4 * np.eye(3) + 0.6 * others / others.sum(1, keepdims=True)
    np.testing.assert_allclose(state["weights"][:3, :3], weights, rtol=1e-9)
    for client in range(3):
        expected = weights[client] @ np.stack([upload.values for upload in sent])
        np.testing.assert_allclose(method.download(state, client), expected, rtol=1e-5, atol=1e-6)
    # The fourth was never heard: it counts for nobody, and gets the even mean of the others.
    assert not state["weights"][:3, 3].any() and state["weights"][3].tolist() == pytest.approx([1 / 3] * 3 + [0])
    assert method.download(method.start(options, context), 0) is None
    # An absent client's last core still counts; one that starts over is forgotten.
    later = method.aggregate(options, context, state, [Upload(0, 2, 5, 2 * sent[0].values)])
    assert np.array_equal(later["cores"][1], sent[1].values) and later["weights"][0, 1] > 0
    fresh = method.on_membership_change(options, context, later, [1])
    assert not fresh["weights"][[0, 2, 3], 1].any() and fresh["weights"][0].sum() == pytest.approx(1)


def test_only_personal_methods_are_scored_as_trained():
    personal = {name for name, method in METHODS.items() if method.evaluated_model == "trained"}
    assert personal == {
        "ce-lora", "ce-lora-authors", "co-lora-like", "fedavg-tri", "fedrod-lora", "fedsa-lora", "local",
        "pfedme-lora",
    }  # fmt: skip
