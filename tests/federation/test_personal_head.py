"""A second head that stays with the client: its gradients, what is sent, and the one head that both become."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy

from many_clients import clients_of, rounds_of, settings
from trifed.common.errors import ModelError
from trifed.config.run import make_config
from trifed.federation.client_update import train_rounds
from trifed.federation.kept_checkpoints import CHECKPOINT
from trifed.federation.messages import ENVELOPE
from trifed.federation.personalization import with_personal_head
from trifed.federation.state_tensors import read_checkpoint
from trifed.federation.training.shared_model import build_shared_model
from trifed.methods import METHODS
from trifed.tasks import TASKS

METHOD = "fedrod-lora"


def test_the_common_head_learns_with_the_prior_and_the_personal_one_on_top_of_it(make_bench):
    """Gradients of two linear heads in closed form: (p − y) xᵀ / n, p of each loss's own logits."""
    shared_model, generator = make_bench(METHOD), torch.Generator().manual_seed(0)
    model, named = shared_model.model, shared_model.parameters
    prior = torch.tensor([0.7, 0.2, 0.1]).log()
    with torch.no_grad():
        named["prior.bias"].copy_(prior)
        named["personal.weight"].copy_(torch.randn(3, 32, generator=generator))
        named["personal.bias"].copy_(torch.randn(3, generator=generator))
    batch = clients_of(shared_model, [7])[0].train.batch(np.arange(7), torch.device("cpu"))
    model.eval()
    loss = model.loss(batch)
    loss.backward()
    with torch.no_grad():
        x, y = model.features(batch), torch.eye(3)[batch["labels"]]
        common = x @ named["head.weight"].T + named["head.bias"]
        both = common + x @ named["personal.weight"].T + named["personal.bias"]
        expected = cross_entropy(common + prior, batch["labels"]) + cross_entropy(both, batch["labels"])
    torch.testing.assert_close(loss.detach(), expected)
    for head, logits in (("head", common + prior), ("personal", both)):
        error = (logits.softmax(-1) - y) / 7
        torch.testing.assert_close(named[f"{head}.weight"].grad, error.T @ x, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(named[f"{head}.bias"].grad, error.sum(0), rtol=1e-4, atol=1e-6)
    # The adapter learns from the first loss alone.
    factor = next(name for name in named if ".lora_B." in name)
    found = named[factor].grad.clone()
    named[factor].grad = None
    cross_entropy(model.head(model.features(batch)) + prior, batch["labels"]).backward()
    torch.testing.assert_close(found, named[factor].grad, rtol=1e-4, atol=1e-6)


def test_scores_are_those_of_the_sum_of_the_heads(make_bench):
    shared_model = make_bench(METHOD)
    tensors = {name: torch.randn(tensor.shape) for name, tensor in shared_model.start.items()}
    batch = clients_of(shared_model, [5])[0].train.batch(np.arange(5), torch.device("cpu"))
    shared_model.load(tensors)
    shared_model.model.eval()
    with torch.no_grad():
        features = shared_model.model.features(batch)
        expected = shared_model.model(batch) + shared_model.model.personal(features)
        shared_model.load(with_personal_head(tensors))
        torch.testing.assert_close(shared_model.model(batch), expected)
    plain = {name: tensor for name, tensor in tensors.items() if not name.startswith("personal.")}
    assert with_personal_head(plain) is plain


def test_the_prior_does_not_train_and_clients_share_a_pass(make_bench):
    shared_model = make_bench(METHOD)
    rounds = rounds_of(shared_model, clients_of(shared_model, [9, 4]), frozen=frozenset({"prior.bias"}))
    alone = [train_rounds(shared_model, [each], settings())[0] for each in rounds]
    together = train_rounds(shared_model, rounds, settings())
    assert not shared_model.alone
    for one, other in zip(alone, together, strict=True):
        assert not other.state.tensors["prior.bias"].any() and "step/prior.bias" not in other.state.moments
        for name, tensor in one.state.tensors.items():
            torch.testing.assert_close(other.state.tensors[name], tensor, rtol=2e-3, atol=2e-4)


def test_a_run_keeps_the_personal_head_at_home_and_writes_one_head(finished):
    done = finished(METHOD)
    for event in (e for e in done.events if e["event"] == "trained"):
        sent = {name for name in event["up"] if name != ENVELOPE}
        assert {"head.weight", "head.bias"} <= sent and not any(n.startswith(("personal", "prior")) for n in sent)
    plain = finished("fedavg-lora")
    assert done.summary["bytes"]["up"] == plain.summary["bytes"]["up"]
    _, states, _ = read_checkpoint(done.path / CHECKPOINT, "")
    shares = []
    for name, state in zip(("amber", "basil", "coral"), states, strict=True):
        head = load_file(done.path / "clients" / name / "head.safetensors")
        assert state.tensors["personal.weight"].abs().max() > 0
        assert torch.equal(head["weight"], state.tensors["head.weight"] + state.tensors["personal.weight"])
        assert torch.equal(head["bias"], state.tensors["head.bias"] + state.tensors["personal.bias"])
        shares.append(state.tensors["prior.bias"].exp())
    assert all(float(share.sum()) == pytest.approx(1, rel=1e-5) for share in shares)
    assert len({tuple(share.tolist()) for share in shares}) > 1
    assert done.result.client("amber").predict(["invoice refund charge"])[0] in ("billing", "delivery", "login")


def test_a_task_without_a_linear_head_for_labels_is_refused(toy_values, tiny_encoder):
    config = make_config(toy_values(method=METHOD))
    given, task = (config.model, config.adapter, config.training), TASKS["text-regression"]
    with pytest.raises(ModelError, match=f"'{METHOD}' needs a linear head"):
        build_shared_model(task.load(str(tiny_encoder)), METHODS[METHOD], ["all"], 0, given, task)
