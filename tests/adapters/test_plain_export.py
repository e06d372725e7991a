from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from trifed.adapters import adapted_layers, export_plain_lora, to_plain_lora
from trifed.adapters import export as export_module
from trifed.common.errors import AdapterError

# Runs where this package cannot be imported, once for all cases.
_PLAIN_PEFT = """
import json, os, sys, warnings
sys.modules["trifed"] = None
os.environ["HF_HUB_OFFLINE"] = "1"
import torch, transformers
torch.set_num_threads(1)
from peft import PeftModel
from safetensors.torch import load_file
root = sys.argv[1]
for case in json.load(open(f"{root}/cases.json")):
    base = getattr(transformers, case["class"]).from_pretrained(f"{root}/{case['name']}/base")
    model = PeftModel.from_pretrained(base, f"{root}/{case['name']}/plain").eval()
    known = load_file(f"{root}/{case['name']}/expected.safetensors")
    with torch.no_grad():
        found = model(input_ids=known["ids"]).logits
    torch.testing.assert_close(found, known["logits"], rtol=1e-4, atol=1e-4)
    try:
        PeftModel.from_pretrained(base, f"{root}/{case['name']}/tri")
    except (KeyError, ValueError) as error:
        assert "TRILORA" in str(error), error
    else:
        raise SystemExit("plain PEFT loaded a tri-matrix folder")
    print("ok", case["name"])
"""


def test_plain_peft_computes_the_same_without_this_package(
    families, ids, randomise, logits, tmp_path, plain_python
):
    cases = []
    for family in families:
        for train in ("all", "core"):
            folder = tmp_path / f"{family.name}-{train}"
            base = family.base()
            base.save_pretrained(folder / "base")
            settings = {"task_type": "SEQ_CLS"} if family.name == "bert" else {}
            pattern = {family.targets[1]: 3}
            model = randomise(family.adapted(base, train=train, rank_pattern=pattern, **settings))
            if settings:
                with torch.no_grad():
                    model.base_model.model.classifier.modules_to_save["default"].weight.fill_(0.25)
            # As a path of this machine would be: plain PEFT must not need it.
            model.peft_config["default"].base_model_name_or_path = None
            save_file({"ids": ids, "logits": logits(model)}, folder / "expected.safetensors")
            model.save_pretrained(folder / "tri", save_embedding_layers=False)
            assert export_plain_lora(model, folder / "plain") == folder / "plain"
            cases.append({"name": folder.name, "class": type(base).__name__})
    (tmp_path / "cases.json").write_text(json.dumps(cases))
    assert plain_python(_PLAIN_PEFT, tmp_path, str(tmp_path)).split() == [
        word for case in cases for word in ("ok", case["name"])
    ]


def test_the_fold_is_b_times_c_and_the_scale_is_kept(family, train, randomise):
    model = randomise(family.adapted(train=train, rank_pattern={family.targets[1]: 3}))
    config, tensors = to_plain_lora(model)
    assert type(config) is LoraConfig and config.peft_type == "LORA"
    assert len(tensors) == 8 and not any("lora_C" in name for name in tensors)
    for name, layer in adapted_layers(model):
        a, b, c = layer.factors("default")
        assert torch.equal(tensors[f"{name}.lora_A.weight"], a)
        torch.testing.assert_close(tensors[f"{name}.lora_B.weight"], b @ c)
        assert tensors[f"{name}.lora_A.weight"].data_ptr() != a.data_ptr()
    plain = get_peft_model(family.base(), config)
    scales = {m.scaling["default"] for m in plain.modules() if hasattr(m, "lora_A")}
    assert scales == ({10 / 4, 10 / 3} if train == "all" else {1.0})


def test_a_rescaled_layer_is_exported_as_it_computes(bert, train, randomise, logits, tmp_path):
    model = randomise(bert.adapted(train=train))
    for _, layer in adapted_layers(model):
        layer.scale_layer(0.5)
    export_plain_lora(model, tmp_path / "plain")
    plain = PeftModel.from_pretrained(bert.base(), tmp_path / "plain")
    torch.testing.assert_close(logits(plain), logits(model), rtol=1e-4, atol=1e-5)


def test_one_of_several_adapters_is_exported(bert, randomise, logits, tmp_path):
    model = randomise(bert.adapted(train="all"))
    model.add_adapter("second", bert.config(train="core"))
    randomise(model, "second", seed=2)
    export_plain_lora(model, tmp_path / "plain", "second")
    model.set_adapter("second")
    plain = PeftModel.from_pretrained(bert.base(), tmp_path / "plain")
    torch.testing.assert_close(logits(plain), logits(model), rtol=1e-4, atol=1e-5)


def test_the_head_can_be_left_out(bert, randomise, tmp_path):
    model = randomise(bert.adapted(task_type="SEQ_CLS"))
    assert any("classifier" in name for name in to_plain_lora(model)[1])
    folder = export_plain_lora(model, tmp_path / "plain", include_modules_to_save=False)
    names = load_file(folder / "adapter_model.safetensors")
    assert len(names) == 8 and all(".lora_A." in n or ".lora_B." in n for n in names)
    PeftModel.from_pretrained(bert.base(), folder)  # would raise if PEFT still expected a head


def test_an_export_is_whole_or_not_there(bert, tmp_path, monkeypatch):
    model = bert.adapted()

    def full_disk(*_args: object, **_kwargs: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(export_module, "save_file", full_disk)
    with pytest.raises(OSError, match="no space"):
        export_plain_lora(model, tmp_path / "plain")
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    (tmp_path / "plain").mkdir()  # an empty folder is taken
    export_plain_lora(model, tmp_path / "plain")
    assert [p.name for p in tmp_path.iterdir()] == ["plain"]
    found = {p.name for p in (tmp_path / "plain").iterdir()}
    assert found == {"adapter_config.json", "adapter_model.safetensors"}


def test_nothing_is_overwritten(bert, tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    for target in (tmp_path, tmp_path / "mine.txt"):
        with pytest.raises(AdapterError, match=str(target)):
            export_plain_lora(bert.adapted(), target)
    assert (tmp_path / "mine.txt").read_text() == "keep"


def test_other_adapters_are_refused(bert):
    with pytest.raises(AdapterError, match=r"'other'.*\['default'\]"):
        to_plain_lora(bert.adapted(), "other")
    plain = get_peft_model(bert.base(), LoraConfig(target_modules=["query"]))
    with pytest.raises(AdapterError, match=r"\[\]"):
        to_plain_lora(plain)


def test_the_path_may_be_text(bert, tmp_path):
    assert export_plain_lora(bert.adapted(), str(tmp_path / "a" / "b")) == Path(tmp_path / "a" / "b")
