"""Clients that train in threads have the numbers that they have alone, and a failure ends all of them."""

from __future__ import annotations

import threading
import time

import pytest
import torch

from many_clients import ADAPTED, check_equal, clients_of, rounds_of, settings
from trifed import make_config, run
from trifed.federation.at_once import clients_at_once
from trifed.federation.client_update import train_rounds
from trifed.federation.run_folder import RunFolder
from trifed.federation.training.parallel import AtOnce, StoppedError, in_threads, replica

TWO = AtOnce(threads=2)


@pytest.fixture
def two_cores():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("method", ADAPTED)
def test_every_method_that_trains_adapters_has_the_numbers_of_training_alone(method, make_bench):
    shared_model = make_bench(method, adapter={"dropout": 0.2})
    rounds = rounds_of(shared_model, clients_of(shared_model, [11, 3, 0, 19, 6]))
    alone = [train_rounds(shared_model, [each], settings())[0] for each in rounds]
    for at_once in (TWO, AtOnce(threads=2, clients=2)):
        check_equal(alone, train_rounds(shared_model, rounds, settings(), at_once))
    assert not shared_model.alone


def test_threads_repeat_their_numbers_to_the_bit(make_bench):
    shared_model = make_bench("fedavg-lora", adapter={"dropout": 0.2})
    rounds = rounds_of(shared_model, clients_of(shared_model, [8, 20, 3, 12, 9, 9]))
    one, other = (train_rounds(shared_model, rounds, settings(), TWO) for _ in range(2))
    for first, second in zip(one, other, strict=True):
        assert first.loss == second.loss
        assert all(torch.equal(second.state.tensors[name], t) for name, t in first.state.tensors.items())


def test_a_model_with_random_numbers_of_its_own_trains_one_client_after_the_other(make_bench, monkeypatch):
    shared_model = make_bench("fedavg-lora")
    rounds = rounds_of(shared_model, clients_of(shared_model, [6, 6]))
    model = type(shared_model.model)
    plain = model.outputs
    monkeypatch.setattr(model, "outputs", lambda self, batch: plain(self, batch) + 0 * torch.rand(1))
    before = torch.get_rng_state()
    threads = train_rounds(shared_model, rounds, settings(), TWO)
    assert len(shared_model.alone) == 1 and torch.equal(before, torch.get_rng_state())
    for each, one in zip(rounds, threads, strict=True):
        alone = train_rounds(shared_model, [each], settings())[0]
        assert all(torch.equal(one.state.tensors[n], t) for n, t in alone.state.tensors.items())


def test_a_replica_has_the_same_frozen_weights_and_its_own_trained_ones(make_bench):
    shared_model = make_bench("ce-lora")
    twin = replica(shared_model)
    trained = {id(param) for param in shared_model.parameters.values()}
    pairs = list(zip(shared_model.model.parameters(), twin.model.parameters(), strict=True))
    assert all((one is other) == (id(one) not in trained) for one, other in pairs)
    for name, param in twin.parameters.items():
        assert torch.equal(param, shared_model.parameters[name]) and param.requires_grad
    assert twin.encoder is twin.model.encoder is not shared_model.encoder


@pytest.mark.parametrize("error", [ValueError("no such row"), KeyboardInterrupt()])
def test_a_failure_in_one_thread_stops_the_others(error, make_bench, two_cores):
    stopped = []

    def train(model, group, stop):
        if group == 0:
            raise error
        stopped.append(stop.wait(60))
        raise StoppedError

    with pytest.raises(type(error)):
        in_threads(make_bench("fedavg-lora"), [0, 1, 2, 3], train, 2)
    assert stopped in ([], [True]) and torch.get_num_threads() == 2
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("training")]


def test_training_gives_up_between_two_steps(make_bench, monkeypatch):
    """Ctrl-C does not wait for the end of a client's round."""
    shared_model = make_bench("fedavg-lora")
    rounds = rounds_of(shared_model, clients_of(shared_model, [6, 6]))
    model, steps = type(shared_model.model), []
    plain = model.outputs

    def outputs(self, batch):
        steps.append(1)
        if len(steps) == 5:
            raise KeyboardInterrupt
        time.sleep(0.01)
        return plain(self, batch)

    monkeypatch.setattr(model, "outputs", outputs)
    with pytest.raises(KeyboardInterrupt):
        train_rounds(shared_model, rounds, settings(epochs=1000), TWO)
    assert len(steps) < 200


def test_groups_are_even_and_enough_for_all_threads():
    def sizes(count, **at_once):
        groups = AtOnce(**at_once).groups(range(count))
        assert [item for group in groups for item in group] == list(range(count))
        return [len(group) for group in groups]

    assert sizes(10, threads=2, clients=8) == [5, 5]
    assert sizes(11, threads=2, clients=4) == [2, 3, 3, 3]
    assert sizes(3, threads=1, clients=1) == [1, 1, 1]
    assert sizes(1, threads=4, clients=2) == [1] and sizes(0, threads=2, clients=2) == []


def test_who_trains_at_once_is_a_matter_of_settings_and_sizes(make_bench, two_cores):
    shared_model = make_bench("fedavg-lora")
    clients = clients_of(shared_model, [20, 20, 20])
    few, many = (clients_at_once(shared_model, clients, settings(batch_size=size)) for size in (4, 64))
    assert few.threads == many.threads == 2 and few.clients > many.clients >= 1
    assert clients_at_once(shared_model, clients, settings(batch_size=10**6)) == AtOnce()
    assert clients_at_once(shared_model, clients, settings(clients_at_once=5)) == AtOnce(2, 2)
    assert clients_at_once(shared_model, clients, settings(clients_at_once=1)) == AtOnce()
    assert clients_at_once(shared_model, clients, settings(clients_at_once=3, micro_batch=2)) == AtOnce()
    assert clients_at_once(make_bench("fedavg-full"), clients, settings(clients_at_once=3)) == AtOnce()
    torch.set_num_threads(1)
    assert clients_at_once(shared_model, clients, settings(clients_at_once=3)) == AtOnce(1, 3)


@pytest.mark.parametrize("method", ["own-prior", "fedavg-lora", "local"])
def test_clients_that_are_scored_in_threads_have_the_scores_of_one_after_the_other(
    method, toy_values, tmp_path, two_cores
):
    found = []
    for at_once in (1, 2):
        values = toy_values(method=method, rounds=2, evaluate_every=1, training={"clients_at_once": at_once})
        done = run(make_config(values), tmp_path / str(at_once))
        found.append([event for event in RunFolder(done.path).events() if event["event"] == "scores"])
    assert len(found[0]) == len(found[1]) > 0
    for one, other in zip(*found, strict=True):
        assert (one["client"], one["stage"], one["round"]) == (other["client"], other["stage"], other["round"])
        for part in ("valid", "test"):
            assert one[part]["loss"] == pytest.approx(other[part]["loss"], abs=1e-3)
