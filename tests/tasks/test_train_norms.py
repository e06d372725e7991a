"""LayerNorms that train beside the adapter: at each client by itself, and into its exports."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import trifed
from trifed.adapters.attach import _trained_norms
from trifed.adapters.norms import is_norm
from trifed.adapters.settings import AdapterSettings
from trifed.attacks.target import TargetClient
from trifed.common.errors import AdapterError, ModelError
from trifed.config.run import make_config
from trifed.data import text_examples
from trifed.export.export import export_client
from trifed.federation.client_update import score
from trifed.federation.run_folder import RunFolder
from trifed.federation.training.evaluation import embed
from trifed.federation.training.shared_model import layouts_of
from trifed.methods import METHODS

TEXTS = ["invoice refund word001", "parcel", "account password reset token word002 word003 word004"]
ON = {"train_norms": True}
NAMES = ["embeddings", *(f"encoder.layer.{i}.{part}output" for i in range(2) for part in ("attention.", ""))]


@pytest.fixture(scope="module")
def done(toy_values, tmp_path_factory):
    """`done("ce-lora")`: a finished run whose norms train."""
    home, known = tmp_path_factory.mktemp("norm-runs"), {}

    def get(method):
        if method not in known:
            values = toy_values(method=method, rounds=2, adapter=ON, training={"learning_rate": 0.03})
            known[method] = trifed.run(make_config(values), home / method)
        return known[method]

    return get


def norms(folder):
    tensors = load_file(folder / "adapter_model.safetensors")
    return {name: tensor for name, tensor in tensors.items() if "LayerNorm" in name}


def test_every_norm_trains_and_none_is_sent(make_bench):
    for method in ("ce-lora", "fedavg-lora", "own-prior"):
        usual, own = make_bench(method), make_bench(method, adapter=ON)
        more = set(own.parameters) - set(usual.parameters)
        expected = {f"{name}.LayerNorm.modules_to_save.{kind}" for name in NAMES for kind in ("weight", "bias")}
        assert more == expected and own.layout == usual.layout and all(map(is_norm, more))
        assert layouts_of(METHODS["fedavg-full"], own.parameters)[0] == tuple(
            (name, tuple(tensor.shape)) for name, tensor in usual.parameters.items()
        )
        for name, tensor in own.start.items():
            assert torch.equal(tensor, usual.start.get(name, tensor))


def test_a_norm_that_moved_adds_something_and_the_bases_features_stay(make_bench, toy_values):
    shared_model, usual = make_bench("ce-lora", adapter=ON), make_bench("ce-lora")
    settings = make_config(toy_values(method="ce-lora")).training
    data = shared_model.encode(text_examples(TEXTS, None, np.arange(3)))
    before = usual.base_features(data, settings)
    assert shared_model.adds_nothing(shared_model.start)
    name = "encoder.layer.1.output.LayerNorm.modules_to_save.bias"
    moved = {**shared_model.start, name: shared_model.start[name] + 0.1 * torch.arange(32)}
    assert not shared_model.adds_nothing(moved)
    loss = score(shared_model, moved, data, settings).loss
    assert loss != pytest.approx(score(shared_model, shared_model.start, data, settings).loss, abs=1e-4)
    shared_model.load(moved)
    np.testing.assert_array_equal(shared_model.base_features(data, settings), before)
    assert np.abs(embed(shared_model.model, data, settings) - before).max() > 0.01


@pytest.mark.parametrize("method", ["ce-lora", "own-prior"])
def test_each_client_trains_its_own_norms_and_sends_none(method, done, tiny_encoder):
    result = done(method)
    one, other = (norms(result.path / "clients" / name) for name in ("amber", "basil"))
    base = load_file(tiny_encoder / "model.safetensors")
    assert len(one) == 2 * len(NAMES)
    for name, tensor in one.items():
        before = base[name.removeprefix("base_model.model.")]
        assert tensor.shape == before.shape and not torch.equal(tensor, before)
        assert not torch.equal(tensor, other[name])
    events = RunFolder(result.path).events()
    sent = {name for event in events if event["event"] == "trained" for name in event["up"]}
    assert sent and not any("LayerNorm" in name for name in sent)


@pytest.mark.parametrize(("method", "form"), [
    ("ce-lora", "tri-matrix"), ("ce-lora", "lora"), ("own-prior", "lora"), ("ce-lora", "merged"),
])  # fmt: skip
def test_exports_hold_them(method, form, done, tmp_path, run_card):
    result = done(method)
    folder = export_client(result.path, "amber", form, tmp_path / "out")
    expected = result.client("amber").predict_proba(TEXTS)
    found = json.loads(run_card(folder, f"classify({TEXTS!r}).tolist()"))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(trifed.load_client(folder).predict_proba(TEXTS), expected, rtol=1e-4, atol=1e-5)


def test_a_form_that_cannot_hold_them_is_refused(done, tmp_path):
    with pytest.raises(AdapterError, match=r"'lora-no-head'.*expected one of tri-matrix, lora, merged"):
        export_client(done("ce-lora").path, "amber", "lora-no-head", tmp_path / "out")


def test_a_run_that_goes_back_has_the_same_norms(done, tmp_path):
    import shutil

    result = done("ce-lora")
    again = trifed.resume(shutil.copytree(result.path, tmp_path / "run"), from_round=1)
    for name, tensor in norms(result.path / "clients" / "coral").items():
        assert torch.equal(norms(again.path / "clients" / "coral")[name], tensor)


def test_only_norms_of_towers_with_adapters_train():
    def tower():
        return nn.ModuleDict({"layer_norm": nn.LayerNorm(4), "q_proj": nn.Linear(4, 4)})

    model = nn.ModuleDict({"vision_model": tower(), "text_model": tower(), "norm": nn.RMSNorm(4)})
    for towers, expected in (
        ("both", ["vision_model.layer_norm", "text_model.layer_norm", "norm"]),
        ("text", ["text_model.layer_norm", "norm"]),
    ):
        assert _trained_norms(model, AdapterSettings(train_norms=True, towers=towers)) == expected
    assert _trained_norms(model, AdapterSettings()) == []
    with pytest.raises(ModelError, match=r"set adapter\.train_norms = false"):
        _trained_norms(nn.Linear(4, 4), AdapterSettings(train_norms=True))


def test_a_coarse_base_is_refused(make_bench):
    with pytest.raises(ModelError, match=r"adapter\.train_norms.*bfloat16.*set adapter\.train_norms = false"):
        make_bench("ce-lora", adapter=ON, model={"dtype": "bfloat16"})
    make_bench("fedavg-full", adapter=ON, model={"dtype": "bfloat16"})  # it trains all of the base anyway


def test_an_attacker_without_the_factors_knows_the_bases_norms(make_bench):
    shared_model = make_bench("ce-lora", adapter=ON)
    before = {name: tensor + 1 for name, tensor in shared_model.start.items()}
    target = SimpleNamespace(
        shared_model=shared_model, before=before, config=SimpleNamespace(seed=0), client=SimpleNamespace(index=1)
    )
    assumed = TargetClient.assumed_tensors(target, "base")
    assert set(assumed) == set(before)
    for name, tensor in assumed.items():
        if is_norm(name):
            assert torch.equal(tensor, shared_model.start[name])
        elif ".lora_C." in name:
            assert torch.equal(tensor, before[name])
        else:
            assert not torch.equal(tensor, before[name])
