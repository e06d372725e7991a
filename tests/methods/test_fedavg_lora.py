"""fedavg-lora: θ̄ = Σ_j n_j θ_j / Σ_j n_j over the round's uploads, the same for everybody."""

from __future__ import annotations

import numpy as np
import pytest

from trifed.methods import METHODS, Setting, Upload
from trifed.methods.interface import Options
from trifed.similarity import mix

METHOD = METHODS["fedavg-lora"]
LAYOUT = (("x.lora_A.weight", (2, 5)), ("x.lora_B.weight", (5, 2)), ("head.bias", (3,)))
SIZE = 23


def setting(clients: int) -> Setting:
    return Setting(clients, LAYOUT, np.zeros(SIZE, np.float32))


def uploads(examples: dict[int, int], round_number: int = 1) -> list[Upload]:
    rng = np.random.default_rng(round_number)
    return [
        Upload(client, round_number, count, rng.standard_normal(SIZE).astype(np.float32))
        for client, count in examples.items()
    ]


def aggregate(state, sent, clients=4):
    return METHOD.aggregate(Options(), setting(clients), state, sent)


@pytest.mark.parametrize("examples", [{0: 10, 1: 20, 2: 30, 3: 5}, {0: 10, 2: 30, 3: 60}, {1: 7}])
def test_the_mean_is_weighted_by_examples_of_those_who_took_part(examples):
    sent = uploads(examples)
    state = aggregate({}, sent)
    total = sum(examples.values())
    expected = np.zeros(SIZE)
    for upload in sent:
        expected += examples[upload.client] / total * upload.values.astype(np.float64)
    for client in range(4):  # those who were absent get it too
        received = METHOD.download(state, client)
        assert received.dtype == np.float32
        np.testing.assert_allclose(received, expected, rtol=1e-6, atol=1e-7)
    row = [examples.get(client, 0) / total for client in range(4)]
    np.testing.assert_allclose(state["weights"], np.tile(row, (4, 1)), rtol=1e-12)


def test_a_global_average_is_a_personalised_mix_with_equal_rows():
    sent = uploads({0: 1, 1: 2, 2: 3, 3: 4})
    state = aggregate({}, sent)
    mixed = mix(state["weights"], np.stack([upload.values for upload in sent]))
    for row in mixed:
        np.testing.assert_allclose(row, state["mean"], rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(state["weights"].sum(1), 1.0)


def test_only_this_rounds_uploads_count():
    first, second = uploads({0: 5, 1: 5}, 1), uploads({2: 9}, 2)
    state = aggregate(aggregate({}, first), second)
    assert np.array_equal(METHOD.download(state, 0), second[0].values)


def test_nobody_took_part_and_nothing_changes():
    state = aggregate({}, uploads({0: 5, 1: 3}))
    assert aggregate(state, []) is state
    assert METHOD.download({}, 0) is None


def test_one_global_average_needs_no_summary_and_scores_what_is_received():
    assert METHOD.summarise is None and METHOD.scored == "received"
