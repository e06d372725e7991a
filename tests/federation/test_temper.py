"""How far a client believes the likelihood: the factor that suits its validation examples."""

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from trifed import make_config
from trifed.data import text_examples
from trifed.federation.client import BELIEF, HEAD, WITHIN, temper

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
        data = bench.encode(text_examples(TEXTS, None, np.zeros(len(TEXTS), np.int64)))
        bench.model.eval()
        device = next(bench.model.parameters()).device
        logits = bench.model(data.batch(np.arange(len(TEXTS)), device)).cpu() - tensors["head.bias"]
    return bench, tensors, logits, settings


def encoded(bench, labels):
    return bench.encode(text_examples(TEXTS, None, np.asarray(labels, np.int64)))


def test_a_likelihood_that_is_always_right_is_believed(client):
    bench, tensors, logits, settings = client
    after = temper(bench, tensors, encoded(bench, (logits + tensors["head.bias"]).argmax(1)), settings)
    assert torch.equal(after[HEAD], tensors[HEAD])


def test_a_likelihood_that_is_always_wrong_leaves_the_prior(client):
    bench, tensors, logits, settings = client
    after = temper(bench, tensors, encoded(bench, logits.argmin(1)), settings)
    assert not after[HEAD].any()
    assert all(torch.equal(after[name], tensor) for name, tensor in tensors.items() if name != HEAD)


def test_the_factor_is_the_largest_that_is_no_worse(client):
    """A likelihood that is right seven times in eight is believed in part.

    The least of the tried losses has a larger factor beside it, until the mean difference is over half of its
    standard error, sd / √n.
    """
    bench, tensors, logits, settings = client
    right, wrong = logits.argmax(1), logits.argmin(1)
    data = encoded(bench, torch.where(torch.arange(len(TEXTS)) % 8 == 0, wrong, right))
    after = temper(bench, tensors, data, settings)
    found = float((after[HEAD] / tensors[HEAD]).mean())
    place = next(i for i, factor in enumerate(BELIEF) if found == pytest.approx(factor, abs=1e-5))
    logits = logits.double()
    losses = np.stack(
        [
            cross_entropy(s * logits + tensors["head.bias"], torch.from_numpy(data.labels), reduction="none")
            for s in BELIEF
        ]
    )
    best = int(losses.mean(1).argmin())
    assert place < best < len(BELIEF) - 1

    def errors(factor: int) -> float:
        over = losses[factor] - losses[best]
        return float(over.mean() / (over.std(ddof=1) / len(data) ** 0.5))

    assert errors(place) <= WITHIN < errors(place - 1)


@pytest.mark.parametrize("count", [0, 1])
def test_from_one_example_nothing_is_concluded(client, count):
    bench, tensors, _, settings = client
    few = bench.encode(text_examples(TEXTS[:count], None, np.zeros(count, np.int64)))
    assert temper(bench, tensors, few, settings) is tensors
