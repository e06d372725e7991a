"""How far a client believes the likelihood: the factor that suits its validation examples."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy

from trifed import make_config, run
from trifed.data import make_clients, text_examples
from trifed.federation.personalization import FACTORS, TOLERANCE, calibrate
from trifed.federation.run_folder import RunFolder
from trifed.federation.training.evaluation import embed
from trifed.methods.aggregation import HEAD

TEXTS = [f"{word} {number}" for word in ("basil", "sage", "thyme", "mint") for number in range(6)]


@pytest.fixture
def client(make_bench, toy_values):
    """A bench, tensors whose head says something, the logits' part beside the bias, and the settings."""
    shared_model = make_bench("own-prior", adapter={"rank": 4})
    settings = make_config(toy_values(method="own-prior", adapter={"rank": 4})).training
    generator = torch.Generator().manual_seed(0)
    weight = 0.3 * torch.randn(shared_model.start[HEAD].shape, generator=generator)
    tensors = {**shared_model.start, HEAD: weight, "head.bias": torch.tensor([0.7, 0.2, 0.1]).log()}
    shared_model.load(tensors)
    with torch.no_grad():
        data = shared_model.encode(text_examples(TEXTS, None, np.zeros(len(TEXTS), np.int64)))
        shared_model.model.eval()
        device = next(shared_model.model.parameters()).device
        logits = shared_model.model(data.batch(np.arange(len(TEXTS)), device)).cpu() - tensors["head.bias"]
    return shared_model, tensors, logits, settings


def calibrated(shared_model, tensors, data, settings):
    shared_model.load(tensors)
    return calibrate(shared_model, tensors, embed(shared_model.model, data, settings), data.labels)


def encoded(shared_model, labels):
    return shared_model.encode(text_examples(TEXTS, None, np.asarray(labels, np.int64)))


def test_a_likelihood_that_is_always_right_is_believed(client):
    shared_model, tensors, logits, settings = client
    after = calibrated(
        shared_model, tensors, encoded(shared_model, (logits + tensors["head.bias"]).argmax(1)), settings
    )
    assert torch.equal(after[HEAD], tensors[HEAD])


def test_a_likelihood_that_is_always_wrong_leaves_the_prior(client):
    shared_model, tensors, logits, settings = client
    after = calibrated(shared_model, tensors, encoded(shared_model, logits.argmin(1)), settings)
    assert not after[HEAD].any()
    assert all(torch.equal(after[name], tensor) for name, tensor in tensors.items() if name != HEAD)


def test_the_factor_is_the_largest_that_is_no_worse(client):
    """A likelihood that is right seven times in eight is believed in part.

    The least of the tried losses has a larger factor beside it, until the mean difference is over half of its
    standard error, sd / √n.
    """
    shared_model, tensors, logits, settings = client
    right, wrong = logits.argmax(1), logits.argmin(1)
    data = encoded(shared_model, torch.where(torch.arange(len(TEXTS)) % 8 == 0, wrong, right))
    after = calibrated(shared_model, tensors, data, settings)
    found = float((after[HEAD] / tensors[HEAD]).mean())
    place = next(i for i, factor in enumerate(FACTORS) if found == pytest.approx(factor, abs=1e-5))
    logits = logits.double()
    losses = np.stack(
        [
            cross_entropy(s * logits + tensors["head.bias"], torch.from_numpy(data.labels), reduction="none")
            for s in FACTORS
        ]
    )
    best = int(losses.mean(1).argmin())
    assert place < best < len(FACTORS) - 1

    def errors(factor: int) -> float:
        over = losses[factor] - losses[best]
        return float(over.mean() / (over.std(ddof=1) / len(data) ** 0.5))

    assert errors(place) <= TOLERANCE < errors(place - 1)


@pytest.mark.parametrize("count", [0, 1])
def test_from_one_example_nothing_is_concluded(client, count):
    shared_model, tensors, _, settings = client
    few = shared_model.encode(text_examples(TEXTS[:count], None, np.zeros(count, np.int64)))
    assert calibrated(shared_model, tensors, few, settings) is tensors


def test_a_calibrated_model_is_kept_and_evaluated_with_a_smaller_head(toy_values, tmp_path):
    """All else equal, each client's head is the untempered one times one of the factors that are tried.

    Its bias differs by what the labels of the validation examples say: log (n + v + s) / Σ (n + v + s) less
    log (n + s) / Σ (n + s), of label counts n and v and smoothing s.
    """
    heads, biases, done = {}, {}, {}
    for calibrated in (False, True):
        much = {"epochs": 8, "learning_rate": 0.1}  # for its validation data to speak against it
        values = toy_values(method="own-prior", adapter={"rank": 4}, data={"valid_fraction": 0.3}, training=much)
        values["personalization"] = {"calibrate": calibrated}
        done[calibrated] = run(make_config(values), tmp_path / str(calibrated))
        folders = sorted((done[calibrated].path / "clients").iterdir())
        heads[calibrated] = [load_file(folder / "head.safetensors")["weight"] for folder in folders]
        biases[calibrated] = [load_file(folder / "head.safetensors")["bias"] for folder in folders]
    factors = [float(b.norm() / a.norm()) for a, b in zip(heads[False], heads[True], strict=True)]
    for plain, scaled, factor in zip(heads[False], heads[True], factors, strict=True):
        assert any(factor == pytest.approx(tried, abs=1e-5) for tried in FACTORS)
        torch.testing.assert_close(scaled, factor * plain, rtol=1e-4, atol=1e-6)
    assert min(factors) < 1
    config = make_config(values)
    data, differences = make_clients(config.data, config.seed), []
    for client, before, after in zip(data.clients, biases[False], biases[True], strict=True):
        n, v = (np.bincount(part.labels, minlength=len(before)) for part in (client.train, client.valid))
        with_valid, without = n + v + 0.1, n + 0.1
        expected = np.log(with_valid / with_valid.sum()) - np.log(without / without.sum())
        np.testing.assert_allclose(after - before, expected, atol=1e-5)
        differences.append(np.abs(expected).max())
    assert max(differences) > 0.01
    scores = [[e for e in RunFolder(one.path).events() if e.get("stage") == "between"] for one in done.values()]
    before, after = ([e["valid"]["loss"] for e in events] for events in scores)
    assert np.mean(after) < np.mean(before)
