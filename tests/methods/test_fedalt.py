"""FedALT: two LoRAs and a mixer on a layer, and uploads that no download repeats."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertModel, GPT2Config, GPT2Model

import trifed
from trifed import make_config
from trifed.adapters.attach import attach, save_adapter, without_peft_warnings
from trifed.adapters.mixture import PARTS, mixture_layers
from trifed.adapters.settings import AdapterSettings
from trifed.common.errors import AdapterError
from trifed.data import make_clients
from trifed.federation.preparation import prepare, quiet
from trifed.federation.run_folder import RunFolder
from trifed.federation.simulation import Simulation

METHOD = "fedalt"


def bert():
    return BertModel(
        BertConfig(vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24)
    ).eval()


def gpt2():
    return GPT2Model(GPT2Config(vocab_size=40, n_embd=16, n_layer=2, n_head=2, n_positions=16)).eval()


@pytest.fixture(params=[(bert, ["query", "dense"]), (gpt2, ["c_attn", "c_proj"])], ids=["bert", "gpt2"])
def adapted(request):
    """A base, and the same with random factors and mixers."""
    make, targets = request.param
    torch.manual_seed(0)
    base = make()
    weights = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    model = attach(base, "lora-mixture", AdapterSettings(rank=2, alpha=6, target_modules=targets), 0).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, param in model.named_parameters():
            if ".lora_" in name:
                param.copy_(0.3 * torch.randn(param.shape, generator=generator))
    return make, weights, model


def outputs(model):
    with torch.no_grad():
        return model(input_ids=torch.arange(12).reshape(2, 6)).last_hidden_state


def test_the_layer_weighs_both_loras_for_each_token(adapted):
    make, weights, model = adapted
    before, layers = make(), dict(mixture_layers(model))
    before.load_state_dict(weights)
    assert len(layers) == len({id(layer) for layer in layers.values()}) > 3
    x = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(2))
    layer = next(iter(layers.values()))
    a, b, rest_a, rest_b, mixer = (getattr(layer, part)["default"].weight for part in PARTS)
    shares = torch.softmax(x @ mixer.T, -1)
    assert shares.std(dim=(0, 1)).min() > 0.05
    change = 3.0 * (shares[..., :1] * (x @ rest_a.T @ rest_b.T) + shares[..., 1:] * (x @ a.T @ b.T))
    with torch.no_grad():
        torch.testing.assert_close(layer(x), layer.base_layer(x) + change, rtol=1e-4, atol=1e-5)
        with model.disable_adapter():
            torch.testing.assert_close(outputs(model), outputs(before), rtol=0, atol=0)


def test_an_adapter_is_saved_and_loaded_whole_or_not_at_all(adapted, tmp_path):
    make, weights, model = adapted
    save_adapter(model, tmp_path)
    base = make()
    base.load_state_dict(weights)
    with without_peft_warnings():
        again = PeftModel.from_pretrained(base, tmp_path).eval()
    torch.testing.assert_close(outputs(again), outputs(model), rtol=0, atol=0)
    with pytest.raises(AdapterError, match="cannot be merged"):
        again.merge_and_unload()
    path = tmp_path / "adapter_model.safetensors"
    tensors = load_file(path)
    mixer = next(name for name in tensors if "lora_mixer" in name)
    save_file({name: tensor for name, tensor in tensors.items() if name != mixer}, path, {"format": "pt"})
    base = make()
    with without_peft_warnings(), pytest.raises(AdapterError, match=r"lora_mixer\.default"):
        PeftModel.from_pretrained(base, tmp_path)


def test_the_mixers_are_drawn_without_changing_what_else_is_drawn(make_bench):
    plain, one, other = make_bench("fedavg-lora"), make_bench(METHOD), make_bench(METHOD, seed=1)
    assert all(torch.equal(one.start[name], tensor) for name, tensor in plain.start.items())
    mixers = [name for name in one.start if ".lora_mixer." in name]
    assert len(mixers) == 4
    for name in mixers:
        assert one.start[name].shape == (2, 32) and 0 < one.start[name].abs().max() <= 32**-0.5
        assert not torch.equal(one.start[name], other.start[name])


def simulated(toy_values, folder, **changes):
    config = make_config(toy_values(method=METHOD, **changes))
    data, shared_model, clients = prepare(config)
    simulation = Simulation(config, data, clients, shared_model, RunFolder.create(folder), quiet)
    simulation.run()
    return simulation


@pytest.mark.parametrize("bits", [32, 1])
def test_clients_go_on_from_their_own_factors_beside_the_others_mean(bits, toy_values, tmp_path):
    simulation = simulated(toy_values, tmp_path / "run", rounds=3, wire={"bits": bits})
    model, server = simulation.shared_model, simulation.server
    own = {client.dataset.index: client.state.memory["sent"] for client in simulation.clients}
    for index, client in enumerate(simulation.clients):
        np.testing.assert_array_equal(server.references.uploaded[index], own[index])
        trained = model.pack(client.state.tensors)
        if bits == 32:
            np.testing.assert_array_equal(own[index], trained)
        else:
            assert 0 < np.linalg.norm(own[index] - trained) < 0.3 * np.linalg.norm(trained)
        mean = np.mean([values for other, values in own.items() if other != index], axis=0)
        np.testing.assert_allclose(server.context.method.download(server.state, index), mean, atol=1e-6)
        rest = [name for name in client.state.tensors if ".lora_rest_B." in name]
        assert len(rest) == 4 and all(client.state.tensors[name].any() for name in rest)
    a = next(name for name, _ in model.layout if ".lora_A." in name)
    assert not torch.equal(simulation.clients[0].state.tensors[a], simulation.clients[1].state.tensors[a])


def test_a_client_predicts_and_cannot_be_exported(finished, tmp_path):
    done = finished(METHOD)
    [accuracy] = [client["now"]["accuracy"] for client in done.summary["clients"] if client["name"] == "amber"]
    client = trifed.load_client(done.path / "clients" / "amber")
    [amber] = [each for each in make_clients(done.config.data, done.config.seed).clients if each.name == "amber"]
    right = np.array(client.predict(amber.test.texts)) == np.array(client.labels)[amber.test.labels]
    assert accuracy == pytest.approx(right.mean())
    for form in ("lora", "lora-no-head", "merged", "tri-matrix"):
        with pytest.raises(AdapterError, match="cannot be exported"):
            trifed.export_client(done.path, "amber", form, tmp_path / form)
        assert not (tmp_path / form).exists()
