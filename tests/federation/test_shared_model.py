"""One frozen base for all clients: same start for the same seed, and nothing but the trained tensors moves."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from many_clients import ALIKE
from trifed.common.errors import ModelError
from trifed.config.run import make_config
from trifed.data import text_examples
from trifed.federation.client_update import ClientDataset, ClientState, RoundTraining, score, train_rounds
from trifed.federation.training.batches import learning_rate
from trifed.methods import METHODS

TEXTS = ["invoice word001 refund", "parcel word002", "password reset word003 word004 word005", "courier word006"]
EXAMPLES = text_examples(TEXTS, None, np.array([0, 1, 2, 1]))


def settings(toy_values, **training):
    return make_config(toy_values(training=training)).training


@pytest.mark.parametrize("method", sorted(set(METHODS) - ALIKE))
def test_the_start_is_that_of_the_seed(method, make_bench):
    first, second, other = make_bench(method), make_bench(method), make_bench(method, seed=1)
    assert first.layout == second.layout
    assert np.array_equal(first.start_values, second.start_values)
    for name, tensor in first.start.items():
        assert torch.equal(tensor, second.start[name])
    assert not torch.equal(first.start["head.weight"], other.start["head.weight"])
    factors = [name for name in first.start if ".lora_A." in name]
    assert not any(torch.equal(first.start[name], other.start[name]) for name in factors)
    if METHODS[method].adapter in ("lora", "tri-matrix"):
        assert len(factors) == (0 if method == "ffa-lora" else 4)


def test_building_does_not_move_torchs_generator(make_bench):
    before = torch.get_rng_state()
    make_bench("ce-lora")
    assert torch.equal(torch.get_rng_state(), before)


def test_all_methods_start_from_the_same_head_and_factors(make_bench):
    reference = make_bench("ce-lora").start
    for method in METHODS.values():
        if "init_std" in method.defaults.get("adapter", {}):
            continue
        shared_model = make_bench(method.name)
        assert torch.equal(shared_model.start["head.weight"], reference["head.weight"]), method.name
        if method.adapter in ("lora", "tri-matrix"):
            for name, tensor in [*shared_model.start.items(), *shared_model.frozen.items()]:
                if name in reference:  # a personal head is its method's own
                    assert torch.equal(tensor, reference[name]), (method.name, name)


@pytest.mark.parametrize("method", ["ce-lora", "ffa-lora"])
def test_a_first_factor_of_another_size(method, make_bench, toy_values):
    """A ~ N(0, std²) by the seed, in float32 and in 16 bits; nothing else is another, and step 0 is the base's."""
    usual, own = make_bench(method), make_bench(method, adapter={"init_std": 1e-3})
    again, other = (make_bench(method, seed=seed, adapter={"init_std": 1e-3}) for seed in (0, 1))
    coarse = make_bench(method, adapter={"init_std": 1e-3}, model={"dtype": "bfloat16"})
    for name in (name for name in {**own.frozen, **own.parameters} if ".lora_" in name or name == "head.weight"):
        found, before, second, drawn = (
            {**bench.frozen, **bench.parameters}[name] for bench in (own, usual, again, other)
        )
        assert torch.equal(found, second)
        if ".lora_A." not in name:
            assert torch.equal(found, before)
        else:
            assert found.std().item() == pytest.approx(1e-3, rel=0.25) and abs(found.mean().item()) < 3e-4
            assert not torch.equal(found, drawn)
            assert torch.equal({**coarse.frozen, **coarse.parameters}[name], found)
    first = [tensor for name, tensor in {**own.frozen, **own.parameters}.items() if ".lora_A." in name]
    assert not torch.equal(first[0], first[1])
    data = own.encode(EXAMPLES)
    own.model.eval()
    with torch.no_grad():
        adapted = own.model.features(data.batch(np.arange(4), torch.device("cpu"))).numpy()
    np.testing.assert_array_equal(adapted, own.base_features(data, settings(toy_values)))


def test_shared_projections_keep_their_own_start(make_bench):
    usual, own = make_bench("fed-xs"), make_bench("fed-xs", adapter={"init_std": 1e-3})
    for name, tensor in own.frozen.items():
        assert torch.equal(tensor, usual.frozen[name])


@pytest.mark.parametrize("method", sorted(set(METHODS) - ALIKE))
def test_the_adapter_changes_nothing_at_the_start(method, make_bench, toy_values):
    shared_model = make_bench(method)
    data, chosen = shared_model.encode(EXAMPLES), settings(toy_values)
    shared_model.model.eval()
    with torch.no_grad():
        adapted = shared_model.model.features(data.batch(np.arange(4), torch.device("cpu"))).numpy()
    np.testing.assert_array_equal(adapted, shared_model.base_features(data, chosen))


@pytest.mark.parametrize("method", sorted(set(METHODS) - {"fedavg-full", "feddpa"} - ALIKE))
def test_training_moves_what_trains_and_leaves_the_base_bit_for_bit(method, make_bench, toy_values):
    shared_model = make_bench(method)
    frozen = {
        name: param.clone()
        for name, param in [*shared_model.model.named_parameters(), *shared_model.model.named_buffers()]
        if not param.requires_grad
    }
    data = shared_model.encode(EXAMPLES)
    client, state = ClientDataset(0, "one", data, data, data), ClientState(dict(shared_model.start), {}, 0)
    chosen = settings(toy_values, steps=3)
    for number in (1, 2):
        known = shared_model.pack(shared_model.start, shared_model.received)
        download = known if shared_model.layout and number == 2 else None
        done = train_rounds(shared_model, [RoundTraining(client, state, download, 0, number, 2)], chosen)[0]
        state = done.state
    assert state.steps == 6
    score(shared_model, state.tensors, data, chosen)
    now = dict([*shared_model.model.named_parameters(), *shared_model.model.named_buffers()])
    assert len(frozen) > 20 and all(torch.equal(now[name], tensor) for name, tensor in frozen.items())
    assert set(state.tensors) == set(shared_model.start)
    assert [
        name
        for name, param in shared_model.parameters.items()
        if torch.equal(state.tensors[name], shared_model.start[name]) == param.requires_grad
    ] == []


def test_a_client_that_missed_rounds_trains_at_the_rate_of_the_others(make_bench, toy_values, monkeypatch):
    """Otherwise one that joins for the last round moves further than all others of a sum."""
    shared_model, asked = make_bench("fedavg-lora"), []
    data = shared_model.encode(EXAMPLES)
    client, chosen = ClientDataset(0, "one", data, data, data), settings(toy_values, steps=2, schedule="linear")

    def noted(*args):
        asked.append(learning_rate(*args))
        return asked[-1]

    monkeypatch.setattr("trifed.federation.training.local_training.learning_rate", noted)
    for steps in (0, 4):
        state = ClientState(dict(shared_model.start), {}, steps)
        train_rounds(shared_model, [RoundTraining(client, state, None, 0, 3, 4)], chosen)
    assert asked == pytest.approx([chosen.learning_rate * left / 8 for left in (4, 3, 4, 3)])


def test_tensors_taken_are_copies(make_bench):
    shared_model = make_bench("ce-lora")
    taken = shared_model.take()
    shared_model.load({name: tensor + 1 for name, tensor in shared_model.start.items()})
    assert all(torch.equal(taken[name], shared_model.start[name]) for name in taken)
    assert all(torch.equal(shared_model.take()[name], shared_model.start[name] + 1) for name in taken)


def test_a_download_replaces_what_travels_and_nothing_else(make_bench):
    shared_model = make_bench("ce-lora")
    values = np.arange(len(shared_model.start_values), dtype=np.float32)
    own = {name: tensor + 0.5 for name, tensor in shared_model.start.items()}
    received = shared_model.receive(own, values)
    sent = [name for name, _ in shared_model.layout]
    assert np.array_equal(shared_model.pack(received), values)
    assert all(received[name] is own[name] for name in own if name not in sent)
    values[:] = -1  # the message's buffer is not the client's memory
    assert (shared_model.pack(received) >= 0).all()


def test_without_an_adapter_everything_trains_but_the_pooler_that_nothing_reads(make_bench, toy_values):
    shared_model = make_bench("fedavg-full")
    before = {name: param.detach().clone() for name, param in shared_model.model.named_parameters()}
    data = shared_model.encode(EXAMPLES)
    client, state = ClientDataset(0, "one", data, data, data), ClientState(dict(shared_model.start), {}, 0)
    chosen = settings(toy_values, steps=3)
    train_rounds(shared_model, [RoundTraining(client, state, None, 0, 1, 1)], chosen)
    still = [name for name, param in shared_model.model.named_parameters() if torch.equal(param, before[name])]
    assert still and all(".pooler." in name for name in still)
    assert {"embeddings.word_embeddings.weight", "embeddings.LayerNorm.weight", "head.bias"} <= set(
        shared_model.start
    )
    # The features of controls and summaries are those of the base as it came, whatever is loaded.
    np.testing.assert_array_equal(
        shared_model.base_features(data, chosen), make_bench("local").base_features(data, chosen)
    )


def test_the_first_gradient_is_that_of_the_mean_loss(make_bench, toy_values):
    shared_model = make_bench("fed-sb")
    data, chosen = shared_model.encode(EXAMPLES), settings(toy_values, batch_size=3)
    found = shared_model.first_gradient(data, chosen)
    assert len(found) == 4 and all(values.shape == (32, 32) for values in found.values())
    assert not any(weight.requires_grad for weight in shared_model.adapted.values())
    # In one entry against the difference quotient of the mean loss over all rows.
    layer = next(iter(found))
    weight, step = shared_model.adapted[layer], 1e-2
    place = np.unravel_index(np.abs(found[layer]).argmax(), found[layer].shape)
    losses = []
    for sign in (1, -1):
        with torch.no_grad():
            weight[place] += sign * step
            losses.append(float(shared_model.model.loss(data.batch(np.arange(len(data)), torch.device("cpu")))))
            weight[place] -= sign * step
    assert (losses[0] - losses[1]) / (2 * step) == pytest.approx(float(found[layer][place]), rel=2e-2)


def test_frames_that_were_agreed_on_replace_the_adapters_own(make_bench):
    shared_model = make_bench("fed-sb")
    names = [*shared_model.frozen, *(name for name in shared_model.start if ".lora_C." in name)]
    shapes = {name: tuple({**shared_model.frozen, **shared_model.parameters}[name].shape) for name in names}
    rng = np.random.default_rng(0)
    shared_projections = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    shared_model.set_shared_projections(shared_projections)
    shared_model.load(shared_model.start)
    for name, values in shared_projections.items():
        assert np.array_equal({**shared_model.frozen, **shared_model.parameters}[name].detach().numpy(), values), (
            name
        )


@pytest.mark.parametrize("method", sorted(set(METHODS) - ALIKE))
def test_what_plain_lora_would_send_is_counted_alike_for_every_method(method, make_bench):
    # 2 blocks x query and value, A (4, 32) and B (32, 4), and a head (3, 32) with its bias; 4 bytes each. 4 is
    # the default rank of `own-prior-lora`, and plain LoRA in its place has its own default, 8.
    rank = 8 if method == "own-prior-lora" else 4
    assert make_bench(method).lora_bytes == 4 * (2 * 2 * 2 * rank * 32 + 3 * 32 + 3)


@pytest.mark.parametrize(
    ("adapter", "message"),
    [
        ({"rank": 33}, "adapter.rank: .*33"),
        ({"target_modules": ["query", "q_proj"]}, "'q_proj'"),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused(adapter, message, make_bench):
    with pytest.raises(ModelError, match=message):
        make_bench("ce-lora", adapter=adapter)
