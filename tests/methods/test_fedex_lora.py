"""FedEx-LoRA: an exact mean of the clients' changes, in a run and in the folders that it leaves."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file
from transformers import AutoModel, BertConfig, BertModel, GPT2Config, GPT2Model

import trifed
from trifed import make_config
from trifed.adapters.attach import attach, save_adapter, without_peft_warnings
from trifed.adapters.residual import has_residuals, to_plain_lora
from trifed.adapters.settings import AdapterSettings
from trifed.common.errors import ConfigError, ModelError
from trifed.data import make_clients
from trifed.federation.compression import packed_sizes
from trifed.federation.preparation import prepare, quiet
from trifed.federation.run_folder import RunFolder
from trifed.federation.simulation import Simulation
from trifed.federation.training.device_placement import narrow_frozen_weights
from trifed.methods.packing import unpack

METHOD = "fedex-lora"
NAMES = ["billing", "delivery", "login"]


def bert():
    return BertModel(
        BertConfig(vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24)
    ).eval()


def gpt2():
    return GPT2Model(GPT2Config(vocab_size=40, n_embd=16, n_layer=2, n_head=2, n_positions=16)).eval()


@pytest.fixture(params=[(bert, ["query", "dense"]), (gpt2, ["c_attn", "c_proj"])], ids=["bert", "gpt2"])
def adapted(request):
    """A base with random A, B and R; GPT-2 stores its weights transposed, and some are square."""
    make, targets = request.param
    torch.manual_seed(0)
    base = make()
    weights = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    model = attach(base, "lora-residual", AdapterSettings(rank=2, alpha=6, target_modules=targets), 0).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, param in model.named_parameters():
            if ".lora_R." in name:  # of rank 3
                rows, columns = param.shape
                left, right = (torch.randn(n, 3, generator=generator) for n in (rows, columns))
                param.copy_(0.1 * left @ right.T)
            elif ".lora_" in name:
                param.copy_(0.3 * torch.randn(param.shape, generator=generator))
    return make, weights, model


def outputs(model):
    with torch.no_grad():
        return model(input_ids=torch.arange(12).reshape(2, 6)).last_hidden_state


def test_the_layer_adds_s_times_ba_plus_r(adapted):
    make, weights, model = adapted
    plain = make()
    plain.load_state_dict(weights)
    before = outputs(plain)
    names = dict(plain.named_modules())
    with torch.no_grad():
        for name, layer in model.get_base_model().named_modules():
            if hasattr(layer, "lora_R"):
                a, b, r = (getattr(layer, f"lora_{part}")["default"].weight for part in "ABR")
                assert not r.requires_grad
                change = 3.0 * (b @ a + r)
                names[name].weight += change if make is bert else change.T
    assert (outputs(model) - before).abs().max() > 0.05
    torch.testing.assert_close(outputs(model), outputs(plain), rtol=1e-4, atol=1e-5)
    merged = model.merge_and_unload()
    torch.testing.assert_close(outputs(merged), outputs(plain), rtol=1e-4, atol=1e-5)


def test_a_saved_adapter_is_a_plain_lora_of_a_higher_rank(adapted, tmp_path):
    from peft import PeftModel

    make, weights, model = adapted
    config, tensors = to_plain_lora(model)
    assert type(config) is LoraConfig and config.r == 2 + 3 and config.lora_alpha / config.r == 3.0
    assert not any("lora_R" in name for name in tensors)
    save_adapter(model, tmp_path)
    base = make()
    base.load_state_dict(weights)
    with without_peft_warnings():
        again = PeftModel.from_pretrained(base, tmp_path)
    assert not has_residuals(again)
    torch.testing.assert_close(outputs(again), outputs(model), rtol=1e-4, atol=1e-5)


def test_a_layer_that_can_have_no_residual_is_refused(monkeypatch):
    """PEFT's layers of packed weights are of other classes; without a residual the method would be FedAvg."""
    monkeypatch.setattr("trifed.adapters.residual.Linear", torch.nn.Bilinear)
    with pytest.raises(ModelError, match=r"model\.dtype: layer '.*query'"):
        attach(bert(), "lora-residual", AdapterSettings(rank=2, target_modules=["query"]), 0)


def test_switching_the_adapter_off_and_on_leaves_the_residual_frozen(adapted):
    _, _, model = adapted
    with model.disable_adapter():
        pass
    asking = {name.split(".lora_")[1][0] for name, param in model.named_parameters() if param.requires_grad}
    assert asking == {"A", "B"}


def test_averaging_loses_nothing_of_the_clients_changes(toy_values, tmp_path):
    """Before the next round all clients have W0 + s Σ w_i (B_i A_i + R), with R of the round before."""
    config = make_config(toy_values(method=METHOD, rounds=2, training={"learning_rate": 0.03}))
    data, shared_model, clients = prepare(config)
    simulation = Simulation(config, data, clients, shared_model, RunFolder.create(tmp_path / "run"), quiet)
    simulation.run()
    examples = np.array([len(client.train) for client in clients])
    states = [client.state.tensors for client in simulation.clients]
    got = unpack(simulation.server.arrives(0), shared_model.received)
    layers = [name.removesuffix(".lora_R.weight") for name, _ in shared_model.received if ".lora_R." in name]
    assert len(layers) == 4
    for layer in layers:
        a, b, r = ([t[f"{layer}.lora_{part}.weight"].double().numpy() for t in states] for part in "ABR")
        expected = sum(n / examples.sum() * (y @ x + z) for n, x, y, z in zip(examples, a, b, r, strict=True))
        found = got[f"{layer}.lora_B.weight"] @ got[f"{layer}.lora_A.weight"] + got[f"{layer}.lora_R.weight"]
        np.testing.assert_allclose(found, expected, atol=1e-6)
        assert all(np.array_equal(each, r[0]) for each in r) and np.abs(r[0]).max() > 1e-6
        assert not np.array_equal(r[0], got[f"{layer}.lora_R.weight"])  # it adds up over the rounds


@pytest.mark.parametrize("bits", [32, 4])
def test_a_download_has_its_own_size(bits, finished):
    done = finished(METHOD, wire={"bits": bits})
    for event in done.events:
        if event["event"] == "trained" and event["round"] > 1:
            residuals = {name: size for name, size in event["down"].items() if ".lora_R." in name}
            (size,) = packed_sizes((("x", (32, 32)),), 4).values() if bits == 4 else [4 * 32 * 32]
            assert set(residuals.values()) == {size} and len(residuals) == 4
            assert event["down"].keys() - residuals.keys() == event["up"].keys()


@pytest.mark.parametrize(("bits", "form"), [(32, "lora"), (4, "merged")])
def test_what_a_client_has_in_the_end_is_exported_whole(bits, form, finished, tiny_encoder, tmp_path):
    done = finished(METHOD, wire={"bits": bits})
    folder = done.path / "clients" / "amber"
    rank = json.loads((folder / "adapter_config.json").read_text())["r"]
    assert 4 < rank <= 4 + 32
    texts = ["invoice refund word001", "parcel", "account password reset token"]
    own = trifed.load_client(folder).probabilities(texts)
    target = trifed.export_client(done.path, "amber", form, tmp_path / "out")
    if form == "merged":
        encoder = AutoModel.from_pretrained(target)
        assert not any(".lora_" in name for name in encoder.state_dict())
    else:
        tensors = load_file(target / "adapter_model.safetensors")
        assert {min(tensor.shape) for tensor in tensors.values()} == {min(rank, 32)}
    np.testing.assert_allclose(trifed.load_client(target).probabilities(texts), own, rtol=1e-4, atol=1e-6)
    [amber] = [each for each in make_clients(done.config.data, done.config.seed).clients if each.name == "amber"]
    right = np.array(trifed.load_client(folder).predict(amber.test.texts)) == np.array(NAMES)[amber.test.labels]
    assert done.summary["clients"][0]["now"]["accuracy"] == pytest.approx(right.mean())


def test_bfloat16_of_frozen_weights_leaves_the_clients_own(make_bench, toy_values):
    shared_model = make_bench(METHOD)
    own, training = shared_model.parameters, make_config(toy_values(training={"precision": "bf16"})).training
    assert narrow_frozen_weights(shared_model.model, training, own.values()) > 0
    assert {param.dtype for param in own.values()} == {torch.float32}


def test_private_steps_leave_the_residual_as_it_came(toy_values, tmp_path):
    """DP-SGD adds noise to all that trains, and R does not."""
    privacy, training = (
        {"training": {"epsilon": 8, "clip": 1.0, "rate": 0.5}, "summary": {"epsilon": 4}},
        {"steps": 2},
    )
    config = make_config(toy_values(method=METHOD, rounds=2, privacy=privacy, training=training))
    data, shared_model, clients = prepare(config)
    simulation = Simulation(config, data, clients, shared_model, RunFolder.create(tmp_path / "run"), quiet)
    simulation.run()
    states = [client.state.tensors for client in simulation.clients]
    name = next(name for name in states[0] if ".lora_R." in name)
    assert states[0][name].any() and all(torch.equal(state[name], states[0][name]) for state in states)


def test_a_server_with_weights_of_its_own_takes_no_other_rule(toy_values):
    with pytest.raises(ConfigError, match=r"aggregation\.groups"):
        make_config(toy_values(method=METHOD, aggregation={"groups": "agreement"}))


def test_alone_nothing_is_sent_or_received(toy_values):
    config = make_config(toy_values(method=METHOD, personalization={"share": False}))
    _, shared_model, _ = prepare(config)
    assert shared_model.layout == shared_model.received == shared_model.exchanged == ()
    assert not any(".lora_R." in name for name in shared_model.parameters)
    kept = make_config(toy_values(method=METHOD, personalization={"keep": ["head."]}))
    _, shared_model, _ = prepare(kept)
    assert not any(name.startswith("head.") for name, _ in (*shared_model.layout, *shared_model.received))
