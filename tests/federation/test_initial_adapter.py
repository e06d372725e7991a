"""All clients start from an adapter that was trained before."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from trifed import make_config, resume, run
from trifed.adapters.attach import without_peft_warnings
from trifed.common.errors import AdapterError, ConfigError
from trifed.deployment.folders import read_run
from trifed.federation.initial_adapter import plain
from trifed.federation.preparation import prepare

LORA, CORES, FROZEN = "fedavg-lora", "ce-lora", "fed-xs"


def prepared(toy_values, folder, method, **changes):
    told = []
    config = make_config(toy_values(method=method, adapter={"start": str(folder)}, **changes))
    return prepare(config, told.append)[1], [event["text"] for event in told if event["event"] == "trouble"]


def outputs(shared_model, data):
    """Pooled features with the initial values, (n, hidden)."""
    from trifed.config.settings import TrainingSettings
    from trifed.federation.training.evaluation import embed

    shared_model.load(shared_model.start)
    return torch.from_numpy(embed(shared_model.model, data, TrainingSettings(device="cpu", precision="fp32")))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (LORA, LORA),
        (LORA, CORES),
        (LORA, FROZEN),
        (CORES, CORES),
        (LORA, "own-prior"),
        (CORES, FROZEN),
        (FROZEN, CORES),
    ],
)
def test_the_first_model_is_the_one_that_was_trained(before, after, finished, toy_values):
    client = finished(before).path / "clients" / "amber"
    shared_model, told = prepared(toy_values, client, after)
    assert told == []
    texts = prepare(make_config(toy_values(method=before)))[2][0].test
    trained, _ = prepared(toy_values, client, before)
    fresh = prepare(make_config(toy_values(method=after)))[1]
    expected = outputs(trained, texts)
    assert torch.allclose(outputs(shared_model, texts), expected, atol=1e-5)
    assert not torch.allclose(outputs(fresh, texts), expected, atol=1e-3)
    head = load_file(client / "head.safetensors")["weight"]
    assert torch.equal(shared_model.start["head.weight"], head)


def test_a_run_from_it_begins_where_the_other_one_ended(finished, toy_values, tmp_path):
    source = finished(LORA)
    client = source.path / "clients" / "amber"
    values = toy_values(method=LORA, rounds=1, adapter={"start": str(client)})
    done = run(make_config(values), tmp_path / "run")
    before = {row["name"]: row for row in done.summary["clients"]}["amber"]["before"]
    ended = {row["name"]: row for row in source.summary["clients"]}["amber"]["now"]
    assert before["accuracy"] == ended["accuracy"] and before["loss"] == pytest.approx(ended["loss"], abs=1e-5)


def test_a_folder_of_peft(tiny_encoder, toy_values, tmp_path):
    torch.manual_seed(3)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["query", "value"], init_lora_weights=False)
    with without_peft_warnings():
        get_peft_model(AutoModel.from_pretrained(tiny_encoder), config).save_pretrained(tmp_path / "peft")
    shared_model, told = prepared(toy_values, tmp_path / "peft", LORA)
    tensors = load_file(tmp_path / "peft" / "adapter_model.safetensors")
    assert told == [] and tensors
    for name, tensor in tensors.items():
        assert torch.equal(shared_model.start[plain(name)], tensor)


def test_a_head_of_other_labels_starts_anew_and_one_in_another_order_is_sorted(finished, toy_values, tmp_path):
    client = tmp_path / "client"
    shutil.copytree(finished(LORA).path / "clients" / "amber", client)
    facts = json.loads((client / "classifier.json").read_text())
    head = load_file(client / "head.safetensors")["weight"]
    (client / "classifier.json").write_text(json.dumps({**facts, "labels": facts["labels"][::-1]}))
    shared_model, told = prepared(toy_values, client, LORA)
    assert told == [] and torch.equal(shared_model.start["head.weight"], head.flip(0))
    (client / "classifier.json").write_text(json.dumps({**facts, "labels": ["a", "b", "c"]}))
    shared_model, told = prepared(toy_values, client, LORA)
    assert "other labels" in told[0] and not torch.equal(shared_model.start["head.weight"], head)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"adapter": {"rank": 2}}, "adapter.rank = 4"),
        ({"adapter": {"alpha": 4.0}}, "adapter.alpha = 8"),
        ({"adapter": {"target_modules": ["query", "key"]}}, '["query", "value"]'),
        ({"method": "fedavg-full"}, "trains no adapter"),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused(changes, says, finished, toy_values):
    start = {"start": str(finished(LORA).path / "clients" / "amber")}
    values = toy_values(**{"method": LORA, **changes, "adapter": {**changes.get("adapter", {}), **start}})
    with pytest.raises(AdapterError) as caught:
        prepare(make_config(values))
    assert str(caught.value).startswith("adapter.start: ") and says in str(caught.value)


def test_folders_that_hold_no_such_adapter_are_refused(finished, toy_values, tmp_path):
    with pytest.raises(AdapterError, match="clients/amber"):
        prepared(toy_values, finished(LORA).path, LORA)  # a whole run
    with pytest.raises(AdapterError, match=r"holds no adapter_config\.json"):
        prepared(toy_values, tmp_path, LORA)
    with pytest.raises(AdapterError, match="plain LoRA first"):
        prepared(toy_values, finished(CORES).path / "clients" / "amber", LORA)
    with pytest.raises(ConfigError, match="makes its projections"):
        prepared(toy_values, finished(LORA).path / "clients" / "amber", "fed-sb")
    broken = tmp_path / "broken"
    shutil.copytree(finished(LORA).path / "clients" / "amber", broken)
    (broken / "adapter_model.safetensors").write_bytes(b"\x00" * 20)
    with pytest.raises(AdapterError, match="is damaged"):
        prepared(toy_values, broken, LORA)


def test_an_adapter_of_a_larger_rank_than_its_layers_says_that_no_run_can_start_from_it(
    finished, toy_values, tmp_path
):
    """A residual of full rank is exported as that much more rank; "set adapter.rank = 36" was no way out."""
    client = tmp_path / "client"
    shutil.copytree(finished(LORA).path / "clients" / "amber", client)
    tensors = load_file(client / "adapter_model.safetensors")
    save_file(
        {name: tensor.repeat(*wider(name)) for name, tensor in tensors.items()},
        client / "adapter_model.safetensors",
    )
    config = json.loads((client / "adapter_config.json").read_text())
    (client / "adapter_config.json").write_text(json.dumps({**config, "r": 36, "lora_alpha": 72}))
    with pytest.raises(AdapterError, match=r"rank 36, .*query.* 32 wide.*--form merged") as caught:
        prepared(toy_values, client, LORA)
    assert "adapter.rank =" not in str(caught.value)


def wider(name):
    """How often a factor of rank 4 is repeated, (rows, columns), so that its rank is 36."""
    return (9, 1) if ".lora_A." in name else (1, 9)


@pytest.mark.parametrize(
    "pattern", [{"alpha_pattern": {"query": 32}}, {"use_dora": True}, {"init_lora_weights": "pissa"}]
)
def test_adapters_with_other_scales_or_another_base_are_refused(pattern, finished, toy_values, tmp_path):
    client = tmp_path / "client"
    shutil.copytree(finished(LORA).path / "clients" / "amber", client)
    config = json.loads((client / "adapter_config.json").read_text())
    (client / "adapter_config.json").write_text(json.dumps({**config, **pattern}))
    with pytest.raises(AdapterError, match="plain LoRA"):
        prepared(toy_values, client, LORA)


def test_with_narrowed_weights_a_run_starts_and_resumes(finished, toy_values, tmp_path):
    start = {"start": str(finished(LORA).path / "clients" / "amber")}
    values = toy_values(method=FROZEN, rounds=2, adapter=start, training={"precision": "bf16"})

    def stop(event):
        if event["event"] == "trained" and event["round"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(make_config(values), tmp_path / "run", stop)
    assert resume(tmp_path / "run").summary["rounds"] == 2


def test_a_baseline_that_cannot_start_from_it_is_refused_before_the_run(finished, toy_values):
    start = {"start": str(finished(LORA).path / "clients" / "amber")}
    for name in ("ce-lora", "fedavg-full"):
        with pytest.raises(ConfigError, match=f"'{name}' has an adapter of another kind"):
            make_config(toy_values(method=LORA, adapter=start, baselines=["alone", name]))
    make_config(toy_values(method=LORA, adapter=start, baselines=["alone", "local"]))


def test_another_base_model_is_refused(finished, toy_values, tmp_path):
    client = tmp_path / "client"
    shutil.copytree(finished(LORA).path / "clients" / "amber", client)
    facts = json.loads((client / "classifier.json").read_text())
    (client / "classifier.json").write_text(json.dumps({**facts, "base_fingerprint": "0" * 64}))
    with pytest.raises(AdapterError, match="another base model"):
        prepared(toy_values, client, LORA)


def test_sites_do_not_have_the_servers_files(tmp_path):
    (tmp_path / "run.toml").write_text('[adapter]\nstart = "somewhere"\n[data]\nlabels = ["a", "b"]\n')
    with pytest.raises(ConfigError, match="sites have no files"):
        read_run(tmp_path / "run.toml")
