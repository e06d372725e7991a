"""Clients that come late, leave, or tell another summary: what the server's state keeps of whom."""

from __future__ import annotations

import numpy as np
import pytest

from trifed.methods import METHODS, ServerContext, Upload
from trifed.methods.base import SummarySeeds

LAYOUT = (("x.lora_C.weight", (2, 2)), ("head.weight", (3, 4)))
CORES = (("x.lora_C.weight", (4, 4)),)
CENTRES = np.random.default_rng(9).standard_normal((3, 8))
NAMES = ("own-prior", "ce-lora")


def summary(method, counts, seed=0, shift=0.0):
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(3), counts)
    features = (CENTRES[labels] + shift + 0.3 * rng.standard_normal((len(labels), 8))).astype(np.float32) / 4
    return method.summarise(method.options(), features, labels, SummarySeeds(0, seed))


class Server:
    """The server's side of a method, by hand."""

    def __init__(self, name, summaries):
        self.method, self.layout = METHODS[name], CORES if name == "ce-lora" else LAYOUT
        self.size = sum(int(np.prod(shape)) for _, shape in self.layout)
        self.start = np.linspace(-1, 1, self.size).astype(np.float32)
        self.summaries = dict(enumerate(summaries))
        self.state = self.method.start(self.method.options(), self.context())

    def context(self):
        return ServerContext(len(self.summaries), self.layout, self.start, self.summaries)

    def round(self, number, clients, seed=1):
        rng = np.random.default_rng(seed)
        values = rng.standard_normal((10, self.size)).astype(np.float32)
        sent = [Upload(client, number, 60, values[client]) for client in clients]
        self.state = self.method.aggregate(self.method.options(), self.context(), self.state, sent)

    def on_membership_change(self, anew=(), **summaries):
        self.summaries |= {int(client[1:]): found for client, found in summaries.items()}
        self.state = self.method.on_membership_change(
            self.method.options(), self.context(), self.state, list(anew)
        )


def server(name, clients=3):
    counts = [[20, 20, 20], [40, 20, 0], [0, 30, 30], [25, 25, 10]][:clients]
    return Server(name, [summary(METHODS[name], row, seed=i) for i, row in enumerate(counts)])


def test_all_methods_whose_state_has_a_row_a_client_can_be_renewed():
    for name, method in METHODS.items():
        if method.summarise is not None:
            assert method.on_membership_change is not None, name


@pytest.mark.parametrize("name", NAMES)
def test_without_a_change_nothing_changes(name):
    one = server(name)
    one.round(1, [0, 1, 2])
    before = dict(one.state)
    one.on_membership_change()
    for array in before.keys() - {"weights", "similarity_model"}:
        np.testing.assert_allclose(one.state[array], before[array], rtol=1e-6, err_msg=array)


@pytest.mark.parametrize("name", NAMES)
def test_who_comes_late_begins_with_what_others_have(name):
    one = server(name)
    one.round(1, [0, 1, 2])
    had = [one.method.download(one.state, client) for client in range(3)]
    one.on_membership_change([3], c3=summary(one.method, [20, 20, 20], seed=3))
    for client in range(3):
        np.testing.assert_allclose(one.method.download(one.state, client), had[client], rtol=1e-5, atol=1e-6)
    first = one.method.download(one.state, 3)
    assert first.shape == (one.size,)
    sent = np.random.default_rng(1).standard_normal((10, one.size))[:3]
    assert (first >= sent.min(0) - 1e-5).all() and (first <= sent.max(0) + 1e-5).all()
    assert np.abs(first - one.start).max() > 0.1
    one.round(2, [0, 1, 2, 3], seed=2)
    assert one.state["weights"].shape == (4, 4)
    np.testing.assert_allclose(one.state["weights"].sum(1), 1, rtol=1e-6)


def test_a_core_of_a_newcomer_is_nearer_to_those_whose_data_are_like_its_own():
    counts, method = [20, 20, 20], METHODS["ce-lora"]
    one = Server("ce-lora", [summary(method, counts, i, shift) for i, shift in enumerate((0.0, 0.0, 3.0))])
    one.round(1, [0, 1, 2])
    one.on_membership_change([3], c3=summary(method, counts, 9, 3.0))
    assert one.state["weights"][3].argmax() == 2 and one.state["weights"][3, 3] == 0


@pytest.mark.parametrize("name", NAMES)
def test_what_a_client_that_left_had_sent_does_not_count_any_more(name):
    """Two servers that differ in its upload and summary alone are the same after the others' next round."""
    found = []
    for seed in (5, 6):
        one = server(name)
        one.summaries[1] = summary(one.method, [40, 20, 0], seed=seed, shift=seed - 5)
        one.state = one.method.start(one.method.options(), one.context())
        one.round(1, [0, 2])
        values = np.random.default_rng(seed).standard_normal(one.size).astype(np.float32)
        sent = [Upload(1, 2, 60, values)]
        one.state = one.method.aggregate(one.method.options(), one.context(), one.state, sent)
        one.on_membership_change([1], c1=one.summaries[1].emptied())
        one.round(3, [0, 2], seed=3)
        assert (one.state["weights"][[0, 2], 1] == 0).all()
        found.append(one.state)
    for array in found[0]:
        kept = [0, 2] if array in ("mixed", "weights") else slice(None)
        np.testing.assert_array_equal(found[0][array][kept], found[1][array][kept], err_msg=array)


def test_new_labels_count_from_the_next_round():
    one = server("own-prior")
    one.round(1, [0, 1, 2])
    one.on_membership_change(c1=summary(one.method, [10, 20, 30], seed=8))
    np.testing.assert_array_equal(one.state["examples"][1], [10, 20, 30])
    assert one.state["received"].all()
