"""Clients that train in one pass have the numbers that they have alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from many_clients import ADAPTED, check_equal, clients_of, rounds_of, settings, texts
from trifed.federation.client_update import ClientState, RoundTraining, train_rounds
from trifed.federation.training.batches import RoundRandom
from trifed.federation.training.dropout import ClientDropout, Part
from trifed.federation.training.local_training import LocalTraining, train_locally
from trifed.federation.training.stack import CannotStackError
from trifed.methods.base import Proximal


def alone_and_together(shared_model, clients, chosen, **more):
    rounds = rounds_of(shared_model, clients, **more)
    alone = [train_rounds(shared_model, [each], chosen)[0] for each in rounds]
    together = train_rounds(shared_model, rounds, chosen)
    assert not shared_model.alone
    return alone, together


@pytest.mark.parametrize("method", ADAPTED)
def test_every_method_that_trains_adapters_has_the_numbers_of_training_alone(method, make_bench):
    """With dropout everywhere, other lengths, and other numbers of examples and so of steps: 3, 1, 0 and 5."""
    shared_model = make_bench(method, adapter={"dropout": 0.2})
    clients = clients_of(shared_model, [11, 3, 0, 19])
    alone, together = alone_and_together(shared_model, clients, settings())
    assert [each.state.steps for each in together] == [3, 1, 0, 5]
    check_equal(alone, together)
    assert not torch.equal(together[0].state.tensors["head.weight"], together[1].state.tensors["head.weight"])


def test_a_proximal_term_a_schedule_and_kept_moments_are_each_clients_own(make_bench):
    shared_model = make_bench("fedavg-lora")
    clients, chosen = clients_of(shared_model, [9, 14]), settings(schedule="linear", warmup=0.2, clip_norm=0.1)
    proximal = Proximal(strength=0.5, share=0.5, every=2)
    first = train_rounds(shared_model, rounds_of(shared_model, clients, proximal=proximal), chosen)
    states = [each.state for each in first]
    rounds = rounds_of(shared_model, clients, number=2, states=states, proximal=proximal)
    alone = [train_rounds(shared_model, [each], chosen)[0] for each in rounds]
    check_equal(alone, train_rounds(shared_model, rounds, chosen))
    again = train_rounds(shared_model, rounds, chosen)
    for one, other in zip(train_rounds(shared_model, rounds, chosen), again, strict=True):
        assert all(torch.equal(one.state.tensors[name], tensor) for name, tensor in other.state.tensors.items())


def test_one_client_in_a_stack_is_that_client_to_the_bit(make_bench):
    shared_model = make_bench("own-prior", adapter={"dropout": 0.2})
    data = clients_of(shared_model, [13])[0].train
    found = []
    for separate in (False, True):
        shared_model.load(shared_model.start)
        named = {n: nn.Parameter(p.detach().clone()) for n, p in shared_model.parameters.items()}
        job = LocalTraining(
            named if separate else shared_model.parameters, data, RoundRandom.of(0, 1, 0), 0, 9, {}
        )
        jobs = [job, job] if separate else [job]
        if separate:  # a stack of one: the other client has no examples
            empty = shared_model.encode(texts(0, 0))
            other = {n: nn.Parameter(p.detach().clone()) for n, p in shared_model.parameters.items()}
            jobs = [job, LocalTraining(other, empty, RoundRandom.of(0, 1, 1), 0, 9, {})]
        done = train_locally(shared_model.model, jobs, settings(), shared_model.parameters)[0]
        found.append((done.loss, {n: p.detach().clone() for n, p in job.parameters.items()}))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-6)
    for name, tensor in found[0][1].items():
        torch.testing.assert_close(found[1][1][name], tensor, rtol=1e-4, atol=1e-6)


def test_a_client_that_diverges_does_not_disturb_the_others(make_bench):
    shared_model = make_bench("fedavg-lora")
    clients, chosen = clients_of(shared_model, [9, 9]), settings()
    broken = {name: torch.full_like(tensor, torch.nan) for name, tensor in shared_model.start.items()}
    states = [ClientState(broken, {}, 0), ClientState(dict(shared_model.start), {}, 0)]
    rounds = [RoundTraining(c, s, None, 3, 1, 2) for c, s in zip(clients, states, strict=True)]
    done = train_rounds(shared_model, rounds, chosen)
    assert np.isnan(done[0].loss)
    check_equal([train_rounds(shared_model, rounds[1:], chosen)[0]], done[1:])


def test_a_model_with_random_numbers_of_its_own_trains_one_client_after_the_other(make_bench, monkeypatch):
    shared_model = make_bench("fedavg-lora")
    clients, chosen = clients_of(shared_model, [6, 6]), settings()
    model = type(shared_model.model)
    plain = model.outputs
    monkeypatch.setattr(model, "outputs", lambda self, batch: plain(self, batch) + 0 * torch.rand(1))
    rounds = rounds_of(shared_model, clients)
    together = train_rounds(shared_model, rounds, chosen)
    assert len(shared_model.alone) == 1 and not shared_model.can_stack
    for each, one in zip(rounds, together, strict=True):
        alone = train_rounds(shared_model, [each], chosen)[0]
        assert all(torch.equal(one.state.tensors[n], t) for n, t in alone.state.tensors.items())


# -- dropout


def masks(parts, clients, shape, p=0.25, dtype=torch.float32):
    dropout = ClientDropout([7, 8, 9], torch.device("cpu"))
    dropout.parts, dropout.clients = parts, clients
    return dropout.mask(torch.zeros(shape, dtype=dtype), p)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_a_mask_keeps_the_mean_and_drops_its_share(dtype):
    mask = masks([Part(40, {50: 50})], [0], (40, 50, 32), dtype=dtype)
    share = (mask == 0).double().mean().item()
    assert abs(share - 0.25) < 4 * (0.25 * 0.75 / mask.numel()) ** 0.5
    assert set(mask.unique().double().tolist()) == {0.0, float(torch.tensor(1 / 0.75, dtype=dtype))}


@pytest.mark.parametrize("inner", [(16,), (3, 16)])
def test_a_clients_mask_is_the_same_in_a_wider_batch(inner):
    """Hidden values (n, width, d), and shares of attention (n, heads, width, width)."""
    wide = 16
    own = [Part(4, {wide: 8}), Part(2, {wide: 16}), Part(3, {wide: 8})]

    def shape(rows, width):
        return (rows, width, 5) if inner == (16,) else (rows, 3, width, width)

    together = masks(own, [0, 1, 2], shape(12, wide)).reshape(3, *shape(4, wide))
    for client, part in enumerate(own):
        width = part.widths[wide]
        alone = masks([Part(part.rows, {width: width})], [client], shape(part.rows, width))
        same = together[client][tuple(slice(size) for size in alone.shape)]
        assert torch.equal(same, alone)
    flat = masks(own, [0, 1, 2], (12 * wide, 5)).reshape(3, 4, wide, 5)  # rows and positions in one dimension
    assert torch.equal(flat, masks(own, [0, 1, 2], (12, wide, 5)).reshape(3, 4, wide, 5))


def test_dropout_of_what_all_rows_share_cannot_be_stacked():
    """As DeBERTa's of relative positions, (2 · span, d)."""
    parts = [Part(4, {8: 8}), Part(4, {8: 8})]
    for shape in ((160, 32), (3, 5, 7)):
        with pytest.raises(CannotStackError):
            masks(parts, [0, 1], shape)
        assert masks(parts[:1], [0], shape).shape == shape
    for shape in ((8, 32), (64, 32), (8, 8, 32), (16, 4, 4, 32)):
        assert masks(parts, [0, 1], shape).shape == shape


@pytest.mark.parametrize("options", [{}, {"is_causal": True}, {"scale": 0.3}, {"mask": True}, {"gqa": True}])
def test_attention_is_torchs_but_for_the_mask(options):
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, 4, 6, 8, generator=generator) for _ in range(3))
    options = dict(options)
    if options.pop("mask", False):
        options["attn_mask"] = torch.ones(2, 1, 6, 6, dtype=torch.bool).tril()
    if options.pop("gqa", False):
        key, value, options["enable_gqa"] = key[:, :2], value[:, :2], True
    expected = nn.functional.scaled_dot_product_attention(query, key, value, **options)
    dropout = ClientDropout([1], torch.device("cpu"))
    dropout.parts = [Part(2, {6: 6})]
    with dropout:
        found = nn.functional.scaled_dot_product_attention(query, key, value, dropout_p=1e-6, **options)
        torch.testing.assert_close(found, expected)
        other = nn.functional.scaled_dot_product_attention(query, key, value, dropout_p=0.5, **options)
    assert not torch.allclose(other, expected)
