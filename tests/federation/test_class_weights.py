"""Weights of labels in the training loss: their numbers, and what they change and do not change."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from many_clients import check_equal, clients_of, rounds_of, settings
from trifed.common.errors import ConfigError, DataError
from trifed.config.run import make_config, to_toml
from trifed.config.toml_files import read_toml
from trifed.federation.client_update import train_rounds
from trifed.federation.training.class_weights import class_weights
from trifed.federation.training.dp_sgd import example_gradients
from trifed.federation.training.dropout import ClientDropout
from trifed.federation.training.evaluation import evaluate
from trifed.federation.training.local_training import Examples, _backward

CPU = torch.device("cpu")
NAMES = ["ham", "spam", "7"]


def config(task="text-classification", privacy=None, weights=None, **data):
    values = {
        "data": {"source": "x.csv", **data},
        "task": task,
        "training": {"class_weights": weights, "steps": 3},
    }
    return make_config({**values, "privacy": privacy or {}, "method": "fedavg-lora"})


# -- numbers


def test_balanced_weights_are_those_of_scikit_learn():
    # 6 examples, 2 labels that occur: 6 / (2 · 4) and 6 / (2 · 2); the mean over the examples is 1.
    labels = np.array([0, 0, 0, 0, 2, 2])
    found = class_weights("balanced", NAMES, labels)
    assert found.tolist() == pytest.approx([0.75, 1.0, 1.5])
    assert found[labels].mean() == pytest.approx(1)


def test_without_examples_or_setting_nothing_is_weighted():
    assert class_weights("balanced", NAMES, np.zeros(0, np.int64)).tolist() == [1, 1, 1]
    assert class_weights(None, NAMES, np.array([0])) is None


def test_a_table_names_labels_in_any_spelling_of_numbers():
    assert class_weights({"spam": 4.0, "7.0": 0.5}, NAMES, np.array([0])).tolist() == [1, 4, 0.5]


def test_an_unknown_label_is_named_with_the_nearest_one():
    with pytest.raises(DataError, match=r"training\.class_weights: .*'spm'.*'spam'"):
        class_weights({"spm": 4.0}, NAMES, np.array([0]))


# -- the setting


def test_a_table_survives_toml_and_numbers_as_labels(tmp_path):
    made = config(weights={7: 2, "a;b c": 0.5})
    assert made.training.class_weights == {"7": 2.0, "a;b c": 0.5}
    (tmp_path / "run.toml").write_text(to_toml(made), encoding="utf-8")
    assert make_config(read_toml(tmp_path / "run.toml")) == made


def test_settings_with_a_table_can_still_be_grouped():
    one, same, other = (config(weights={"a": value}).training for value in (2, 2.0, 3))
    assert len({one, same, other}) == 2


def test_the_identity_depends_on_weights_but_not_on_their_order():
    plain = config()
    assert plain.run_id() == config(weights=None).run_id() != config(weights="balanced").run_id()
    assert config(weights={"a": 2, "b": 3}).run_id() == config(weights={"b": 3, "a": 2}).run_id()


@pytest.mark.parametrize(
    "weights",
    ["balance", 3, [], {}, {"a": -1}, {"a": "2"}, {"a": True}, {"a": float("nan")}, {"a": float("inf")}, {"a": 0}],
)
def test_what_is_no_weight_is_one_mistake(weights):
    with pytest.raises(ConfigError) as caught:
        config(weights=weights)
    assert len(caught.value.problems) == 1 and caught.value.problems[0].startswith("training.class_weights: got ")


@pytest.mark.parametrize("task", ["causal-lm", "image-text-pairs"])
def test_a_task_without_labels_refuses_them(task):
    with pytest.raises(ConfigError, match=rf"training\.class_weights: task = '{task}'"):
        config(task, weights="balanced")


def test_label_counts_and_dp_sgd_exclude_each_other():
    privacy = {"training": {"epsilon": 6.0}}
    with pytest.raises(ConfigError, match=r"training\.class_weights: 'balanced'.*privacy\.training"):
        config(privacy=privacy, weights="balanced")
    config(privacy=privacy, weights={"a": 2.0})


def test_labels_of_the_settings_are_checked_before_any_data():
    with pytest.raises(ConfigError, match=r"training\.class_weights: got 'c'"):
        config(weights={"c": 2.0}, labels=["a", "b"])
    config(weights={"1.0": 2.0}, labels=["1", "2"])


# -- training


def weighted(shared_model, counts, values):
    return [replace(each, class_weights=np.array(values, np.float32)) for each in clients_of(shared_model, counts)]


def test_the_loss_is_the_weighted_sum_over_the_number_of_examples(make_bench):
    shared_model = make_bench("fedavg-lora")
    [client] = weighted(shared_model, [9], [0.5, 3.0, 1.0])
    batch = Examples(shared_model.model, client.train, CPU, 0, client.class_weights).batch(np.arange(9))
    shared_model.model.eval()
    with torch.no_grad():
        logits, labels = shared_model.model(batch), batch["labels"]
        each = cross_entropy(logits, labels, reduction="none")
        expected = sum([0.5, 3.0, 1.0][label] * loss for label, loss in zip(labels, each, strict=True)) / 9
        torch.testing.assert_close(shared_model.model.loss(batch), expected)


@pytest.mark.parametrize("method", ["fedavg-lora", "own-prior"])
def test_clients_with_weights_train_together_as_alone(method, make_bench):
    shared_model = make_bench(method, adapter={"dropout": 0.2})
    clients = weighted(shared_model, [11, 3, 0, 9], [0.5, 3.0, 1.0])
    clients[1] = replace(clients[1], class_weights=np.array([2, 0, 1], np.float32))
    rounds = rounds_of(shared_model, clients)
    alone = [train_rounds(shared_model, [each], settings())[0] for each in rounds]
    check_equal(alone, train_rounds(shared_model, rounds, settings()))
    assert not shared_model.alone
    plain = rounds_of(shared_model, clients_of(shared_model, [11, 3, 0, 9]))
    unweighted = train_rounds(shared_model, plain, settings())
    changed = [
        not torch.allclose(one.state.tensors["head.weight"], other.state.tensors["head.weight"], atol=1e-5)
        for one, other in zip(alone, unweighted, strict=True)
    ]
    assert changed == [True, True, False, True]  # the third has no examples


def test_a_step_in_parts_is_the_whole_step(make_bench):
    shared_model = make_bench("fedavg-lora")
    shared_model.model.eval()  # without dropout, whose masks are others
    [client] = weighted(shared_model, [10], [0.5, 3.0, 0.0])
    examples = Examples(shared_model.model, client.train, CPU, 0, client.class_weights)
    found = []
    for cuts in ([], [3, 4]):
        shared_model.model.zero_grad()
        batches = [examples.batch(rows) for rows in np.split(np.arange(10), cuts)]
        loss = _backward(shared_model.model, batches, torch.float32, ClientDropout([0], CPU))
        found.append([loss, *(param.grad.clone() for param in shared_model.parameters.values())])
    for whole, parts in zip(*found, strict=True):
        torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-6)


def test_weights_of_one_change_nothing(make_bench):
    shared_model = make_bench("fedavg-lora")
    ones = train_rounds(shared_model, rounds_of(shared_model, weighted(shared_model, [9], [1, 1, 1])), settings())
    plain = train_rounds(shared_model, rounds_of(shared_model, clients_of(shared_model, [9])), settings())
    check_equal(plain, ones, rtol=1e-5, atol=1e-6)


def test_the_gradient_of_one_example_is_that_many_times_as_long(make_bench):
    """What DP-SGD clips: with the weights divided by their own sum, it would not depend on them."""
    shared_model = make_bench("fedavg-lora")
    shared_model.model.eval()
    [plain] = clients_of(shared_model, [6])
    values, named = np.array([0.0, 3.0, 1.0], np.float32), shared_model.parameters
    found = []
    for weights in (None, values):
        batch = Examples(shared_model.model, plain.train, CPU, 0, weights).batch(np.arange(6))
        found.append(example_gradients(shared_model.model, named, batch, torch.float32))
    factors = torch.from_numpy(values[plain.train.labels])
    torch.testing.assert_close(found[1][0], found[0][0] * factors)
    for ours, bare in zip(found[1][1], found[0][1], strict=True):
        torch.testing.assert_close(ours, bare * factors.view(-1, *[1] * (bare.dim() - 1)), rtol=1e-4, atol=1e-7)


def test_evaluation_does_not_weight(make_bench):
    shared_model = make_bench("fedavg-lora")
    [client] = weighted(shared_model, [9], [0.0, 0.0, 5.0])
    with torch.no_grad():
        logits = shared_model.model.eval()(client.valid.batch(np.arange(9), CPU))
    expected = cross_entropy(logits, torch.from_numpy(client.valid.labels))
    assert evaluate(shared_model.model, client.valid, settings()).loss == pytest.approx(float(expected), rel=1e-5)


# -- runs


def test_a_run_with_weights_differs_in_training_alone(finished):
    plain, balanced = finished("fedavg-lora"), finished("fedavg-lora", training={"class_weights": "balanced"})
    first = [
        [event["test"]["loss"] for event in done.events if event["event"] == "scores" and event["round"] == 0]
        for done in (plain, balanced)
    ]
    assert first[0] == first[1]
    assert plain.summary["bytes"] == balanced.summary["bytes"]
    assert plain.summary["curve"][-1]["training_loss"] != balanced.summary["curve"][-1]["training_loss"]


def test_a_run_names_a_label_that_no_one_has(finished):
    with pytest.raises(DataError, match=r"training\.class_weights: .*'billin'.*'billing'"):
        finished("fedavg-lora", training={"class_weights": {"billin": 2.0}})
