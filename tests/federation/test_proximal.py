"""A pull towards what was received: loss + ½ λ ‖θ − anchor‖², and an anchor that follows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from local_training import EXAMPLES, chosen
from torch import nn

from trifed.federation.client_update import ClientDataset, ClientState, RoundTraining, train_rounds
from trifed.federation.training.local_training import ProximalTerm
from trifed.methods.base import Proximal


def params(*values):
    return {f"p{i}": nn.Parameter(torch.tensor(value)) for i, value in enumerate(values)}


def test_its_gradient_is_lambda_times_the_distance():
    named = params([1.0, 2.0], [3.0])
    proximal_term = ProximalTerm(Proximal(strength=0.5), named)
    with torch.no_grad():
        named["p0"] += torch.tensor([4.0, -2.0])
    for param in named.values():
        param.grad = torch.ones_like(param)
    proximal_term.add_gradient()
    assert named["p0"].grad.tolist() == [1 + 0.5 * 4, 1 - 0.5 * 2] and named["p1"].grad.tolist() == [1.0]


def test_the_anchor_goes_its_share_of_the_way_every_so_many_steps_and_at_the_end():
    named = params([0.0])
    proximal_term = ProximalTerm(Proximal(strength=1.0, share=0.25, every=2), named)
    seen = []
    for step in range(1, 4):
        with torch.no_grad():
            named["p0"].fill_(8.0)
        proximal_term.move(step, 3)
        seen.append(proximal_term.anchors["p0"].item())
    # 0, then 0 + 8/4 = 2 after step 2, then 2 + 6/4 = 3.5 at the end of the round.
    assert seen == [0.0, 2.0, 3.5]


def one_round(shared_model, proximal, **values):
    data = shared_model.encode(EXAMPLES)
    client, state = ClientDataset(0, "one", data, data, data), ClientState(dict(shared_model.start), {}, 0)
    setting = chosen(steps=6, weight_decay=0.0, clip_norm=0.0, **values)
    training = RoundTraining(client, state, shared_model.start_values, 0, 1, 1, proximal)
    return train_rounds(shared_model, [training], setting)[0]


def distance(shared_model, tensors):
    return float(np.linalg.norm(shared_model.pack(tensors) - shared_model.start_values))


def test_a_stronger_pull_ends_nearer_and_none_changes_nothing(make_bench):
    shared_model = make_bench("fedprox-lora")
    free = one_round(shared_model, None)
    zero = one_round(shared_model, Proximal(strength=0.0))
    assert all(torch.equal(free.state.tensors[name], zero.state.tensors[name]) for name in free.state.tensors)
    far = [
        distance(shared_model, one_round(shared_model, Proximal(strength)).state.tensors)
        for strength in (0.0, 1.0, 100.0)
    ]
    assert far[0] > far[1] > far[2] > 0


def test_fedprox_sends_what_it_trained_and_pfedme_its_anchor(make_bench):
    shared_model = make_bench("pfedme-lora")
    fixed = one_round(shared_model, Proximal(strength=0.1))
    assert all(torch.equal(fixed.sent[name], fixed.state.tensors[name]) for name in fixed.sent)
    follows = one_round(shared_model, Proximal(strength=0.1, share=0.5, every=1))
    near, far = distance(shared_model, follows.sent), distance(shared_model, follows.state.tensors)
    assert near > 0 and near != pytest.approx(far)
    # With share 1 at every step the anchor is θ itself, and pulls no more than its last step.
    whole = one_round(shared_model, Proximal(strength=0.1, share=1.0, every=1))
    for name in whole.sent:
        torch.testing.assert_close(whole.sent[name], whole.state.tensors[name])
