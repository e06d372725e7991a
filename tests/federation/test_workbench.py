"""One frozen base for all clients: same start for the same seed, and nothing but the trained tensors moves."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from trifed.config import make_config
from trifed.data import Examples
from trifed.errors import ModelError
from trifed.federation.client import Client, ClientState, score, train_round
from trifed.methods import METHODS

TEXTS = ["invoice word001 refund", "parcel word002", "password reset word003 word004 word005", "courier word006"]
EXAMPLES = Examples(TEXTS, None, np.array([0, 1, 2, 1]))


def settings(toy_values, **training):
    return make_config(toy_values(training=training)).training


@pytest.mark.parametrize("method", sorted(METHODS))
def test_the_start_is_that_of_the_seed(method, make_bench):
    first, second, other = make_bench(method), make_bench(method), make_bench(method, seed=1)
    assert first.layout == second.layout
    assert np.array_equal(first.start_values, second.start_values)
    for name, tensor in first.start.items():
        assert torch.equal(tensor, second.start[name])
    assert not torch.equal(first.start["head.weight"], other.start["head.weight"])
    factors = [name for name in first.start if ".lora_A." in name]
    assert factors and not any(torch.equal(first.start[name], other.start[name]) for name in factors)


def test_building_does_not_move_torchs_generator(make_bench):
    before = torch.get_rng_state()
    make_bench("ce-lora")
    assert torch.equal(torch.get_rng_state(), before)


def test_all_methods_start_from_the_same_head_and_factors(make_bench):
    benches = [make_bench(method) for method in ("ce-lora", "fedavg-lora", "local")]
    for name in benches[1].start:
        for bench in benches:
            assert torch.equal(bench.start[name], benches[1].start[name]), name


@pytest.mark.parametrize("method", sorted(METHODS))
def test_the_adapter_changes_nothing_at_the_start(method, make_bench, toy_values):
    bench = make_bench(method)
    data, chosen = bench.encode(EXAMPLES), settings(toy_values)
    bench.model.eval()
    with torch.no_grad():
        adapted = bench.model.features(data.batch(np.arange(4), torch.device("cpu"))).numpy()
    np.testing.assert_array_equal(adapted, bench.base_features(data, chosen))


@pytest.mark.parametrize("method", ["ce-lora", "fedavg-lora", "local"])
def test_training_moves_what_trains_and_leaves_the_base_bit_for_bit(method, make_bench, toy_values):
    bench = make_bench(method)
    frozen = {
        name: param.clone()
        for name, param in [*bench.model.named_parameters(), *bench.model.named_buffers()]
        if not param.requires_grad
    }
    data = bench.encode(EXAMPLES)
    client, state = Client(0, "one", data, data, data), ClientState(dict(bench.start), {}, 0)
    chosen = settings(toy_values, steps=3)
    for number in (1, 2):
        download = bench.start_values if bench.layout and number == 2 else None
        state, _ = train_round(bench, client, state, download, chosen, seed=0, round_number=number, rounds=2)
    assert state.steps == 6
    score(bench, state.tensors, data, chosen)
    now = dict([*bench.model.named_parameters(), *bench.model.named_buffers()])
    assert len(frozen) > 20 and all(torch.equal(now[name], tensor) for name, tensor in frozen.items())
    assert set(state.tensors) == set(bench.start)
    assert [name for name in bench.start if torch.equal(state.tensors[name], bench.start[name])] == []


def test_tensors_taken_are_copies(make_bench):
    bench = make_bench("ce-lora")
    taken = bench.take()
    bench.load({name: tensor + 1 for name, tensor in bench.start.items()})
    assert all(torch.equal(taken[name], bench.start[name]) for name in taken)
    assert all(torch.equal(bench.take()[name], bench.start[name] + 1) for name in taken)


def test_a_download_replaces_what_travels_and_nothing_else(make_bench):
    bench = make_bench("ce-lora")
    values = np.arange(len(bench.start_values), dtype=np.float32)
    own = {name: tensor + 0.5 for name, tensor in bench.start.items()}
    received = bench.receive(own, values)
    sent = [name for name, _ in bench.layout]
    assert np.array_equal(bench.pack(received), values)
    assert all(received[name] is own[name] for name in own if name not in sent)
    values[:] = -1  # the message's buffer is not the client's memory
    assert (bench.pack(received) >= 0).all()


@pytest.mark.parametrize("method", ["ce-lora", "fedavg-lora", "local"])
def test_what_plain_lora_would_send_is_counted_alike_for_every_method(method, make_bench):
    # 2 blocks x query and value, A (4, 32) and B (32, 4), and a head (3, 32) with its bias; 4 bytes each.
    assert make_bench(method).lora_bytes == 4 * (2 * 2 * 2 * 4 * 32 + 3 * 32 + 3)


@pytest.mark.parametrize(
    ("adapter", "message"),
    [
        ({"rank": 33}, "adapter.rank: 33 is larger"),
        ({"target_modules": ["query", "q_proj"]}, "'q_proj' matches no linear layer"),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused(adapter, message, make_bench):
    with pytest.raises(ModelError, match=message):
        make_bench("ce-lora", adapter=adapter)
