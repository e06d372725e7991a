"""How far a client believes the likelihood: the factor that suits its validation examples."""

import numpy as np
import pytest
import torch

from trifed import make_config
from trifed.data import Examples
from trifed.federation.client import BELIEF, HEAD, score, temper

TEXTS = [f"{word} {number}" for word in ("basil", "sage", "thyme", "mint") for number in range(6)]


@pytest.fixture
def client(make_bench, toy_values):
    """A bench, tensors whose head says something, the logits' part beside the bias, and the settings."""
    bench = make_bench("own-prior", adapter={"rank": 4})
    settings = make_config(toy_values(method="own-prior", adapter={"rank": 4})).training
    generator = torch.Generator().manual_seed(0)
    weight = 0.3 * torch.randn(bench.start[HEAD].shape, generator=generator)
    tensors = {**bench.start, HEAD: weight, "head.bias": torch.tensor([0.7, 0.2, 0.1]).log()}
    bench.load(tensors)
    with torch.no_grad():
        data = bench.encode(Examples(TEXTS, None, np.zeros(len(TEXTS), np.int64)))
        bench.model.eval()
        device = next(bench.model.parameters()).device
        logits = bench.model(data.batch(np.arange(len(TEXTS)), device)).cpu() - tensors["head.bias"]
    return bench, tensors, logits, settings


def encoded(bench, labels):
    return bench.encode(Examples(TEXTS, None, np.asarray(labels, np.int64)))


def test_a_likelihood_that_is_always_right_is_believed(client):
    bench, tensors, logits, settings = client
    after = temper(bench, tensors, encoded(bench, (logits + tensors["head.bias"]).argmax(1)), settings)
    assert torch.equal(after[HEAD], tensors[HEAD])


def test_a_likelihood_that_is_always_wrong_leaves_the_prior(client):
    bench, tensors, logits, settings = client
    after = temper(bench, tensors, encoded(bench, logits.argmin(1)), settings)
    assert not after[HEAD].any()
    assert all(torch.equal(after[name], tensor) for name, tensor in tensors.items() if name != HEAD)


def test_the_factor_is_the_best_of_those_tried(client):
    """A likelihood that is right eleven times in twelve is believed in part."""
    bench, tensors, logits, settings = client
    right, wrong = logits.argmax(1), logits.argmin(1)
    data = encoded(bench, torch.where(torch.arange(len(TEXTS)) % 12 == 0, wrong, right))
    after = temper(bench, tensors, data, settings)
    found = float((after[HEAD] / tensors[HEAD]).mean())
    assert any(found == pytest.approx(factor, abs=1e-5) for factor in BELIEF)
    tried = [score(bench, {**tensors, HEAD: factor * tensors[HEAD]}, data, settings).loss for factor in BELIEF]
    assert score(bench, after, data, settings).loss == pytest.approx(min(tried), abs=1e-3)
    assert min(tried) < min(tried[0], tried[-1])


def test_without_examples_nothing_changes(client):
    bench, tensors, _, settings = client
    empty = bench.encode(Examples([], None, np.zeros(0, np.int64)))
    assert temper(bench, tensors, empty, settings) is tensors
