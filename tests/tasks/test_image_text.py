"""Models of images and texts: zero-shot at the start, adapters in one tower or both, prompts embedded once."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModel

from trifed import export_client, load_client, make_config, run
from trifed.adapters.settings import AdapterSettings
from trifed.common.errors import ModelError
from trifed.config.settings import ModelSettings, TrainingSettings
from trifed.data import Examples, as_png
from trifed.federation.training.shared_model import build_shared_model
from trifed.methods import METHODS
from trifed.tasks import TASKS

TASK = TASKS["image-text"]
LABELS = ["amber", "green", "violet_thing"]
KINDS = ["clip", "siglip", "dual"]


def bench_of(folder, method="fedavg-lora", towers="both", **model):
    adapter = AdapterSettings(rank=4, alpha=8, towers=towers)
    training = TrainingSettings(precision="fp32", device="cpu")
    settings = (ModelSettings(name=str(folder), **model), adapter, training)
    return build_shared_model(TASK.load(str(folder)), METHODS[method], LABELS, 0, settings, TASK)


def batch_of(shared_model, count=4):
    rng = np.random.default_rng(0)
    images = [as_png(Image.fromarray(rng.integers(0, 256, (20, 24, 3), np.uint8))) for _ in range(count)]
    data = shared_model.encode(Examples({"image": images}, np.arange(count) % 3))
    return data.batch(np.arange(count), torch.device("cpu"))


@pytest.mark.parametrize("kind", KINDS)
def test_the_start_is_the_models_own_zero_shot_classifier(tiny_towers, kind):
    """The logits of transformers' class for the same sentences, which say "violet thing" for violet_thing."""
    shared_model = bench_of(tiny_towers(kind), class_prompt="photo of {} .")
    batch = batch_of(shared_model)
    shared_model.model.eval()
    tokenizer = shared_model.base.processor.tokenizer
    padding = {"padding": "max_length", "max_length": 16} if kind == "siglip" else {"padding": True}
    said = [f"photo of {label.replace('_', ' ')} ." for label in LABELS]
    sentences = tokenizer(said, return_tensors="pt", return_token_type_ids=False, **padding)
    if kind == "siglip":
        del sentences["attention_mask"]
    with torch.no_grad():
        plain = AutoModel.from_pretrained(tiny_towers(kind)).eval()
        theirs = plain(pixel_values=batch["pixel_values"], **sentences).logits_per_image
        ours = shared_model.model(batch)
    assert theirs.std() > 1e-3
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("towers", ["both", "vision", "text"])
def test_adapters_stand_in_the_towers_that_are_named(tiny_towers, kind, towers):
    shared_model = bench_of(tiny_towers(kind), towers=towers)
    found = {name.split("_")[0] for name in shared_model.parameters if ".lora_A." in name}
    assert found == ({"vision", "text"} if towers == "both" else {towers})
    adapted = sum(p.numel() for n, p in shared_model.parameters.items() if ".lora_" in n)
    assert shared_model.lora_bytes == 4 * (adapted + len(LABELS))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("towers", "times"), [("vision", 1), ("text", 6), ("both", 6)])
def test_sentences_are_embedded_once_where_their_tower_is_frozen(tiny_towers, kind, towers, times, monkeypatch):
    shared_model = bench_of(tiny_towers(kind), towers=towers)
    asked = []
    embed = shared_model.model.towers.get_text_features
    monkeypatch.setattr(shared_model.model.towers, "get_text_features", lambda **k: asked.append(1) or embed(**k))
    batch = batch_of(shared_model)
    shared_model.model.eval()
    before = shared_model.model.loss(batch).item()
    optimizer = torch.optim.AdamW(shared_model.parameters.values(), lr=0.02)
    for _ in range(5):
        shared_model.model.loss(batch).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert len(asked) == times
    assert shared_model.model.loss(batch).item() < before
    moved = {
        n.split("_")[0] for n, p in shared_model.parameters.items() if not torch.equal(p, shared_model.start[n])
    }
    assert moved == {"head.bias", *({"vision", "text"} if towers == "both" else {towers})}


def test_kept_sentences_know_no_dropout(tiny_towers):
    """BERT's dropout is on while training; the first batch must not decide what is kept."""
    shared_model = bench_of(tiny_towers("dual"), towers="vision")
    shared_model.model.train()
    first = shared_model.model.classes()
    again = bench_of(tiny_towers("dual"), towers="vision")
    again.model.eval()
    torch.testing.assert_close(first, again.model.classes())


@pytest.mark.parametrize("method", ["own-prior", "ce-lora", "fed-xs"])
def test_a_run_learns_and_its_client_looks_at_images(tiny_towers, image_values, tmp_path, method):
    values = {**image_values, "task": "image-text", "model": {"name": str(tiny_towers())}, "method": method}
    values["training"] = {**values["training"], "epochs": 8, "learning_rate": 0.03}
    result = run(make_config(values), tmp_path / "run")
    assert result.accuracy["mean"] > 0.6  # by chance 1/3
    facts = json.loads((result.path / "clients" / "north" / "classifier.json").read_text())
    assert (facts["task"], facts["class_prompt"]) == ("image-text", ModelSettings().class_prompt)
    client = result.client("north")
    kept = json.loads((result.path / "predictions.json").read_text())
    assert len(kept["model"]["north"]) == len(kept["labels"]["north"])
    np.testing.assert_allclose(client.probabilities([Image.new("RGB", (20, 20))]).sum(), 1, rtol=1e-5)


@pytest.mark.parametrize(
    ("kind", "method", "form"),
    [("clip", "ce-lora", "tri-matrix"), ("siglip", "fedavg-lora", "lora"), ("dual", "own-prior", "merged")],
)
def test_an_export_classifies_with_and_without_this_package(
    tiny_towers, image_values, paint, run_card, tmp_path, kind, method, form
):
    values = {**image_values, "task": "image-text", "model": {"name": str(tiny_towers(kind))}, "method": method}
    done = run(make_config({**values, "rounds": 1}), tmp_path / "run")
    folder = export_client(done.path, "north", form, tmp_path / "north")
    (tmp_path / "one.png").write_bytes(paint("green"))
    own = done.client("north").probabilities([tmp_path / "one.png"])
    np.testing.assert_allclose(load_client(folder).probabilities([tmp_path / "one.png"]), own, rtol=1e-4)
    told = run_card(folder, f"classify([Image.open({str(tmp_path / 'one.png')!r})]).tolist()")
    # A card's pixels are not rounded to bytes first.
    np.testing.assert_allclose(json.loads(told), own, atol=0.02)


def test_an_export_without_its_bias_is_the_zero_shot_part(tiny_towers, image_values, paint, run_card, tmp_path):
    values = {**image_values, "task": "image-text", "model": {"name": str(tiny_towers())}, "method": "fedavg-lora"}
    done = run(make_config({**values, "rounds": 1}), tmp_path / "run")
    folder = export_client(done.path, "north", "lora-no-head", tmp_path / "north")
    assert not (folder / "head.safetensors").exists()
    assert "label shares do not" in (folder / "README.md").read_text()
    told = json.loads(run_card(folder, 'classify([Image.new("RGB", (20, 20))]).tolist()'))
    np.testing.assert_allclose(np.sum(told), 1, rtol=1e-5)


def test_other_models_and_towers_that_are_not_there_are_refused(tiny_towers, tiny_vision, tiny_encoder):
    with pytest.raises(ModelError, match=r"and texts.*'image-class"):
        TASK.load(str(tiny_vision("vit")))
    with pytest.raises(ModelError, match=r"vision model.*task = 'image-text'"):
        TASKS["image-classification"].load(str(tiny_towers()))
    base = TASKS["text-classification"].load(str(tiny_encoder))
    settings = (ModelSettings(), AdapterSettings(rank=4, towers="text"), TrainingSettings(device="cpu"))
    with pytest.raises(ModelError, match="towers: got 'text'"):
        build_shared_model(base, METHODS["local"], 2, 0, settings)
