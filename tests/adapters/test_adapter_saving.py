from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from trifed.adapters import TriLoraConfig, adapted_layers, frames_hash, load_adapter
from trifed.common.errors import AdapterError


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")


def without(folder: Path, part: str) -> list[str]:
    """Remove the tensors whose names hold `part` from a saved adapter; returns their names."""
    kept = tensors(folder)
    gone = [name for name in kept if part in name]
    for name in gone:
        del kept[name]
    save_file(kept, folder / "adapter_model.safetensors")
    return gone


@pytest.fixture
def saved(bert, randomise, train, tmp_path) -> Path:
    randomise(bert.adapted(train=train, modules_to_save=["classifier"])).save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def test_round_trip(family, train, randomise, logits, tmp_path):
    settings = {"modules_to_save": ["classifier"], "task_type": "SEQ_CLS"} if family.name == "bert" else {}
    model = randomise(family.adapted(train=train, rank_pattern={family.targets[0]: 3}, **settings))
    if settings:
        with torch.no_grad():
            model.base_model.model.classifier.modules_to_save["default"].weight.fill_(0.25)
    model.save_pretrained(tmp_path)
    expected = logits(model)
    for load in (PeftModel.from_pretrained, load_adapter):
        again = load(family.base(), tmp_path)
        assert torch.equal(logits(again), expected)
        assert again.peft_config["default"].train == train
        assert not any(p.requires_grad for p in again.parameters())
    lean = PeftModel.from_pretrained(family.base(), tmp_path, low_cpu_mem_usage=True)
    assert torch.equal(logits(lean), expected)
    trained_on = load_adapter(family.base(), tmp_path, trainable=True)
    names = {n for n, p in trained_on.named_parameters() if p.requires_grad and "lora_" in n}
    assert len(names) == (12 if train == "all" else 4)


def test_frames_survive_saving(bert, tmp_path):
    model = bert.adapted(train="core")
    model.save_pretrained(tmp_path)
    assert frames_hash(load_adapter(bert.base(), tmp_path)) == frames_hash(model)


def test_names_and_shapes_in_the_file(saved):
    found = {name: tuple(t.shape) for name, t in tensors(saved).items()}
    query = "base_model.model.bert.encoder.layer.0.attention.self.query"
    assert found[f"{query}.lora_A.weight"] == (4, 16)
    assert found[f"{query}.lora_B.weight"] == (16, 4)
    assert found[f"{query}.lora_C.weight"] == (4, 4)
    assert found["base_model.model.classifier.weight"] == (2, 16)
    assert len(found) == 4 * 3 + 2


def test_the_configuration_is_json_and_comes_back(saved, train):
    written = json.loads((saved / "adapter_config.json").read_text())
    assert (written["peft_type"], written["train"]) == ("TRILORA", train)
    again = TriLoraConfig.from_pretrained(str(saved))
    assert isinstance(again, TriLoraConfig) and again.train == train and again.lora_alpha == 10


def test_a_second_adapter_loads_beside_the_first(bert, saved, logits):
    expected = logits(load_adapter(bert.base(), saved))
    model = bert.adapted(train="all")
    model.load_adapter(str(saved), "second")
    model.set_adapter("second")
    assert torch.equal(logits(model), expected)


@pytest.mark.parametrize("part", ["lora_C", "lora_A", "layer.1.attention.self.value.lora_B"])
def test_a_file_that_lacks_factors_is_refused(bert, saved, part):
    gone = without(saved, part)
    assert gone
    shown = gone[0].replace(".", r"\.")
    for load in (PeftModel.from_pretrained, load_adapter):
        with pytest.raises(AdapterError, match=f"{shown} is missing"):
            load(bert.base(), saved)
    model = bert.adapted()
    with pytest.raises(AdapterError, match="is missing"):
        model.load_adapter(str(saved), "second")


def test_plain_lora_under_our_type_is_refused(bert, saved, tmp_path):
    get_peft_model(bert.base(), LoraConfig(r=4, target_modules=["query", "value"])).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text()) | {"peft_type": "TRILORA"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(AdapterError, match=r"lora_C\.weight is missing"):
        PeftModel.from_pretrained(bert.base(), tmp_path)


def test_factors_of_another_shape_or_layer_are_refused(bert, saved):
    changed = tensors(saved)
    name = next(n for n in changed if "lora_C" in n)
    save_file(changed | {name: torch.zeros(3, 3)}, saved / "adapter_model.safetensors")
    with pytest.raises(AdapterError, match=r"\(3, 3\).*\(4, 4\)"):
        PeftModel.from_pretrained(bert.base(), saved, ignore_mismatched_sizes=True)
    other = name.replace("layer.0", "layer.9")
    save_file(changed | {other: torch.zeros(4, 4)}, saved / "adapter_model.safetensors")
    with pytest.raises(AdapterError, match=r"layer\.9\."):
        load_adapter(bert.base(), saved)


def test_a_missing_head_is_named(bert, saved):
    without(saved, "classifier.weight")
    with pytest.raises(AdapterError, match=r"lacks.*classifier\.weight"):
        load_adapter(bert.base(), saved)


def test_folders_that_are_no_tri_matrix_adapter_are_refused(bert, saved, tmp_path):
    with pytest.raises(AdapterError, match=r"no adapter_config\.json"):
        load_adapter(bert.base(), tmp_path / "nowhere")
    weights = saved / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(AdapterError, match="damaged"):
        load_adapter(bert.base(), saved)
    weights.rename(saved / "adapter_model.bin")
    with pytest.raises(AdapterError, match=r"no adapter_model\.safetensors"):
        load_adapter(bert.base(), saved)
    get_peft_model(bert.base(), LoraConfig(target_modules=["query"])).save_pretrained(tmp_path / "plain")
    with pytest.raises(AdapterError, match=r"'LORA'.*'TRILORA'"):
        load_adapter(bert.base(), tmp_path / "plain")
    (tmp_path / "plain" / "adapter_config.json").write_text("[]")
    with pytest.raises(AdapterError, match="JSON object"):
        load_adapter(bert.base(), tmp_path / "plain")


def test_cores_alone_go_in_without_peft(bert, randomise):
    # What a client does each round: PEFT's own loader wants a whole adapter.
    source, model = randomise(bert.adapted()), bert.adapted()
    cores = {n: p.clone() for n, p in source.state_dict().items() if ".lora_C." in n}
    result = model.load_state_dict(cores, strict=False)
    assert len(cores) == 4 and not result.unexpected_keys
    for (_, ours), (_, theirs) in zip(adapted_layers(model), adapted_layers(source), strict=True):
        assert torch.equal(ours.factors("default")[2], theirs.factors("default")[2])
