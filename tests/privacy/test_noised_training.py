"""Noised training steps: what one example can do to a gradient, what steps cost, and runs that train so."""

from __future__ import annotations

import json
import math
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from scipy.stats import norm

from trifed import make_config, run
from trifed.common.errors import ConfigError
from trifed.config.settings import TrainingSettings
from trifed.data import text_examples
from trifed.federation.training.batches import RoundRandom
from trifed.federation.training.dp_sgd import DpSgd, example_gradients
from trifed.federation.training.local_training import Examples, LocalTraining, train_locally
from trifed.federation.training.stack import CannotStackError
from trifed.privacy import Sampled, epsilon_of, epsilon_with_steps, read_ledger, seeded_noise, steps_multiplier

DELTA = 1e-5
SUMMARY = {"summary": {"epsilon": 4.0}}
PRIVACY = {**SUMMARY, "training": {"epsilon": 6.0, "rate": 0.3, "clip": 0.7}}
STEPS = {"training": {"steps": 3}}


# -- what steps cost


def test_steps_on_all_examples_are_plain_releases():
    # Rate 1 is no sampling: the closed form again, up to the grid.
    for z, count in ((4.0, 50), (1.0, 3)):
        exact = epsilon_of([z] * count, DELTA)
        assert exact <= epsilon_with_steps([], [Sampled(z, 1.0, count)], DELTA) <= exact * 1.001
    both = epsilon_with_steps([2.0], [Sampled(4.0, 1.0, 10)], DELTA)
    assert both == pytest.approx(epsilon_of([2.0] + [4.0] * 10, DELTA), rel=1e-3)


def test_a_sampled_step_costs_what_its_two_distributions_say():
    # One step: N(0, z²) against (1 − q) N(0, z²) + q N(1, z²). With the density ratio monotone in x, δ(ε) of the
    # worse direction is Q(x > t) − e^ε P(x > t), where the ratio at t is e^ε.
    q, z, epsilon = 0.3, 1.2, 0.8
    t = z**2 * math.log((math.exp(epsilon) - 1 + q) / q) + 0.5
    delta = (1 - q) * norm.sf(t / z) + q * norm.sf((t - 1) / z) - math.exp(epsilon) * norm.sf(t / z)
    assert epsilon_with_steps([], [Sampled(z, q, 1)], delta) == pytest.approx(epsilon, rel=2e-3)


@pytest.mark.parametrize(("epsilon", "rate", "steps"), [(1.0, 0.1, 30), (8.0, 0.5, 60)])
def test_calibrated_noise_meets_its_epsilon_and_wastes_little(epsilon, rate, steps):
    z = steps_multiplier(epsilon, DELTA, rate, steps)
    assert 0.98 * epsilon < epsilon_with_steps([], [Sampled(z, rate, steps)], DELTA) <= epsilon
    # Rounds add up to the run: the ledger's sum is the plan's.
    thirds = [Sampled(z, rate, steps // 3)] * 3
    assert epsilon_with_steps([], thirds, DELTA) == epsilon_with_steps([], [Sampled(z, rate, steps)], DELTA)


def test_steps_without_noise_cost_all():
    assert epsilon_with_steps([], [Sampled(0.0, 0.1, 1)], DELTA) == math.inf
    assert epsilon_with_steps([0.0], [Sampled(2.0, 0.1, 1)], DELTA) == math.inf


# -- one example


@pytest.fixture
def bench_and_data(make_bench, toy_table):
    texts = [line.split(",") for line in toy_table.read_text().splitlines()[1:13]]
    names = sorted({row[1] for row in texts})
    labels = np.array([names.index(row[1]) for row in texts])
    shared_model = make_bench("fedavg-lora")
    return shared_model, shared_model.encode(text_examples([row[0] for row in texts], None, labels))


def without(data, row):
    """The same examples but one."""
    kept = [place for place in range(len(data)) if place != row]
    return pick(data, kept)


def pick(data, rows):
    changes = {}
    for field in fields(data):
        value = getattr(data, field.name)
        if isinstance(value, np.ndarray):
            changes[field.name] = value[rows]
        elif isinstance(value, list):
            changes[field.name] = [value[row] for row in rows]
        elif isinstance(value, dict):
            changes[field.name] = {name: [column[row] for row in rows] for name, column in value.items()}
    return replace(data, **changes)


def gradient(shared_model, data, clip, z=0.0, rate=1.0, divisor=1, noise=np.zeros):
    steps = DpSgd(clip, z, rate, divisor, noise)
    shared_model.load(shared_model.start)
    shared_model.model.eval()  # without dropout
    examples = Examples(shared_model.model, data, torch.device("cpu"), 0)
    loss = steps(shared_model.model, shared_model.parameters, examples, torch.float32)
    return torch.cat([p.grad.flatten() for p in shared_model.parameters.values()]), loss


def test_with_nothing_clipped_and_no_noise_it_is_the_gradient(bench_and_data):
    shared_model, data = bench_and_data
    found, loss = gradient(shared_model, data, clip=1e6, divisor=len(data))
    shared_model.model.zero_grad()
    whole = shared_model.model.loss(data.batch(np.arange(len(data)), torch.device("cpu")))
    whole.backward()
    torch.testing.assert_close(found, torch.cat([p.grad.flatten() for p in shared_model.parameters.values()]))
    torch.testing.assert_close(loss, whole.detach())


@pytest.mark.parametrize("clip", [1e-3, 0.5, 50.0])
def test_one_example_moves_the_sum_by_no_more_than_the_clip(clip, bench_and_data):
    shared_model, data = bench_and_data
    whole, _ = gradient(shared_model, data, clip)
    moved = [
        float((whole - gradient(shared_model, without(data, row), clip)[0]).norm()) for row in range(len(data))
    ]
    assert max(moved) <= clip * (1 + 1e-4)
    if clip < 1e-2:  # every gradient is longer: each moves it by the clip, over all that trains together
        assert moved == pytest.approx([clip] * len(data), rel=1e-3)


def test_each_example_is_drawn_by_itself_with_the_same_chance(bench_and_data):
    shared_model, data = bench_and_data
    rng = np.random.default_rng(0)
    one = pick(data, [0])
    seen = [
        gradient(shared_model, one, 1.0, rate=0.25, noise=seeded_noise(rng))[1] is not None for _ in range(200)
    ]
    # 50 of 200, ± 4 standard deviations of 6.1
    assert 26 < sum(seen) < 74


def test_noise_has_the_size_it_should_have(bench_and_data):
    shared_model, data = bench_and_data
    clean, _ = gradient(shared_model, data, 0.5, divisor=4)
    noised, _ = gradient(
        shared_model, data, 0.5, z=3.0, divisor=4, noise=lambda n: np.ones(n) * (n == len(data)) - (n != len(data))
    )
    # Every number one standard deviation down, 3 · 0.5 / 4; Φ(1) < 1 draws all examples.
    torch.testing.assert_close(noised, clean - 3.0 * 0.5 / 4)


@pytest.mark.parametrize("method", ["fedavg-lora", "own-prior", "ffa-lora"])
def test_gradients_of_many_examples_in_one_pass_are_those_of_each_alone(method, make_bench):
    """Texts of other lengths, with dropout off; the clipped sum of a step is then that of one at a time."""
    shared_model = make_bench(method)
    shared_model.load({n: t + 0.01 * torch.randn(t.shape) for n, t in shared_model.start.items()})
    shared_model.model.eval()
    rows = [" ".join(["refund"] * (3 * n + 1)) for n in range(7)]
    data = shared_model.encode(text_examples(rows, None, np.arange(7) % 3))
    cpu = torch.device("cpu")
    named = shared_model.parameters
    losses, together = example_gradients(shared_model.model, named, data.batch(np.arange(7), cpu), torch.float32)
    for row in range(7):
        loss = shared_model.model.loss(data.batch(np.array([row]), cpu))
        torch.testing.assert_close(losses[row], loss.detach())
        for found, alone in zip(together, torch.autograd.grad(loss, list(named.values())), strict=True):
            torch.testing.assert_close(found[row], alone, rtol=1e-4, atol=1e-7)


def test_noised_steps_are_the_same_whatever_number_of_clients_may_train_at_once(toy_values, tmp_path):
    """A pass of several clients would have no noise; the numbers must be those of one client after the other."""
    found = []
    for at_once in (1, 3):
        training = {"steps": 2, "clients_at_once": at_once}
        privacy = {"training": {"epsilon": 6.0, "rate": 0.3}}
        config = make_config(toy_values(method="fedavg-lora", rounds=1, privacy=privacy, training=training))
        done = run(config, tmp_path / str(at_once)).path
        found.append([p.read_bytes() for p in sorted(done.glob("clients/*/adapter_model.safetensors"))])
    assert len(found[0]) > 2 and found[0] == found[1]


def test_several_clients_with_a_private_gradient_are_refused_in_one_pass(bench_and_data):
    shared_model, data = bench_and_data
    step = DpSgd(1.0, 2.0, 0.5, 8, seeded_noise(np.random.default_rng(0)))
    job = LocalTraining(shared_model.parameters, data, RoundRandom.of(0, 1, 0), 0, 3, {}, dp_step=step)
    with pytest.raises(CannotStackError):
        train_locally(shared_model.model, [job, job], TrainingSettings(device="cpu"), shared_model.parameters)


def test_a_step_without_examples_does_not_spoil_the_loss(finished):
    """A rate at which most samples of ten examples are empty."""
    privacy = {"training": {"epsilon": 6.0, "rate": 0.01}}
    done = finished("fedavg-lora", privacy=privacy, training={"steps": 9})
    losses = [event["loss"] for event in done.events if event["event"] == "trained"]
    known = [loss for loss in losses if loss is not None and math.isfinite(loss)]
    assert len(known) > len(losses) / 4
    assert all(client["now"]["accuracy"] is not None for client in done.summary["clients"])


def test_who_has_no_examples_takes_the_same_steps(bench_and_data):
    shared_model, data = bench_and_data
    config = make_config({"data": {"source": "-"}, "training": {"steps": 3, "device": "cpu", "precision": "fp32"}})
    rng = np.random.default_rng(0)
    shared_model.load(shared_model.start)
    job = LocalTraining(
        shared_model.parameters, pick(data, []), RoundRandom.of(0, 1, 0), 0, 3, {},
        dp_step=DpSgd(1.0, 2.0, 0.5, 8, seeded_noise(rng)),
    )  # fmt: skip
    done = train_locally(shared_model.model, [job], config.training)[0]
    assert done.steps == 3
    assert all(not torch.equal(tensor, shared_model.start[name]) for name, tensor in shared_model.take().items())


# -- runs


def test_a_run_that_trains_so_has_entered_every_step(finished):
    done = finished("own-prior", privacy=PRIVACY, **STEPS)
    entries = read_ledger(done.path / "privacy" / "amber" / "ledger.json").entries
    assert [(entry.what, entry.round) for entry in entries] == [
        ("summary", 0),
        ("training", 1), ("update", 1), ("training", 2), ("update", 2), ("training", 3), ("update", 3),
    ]  # fmt: skip
    trained = [Sampled(e.multiplier, e.rate, e.steps) for e in entries if e.what == "training"]
    assert sum(part.steps for part in trained) == 9 and {part.rate for part in trained} == {0.3}
    alone, both, client = done.summary["privacy"]["spent"]
    # One example: the summary and all steps, together less than one after the other. Updates have no noise of
    # their own, so all of a client's are not covered.
    assert both["epsilon"] == epsilon_with_steps([entries[0].multiplier], trained, DELTA)
    assert 6.0 < both["epsilon"] < alone["epsilon"] + 6.0
    assert client["epsilon"] is None


def test_updates_may_be_noised_as_well(finished):
    done = finished("own-prior", privacy={**PRIVACY, "update": {"epsilon": 8.0}}, **STEPS)
    _, both, client = done.summary["privacy"]["spent"]
    assert client["epsilon"] == pytest.approx(8.0, rel=1e-4)
    assert both["epsilon"] < 10  # by its training; half the update's noise would be 20


def test_the_same_seed_gives_the_same_run(finished, toy_values, tmp_path):
    first = finished("own-prior", privacy=PRIVACY, **STEPS)
    again = run(make_config(toy_values(method="own-prior", privacy=PRIVACY, **STEPS)), tmp_path / "again")
    assert again.summary["curve"] == first.summary["curve"]
    ledgers = [json.loads((path / "privacy/coral/ledger.json").read_text()) for path in (first.path, again.path)]
    assert ledgers[0] == ledgers[1]


def test_label_rows_give_a_method_without_summaries_noised_label_counts(finished):
    """The first head's prior is that of the noised summary: neither uniform nor that of the exact counts."""
    priors = {}
    for epsilon in (4.0, 50.0):
        privacy = {**PRIVACY, "summary": {"epsilon": epsilon}}
        done = finished("fedrod-lora", privacy=privacy, aggregation={"weights": "label-rows"}, rounds=1, **STEPS)
        noised = load_file(done.path / "privacy/amber/summary.safetensors")
        counts = np.bincount(noised["class_labels"], noised["class_counts"], minlength=3) + 0.1
        state = load_file(done.path / "checkpoint.safetensors")
        [found] = [values for name, values in state.items() if name.endswith("prior.bias") and "/0/" in name]
        np.testing.assert_allclose(found, np.log(counts / counts.sum()), rtol=1e-5)
        priors[epsilon] = found
    assert not np.allclose(priors[4.0], priors[50.0]) and np.ptp(priors[4.0]) > 0


def test_noised_updates_alone_need_no_label_counts(toy_values):
    """An update is clipped as a whole, whatever its first head was derived from."""
    config = make_config(toy_values(method="fedrod-lora", privacy={"update": {"epsilon": 8.0}}))
    assert config.composed_method().summarise is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"privacy": PRIVACY}, "training.steps: missing"),
        ({"privacy": {"training": {"epsilon": 6.0}}, **STEPS}, "privacy.summary: missing, but 'own-prior'"),
        ({"privacy": {"training": {"epsilon": 6.0, "rate": 0}}, **STEPS}, "privacy.training.rate: got 0"),
        ({"privacy": PRIVACY, **STEPS, "method": "fedrod-lora"}, "privacy.training: 'fedrod-lora'"),
        (
            {"privacy": PRIVACY, **STEPS, "method": "fedavg-lora", "personalization": {"label_prior": True}},
            "privacy.training: 'fedavg-lora'",
        ),
        (
            {"privacy": PRIVACY, **STEPS, "task": "image-text-pairs"},
            "privacy.training: task = 'image-text-pairs'",
        ),
        ({"privacy": PRIVACY, **STEPS, "task": "causal-lm"}, "model.packing"),
    ],
)
def test_what_cannot_hold_is_refused(changes, words, toy_values):
    with pytest.raises(ConfigError) as told:
        make_config(toy_values(**changes))
    assert words in str(told.value)
