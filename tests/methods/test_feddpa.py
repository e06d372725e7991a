"""FedDPA: a global and a local LoRA, the two trainings of a round, and a weight of both for each input."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertModel, GPT2Config, GPT2Model

import trifed
from many_clients import clients_of, rounds_of, settings
from trifed import make_config
from trifed.adapters.attach import attach, save_adapter, without_peft_warnings
from trifed.adapters.dual import PARTS
from trifed.adapters.mixture import mixture_layers
from trifed.adapters.settings import AdapterSettings
from trifed.common.errors import AdapterError, ConfigError, ModelError
from trifed.data import make_clients
from trifed.federation.client_update import train_rounds
from trifed.federation.kept_checkpoints import CHECKPOINT
from trifed.federation.messages import ENVELOPE
from trifed.federation.state_tensors import read_checkpoint
from trifed.federation.training.shared_model import build_shared_model
from trifed.methods import METHODS
from trifed.methods.base import is_factor, is_head, is_local
from trifed.tasks import TASKS

METHOD = "feddpa"
SHARE = "base_model.lora_share.weight"
IDS = torch.arange(24).reshape(4, 6)
MASK = torch.tensor([[1] * 6, [1] * 6, [1] * 4 + [0] * 2, [1] * 2 + [0] * 4])


def bert():
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    return BertModel(BertConfig(vocab_size=40, **sizes)).eval()


def gpt2():
    torch.manual_seed(0)
    return GPT2Model(GPT2Config(vocab_size=40, n_embd=16, n_layer=2, n_head=2, n_positions=16)).eval()


@pytest.fixture(params=[(bert, ["query", "dense"]), (gpt2, ["c_attn", "c_proj"])], ids=["bert", "gpt2"])
def adapted(request):
    """A function that makes a base, and that base with random LoRAs and weights."""
    make, targets = request.param
    model = attach(make(), "lora-dual", AdapterSettings(rank=2, alpha=6, target_modules=targets), 0).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, param in model.named_parameters():
            if ".lora_" in name:
                param.copy_(0.4 * torch.randn(param.shape, generator=generator))
    return make, model


def outputs(model, ids=IDS, mask=MASK):
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=mask).last_hidden_state


def test_each_example_has_its_own_weight_of_the_two_loras(adapted):
    """The output for an example is that of one weight, W0 + s ((1 - a) B A + a B_l A_l), with a by hand."""
    make, model = adapted
    with model.disable_adapter():
        states = outputs(model)
    with torch.no_grad():
        first, last = states[0].mean(0), states[3, :2].mean(0)
        model.base_model.lora_share["default"].weight[0] = 0.7 * first / first.norm() - 0.3 * last / last.norm()
    found = outputs(model)
    torch.testing.assert_close(states, outputs(make()), rtol=0, atol=0)
    w, shares = model.base_model.lora_share["default"].weight[0].detach(), []
    layers = list(mixture_layers(model, PARTS[-1]))
    assert len(layers) > 3
    for row, mask in enumerate(MASK):
        length = int(mask.sum())
        mean = states[row, :length].mean(0)
        share = float((mean @ w / mean.norm()).clamp(0, 1))
        plain = make()
        with torch.no_grad():
            for name, layer in layers:
                a, b, local_a, local_b = (getattr(layer, part)["default"].weight for part in PARTS)
                change = 3.0 * ((1 - share) * b @ a + share * local_b @ local_a)
                weight = plain.get_submodule(name.removeprefix("base_model.model.")).weight
                weight += change.T if make is gpt2 else change
        expected = outputs(plain, IDS[row : row + 1], mask[None])[0, :length]
        torch.testing.assert_close(found[row, :length], expected, rtol=1e-3, atol=1e-4)
        shares.append(share)
    assert len(set(shares)) > 2


def test_an_adapter_is_saved_and_loaded_whole_or_not_at_all(adapted, tmp_path):
    make, model = adapted
    save_adapter(model, tmp_path)
    with without_peft_warnings():
        again = PeftModel.from_pretrained(make(), tmp_path).eval()
    torch.testing.assert_close(outputs(again), outputs(model), rtol=0, atol=0)
    with pytest.raises(AdapterError, match="cannot be merged"):
        again.merge_and_unload()
    path = tmp_path / "adapter_model.safetensors"
    whole = load_file(path)
    for part in ("lora_local_B", "lora_share"):
        gone = next(name for name in whole if part in name)
        save_file({name: tensor for name, tensor in whole.items() if name != gone}, path, {"format": "pt"})
        with without_peft_warnings(), pytest.raises(AdapterError, match=rf"{part}\.default"):
            PeftModel.from_pretrained(make(), tmp_path)


def test_nothing_else_is_drawn_and_the_local_lora_starts_like_the_global_one(make_bench):
    plain, one = make_bench("fedavg-lora"), make_bench(METHOD)
    assert all(torch.equal(one.start[name], tensor) for name, tensor in plain.start.items())
    for name in filter(is_local, one.start):
        assert torch.equal(one.start[name], one.start[name.replace("lora_local_", "lora_")])
    assert not one.start[SHARE].any()


@pytest.mark.parametrize("together", [False, True])
def test_each_phase_trains_its_own_tensors_from_its_own_loss(together, make_bench):
    """Phase by phase by hand: the local LoRA beside the received tensors, then these as `fedavg-lora` trains."""
    shared_model, plain = make_bench(METHOD), make_bench("fedavg-lora")
    clients = clients_of(shared_model, [9, 4])
    rounds = rounds_of(shared_model, clients, phases=METHODS[METHOD].phases)
    first, second = METHODS[METHOD].phases
    assert (first.local_share, second.local_share) == (0.5, 0.0)
    chosen = settings(optimizer_state="keep", schedule="linear")
    if together:
        done = train_rounds(shared_model, rounds, chosen)
        assert not shared_model.alone
    else:
        done = [train_rounds(shared_model, [each], chosen)[0] for each in rounds]
    alone = [train_rounds(plain, [each], chosen)[0] for each in rounds_of(plain, clients)]
    exact = {} if not together else {"rtol": 2e-3, "atol": 2e-4}
    for result, reference, before in zip(done, alone, rounds, strict=True):
        assert result.state.steps == reference.state.steps and result.loss == pytest.approx(reference.loss)
        for name, tensor in reference.state.tensors.items():
            torch.testing.assert_close(result.state.tensors[name], tensor, **exact)
        local = shared_model.untrained(is_local)
        part = train_rounds(shared_model, [before.in_phase(first, shared_model)], chosen)[0]
        for name, tensor in result.state.tensors.items():
            if name in local:
                assert torch.equal(part.state.tensors[name], shared_model.start[name])
            else:
                assert not torch.equal(tensor, shared_model.start[name]) or ".lora_local_A." in name
                torch.testing.assert_close(tensor, part.state.tensors[name], **exact)
        trained = {name.split("/")[1] for name in result.state.moments}
        assert trained == {name for name in shared_model.start if name != SHARE}
        assert torch.equal(result.state.tensors[SHARE], shared_model.start[SHARE])


def test_the_local_lora_learns_at_half_weight_beside_the_global_one(make_bench):
    """Its gradient is that of a plain model whose weights have both changes at half, with respect to B_l."""
    shared_model = make_bench(METHOD)
    named = shared_model.parameters
    for module in shared_model.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, param in named.items():
            if is_local(name) or is_factor(name):
                param.copy_(0.2 * torch.randn(param.shape, generator=generator))
    [before] = rounds_of(shared_model, clients_of(shared_model, [4]))
    state = {name: param.detach().clone() for name, param in named.items()}
    before = before.__class__(before.dataset, before.state.__class__(state, {}, 0), None, 3, 1, 2)
    part = before.in_phase(METHODS[METHOD].phases[0], shared_model)
    moved = train_rounds(shared_model, [part], settings(steps=1, clip_norm=1e9))[0]
    batch = part.dataset.train.batch(np.arange(4), torch.device("cpu"))
    plain = make_bench("fedavg-lora")
    layers = sorted({name.rsplit(".lora_", 1)[0] for name in state if ".lora_" in name and name != SHARE})
    scaled = {name: tensor.clone() for name, tensor in plain.start.items()} | {
        name: state[name].clone() for name in plain.start if is_head(name)
    }
    plain.load(scaled | {f"{layer}.lora_B.weight": torch.zeros(32, 4) for layer in layers})
    changes = {}
    for layer in layers:
        module = plain.encoder.get_submodule(f"base_model.model.{layer}")
        a, b, local_a, local_b = (state[f"{layer}.{part}.weight"] for part in PARTS)
        change = module.scaling["default"] * 0.5 * (b @ a + local_b @ local_a)
        changes[layer] = module.base_layer.weight
        with torch.no_grad():
            module.base_layer.weight += change
        module.base_layer.weight.requires_grad_(True)
    plain.model.eval()
    expected = plain.model.loss(batch)
    expected.backward()
    assert moved.loss == pytest.approx(float(expected.detach()), rel=1e-5)
    for layer in layers:
        scale = plain.encoder.get_submodule(f"base_model.model.{layer}").scaling["default"]
        gradient = 0.5 * scale * changes[layer].grad @ state[f"{layer}.lora_local_A.weight"].T
        found = moved.state.moments[f"exp_avg/{layer}.lora_local_B.weight"] / 0.1
        torch.testing.assert_close(found, gradient, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("bits", [32, 1])
def test_a_run_sends_the_global_lora_and_keeps_the_local_one(bits, finished):
    done = finished(METHOD, wire={"bits": bits})
    for event in (e for e in done.events if e["event"] == "trained"):
        sent = {name for name in event["up"] if name != ENVELOPE}
        assert sent and all(is_factor(name) or is_head(name) for name in sent)
    assert done.summary["bytes"]["up"] == finished("fedavg-lora", wire={"bits": bits}).summary["bytes"]["up"]
    _, states, _ = read_checkpoint(done.path / CHECKPOINT, "")
    local = [name for name in states[0].tensors if ".lora_local_B." in name]
    assert len(local) == 4
    for name in local:
        assert not torch.equal(states[0].tensors[name], states[1].tensors[name])
    if bits == 32:
        plain = finished("fedavg-lora")
        _, others, _ = read_checkpoint(plain.path / CHECKPOINT, "")
        for state, other in zip(states, others, strict=True):
            for name, tensor in other.tensors.items():  # the local LoRA changes nothing that is shared
                torch.testing.assert_close(state.tensors[name], tensor, rtol=2e-3, atol=2e-4)


def test_a_client_weighs_by_its_training_examples_and_predicts_alike_when_loaded(finished, tmp_path):
    done = finished({"name": METHOD, "scale": 0.8})
    data = make_clients(done.config.data, done.config.seed).clients
    _, states, _ = read_checkpoint(done.path / CHECKPOINT, "")
    for each, state in zip(data, states, strict=True):
        client = trifed.load_client(done.path / "clients" / each.name)
        dual, unit = client.model.eval().encoder.base_model, []
        for row in range(len(each.train)):
            batch = client.encode({"text": each.train.texts[row : row + 1]}).batch(np.array([0]), client.device)
            batch = {name: tensor for name, tensor in batch.items() if name != "labels"}
            with torch.no_grad(), client.model.encoder.disable_adapter():
                states = client.model.encoder(**batch).last_hidden_state[0]
                mean = states[: int(batch["attention_mask"].sum())].mean(0)
            unit.append(mean / mean.norm())
        torch.testing.assert_close(state.tensors[SHARE][0], 0.8 * torch.stack(unit).mean(0), rtol=1e-4, atol=1e-6)
        assert torch.equal(dual.lora_share["default"].weight.cpu(), state.tensors[SHARE])
        [accuracy] = [c["now"]["accuracy"] for c in done.summary["clients"] if c["name"] == each.name]
        right = np.array(client.predict(each.test.texts)) == np.array(client.labels)[each.test.labels]
        assert accuracy == pytest.approx(right.mean())
    with pytest.raises(AdapterError, match="cannot be exported"):
        trifed.export_client(done.path, "amber", "lora", tmp_path / "lora")
    assert (
        json.loads((done.path / "clients" / "amber" / "adapter_config.json").read_text())["peft_type"]
        == "LORADUAL"
    )


def test_a_task_without_a_linear_head_and_noised_training_are_refused(toy_values, tiny_encoder):
    config = make_config(toy_values(method=METHOD))
    given, task = (config.model, config.adapter, config.training), TASKS["token-classification"]
    with pytest.raises(ModelError, match=f"'{METHOD}' needs a linear head"):
        build_shared_model(task.load(str(tiny_encoder)), METHODS[METHOD], ["O", "B-x"], 0, given, task)
    privacy = {"training": {"epsilon": 8.0}}
    with pytest.raises(ConfigError) as caught:
        make_config(toy_values(method=METHOD, privacy=privacy, training={"steps": 2, "epochs": 1}))
    assert any(problem.startswith(f"privacy.training: '{METHOD}'") for problem in caught.value.problems)
