"""What only a GPU can show: every task on one, runs that go on there, layers on two devices, few bits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from accelerate import dispatch_model

from trifed import make_config, resume, run
from trifed.adapters.settings import AdapterSettings
from trifed.adapters.shared_projections import hash_projections, svd_projections
from trifed.config.settings import ModelSettings, TrainingSettings
from trifed.data import Examples
from trifed.federation.training.shared_model import build_shared_model
from trifed.methods import METHODS
from trifed.tasks import TASKS

GPU = "cuda"
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")

TRAINING = {"batch_size": 8, "learning_rate": 1e-2, "precision": "fp32", "device": GPU, "epochs": 2}


@pytest.fixture
def language_values(tiny_language, tmp_path):
    rows = [f'{{"ask": "say {n}", "tell": "abab", "site": "s{n % 2}"}}' for n in range(32)]
    (tmp_path / "a.jsonl").write_text("\n".join(rows))
    return {
        "baselines": [], "task": "causal-lm", "rounds": 3, "method": "own-prior",
        "model": {"name": str(tiny_language()), "max_length": 64},
        "adapter": {"rank": 8, "alpha": 16, "target_modules": "all-linear"},
        "data": {
            "source": str(tmp_path / "a.jsonl"), "prompt": "ask", "answer": "tell",
            "clients": {"split": "column", "column": "site"},
        },
        "training": {**TRAINING, "epochs": 5},
    }  # fmt: skip


@pytest.mark.parametrize("device", [GPU, "cuda:0", "cuda:all"])
@pytest.mark.parametrize("method", ["own-prior", "fedavg-lora", "fedavg-full"])
def test_a_language_model_learns_and_answers(language_values, tmp_path, device, method):
    values = {**language_values, "method": method}
    values["training"] = {**values["training"], "device": device}
    done = run(make_config(values), tmp_path / "run")
    for client in done.summary["clients"]:
        assert client["now"]["loss"] < 0.8 * client["before"]["loss"]
    assert done.writer("s0").answer(["say 3"], tokens=4)


@pytest.mark.parametrize("task", ["image-classification", "image-text"])
def test_images_are_classified(image_values, tiny_towers, tmp_path, task):
    model = {"name": str(tiny_towers())} if task == "image-text" else image_values["model"]
    values = {**image_values, "task": task, "model": model, "method": "own-prior"}
    values["training"] = {**TRAINING, "epochs": 8, "learning_rate": 0.03}
    done = run(make_config(values), tmp_path / "run")
    assert done.accuracy["mean"] > 0.6  # by chance 1/3


class StopError(Exception):
    """Ends a run in the middle."""


def test_a_run_that_was_broken_off_goes_on(language_values, tmp_path):
    def breaks(event):
        if event["event"] == "trained" and event["round"] == 3:
            raise StopError

    config = make_config(language_values)
    whole = run(config, tmp_path / "whole")
    with pytest.raises(StopError):
        run(config, tmp_path / "run", breaks)
    again = resume(tmp_path / "run")
    for one, other in zip(whole.summary["clients"], again.summary["clients"], strict=True):
        assert other["now"]["loss"] == pytest.approx(one["now"]["loss"], rel=1e-3)


@pytest.mark.parametrize("dtype", ["int8", "nf4"])
def test_a_base_in_few_bits_learns(language_values, tmp_path, dtype):
    pytest.importorskip("bitsandbytes")
    values = {**language_values, "model": {**language_values["model"], "dtype": dtype}}
    done = run(make_config(values), tmp_path / "run")
    for client in done.summary["clients"]:
        assert client["now"]["loss"] < 0.8 * client["before"]["loss"]
    assert done.writer("s0").answer(["say 3"], tokens=4)


def test_layers_on_two_devices_are_the_same_model(tiny_language, monkeypatch):
    """The GPU and the processor stand for two GPUs."""
    task, folder = TASKS["causal-lm"], str(tiny_language())
    settings = (ModelSettings(name=folder), AdapterSettings(rank=4), TrainingSettings(device="cuda:all"))

    def shared_model(where):
        monkeypatch.setattr("trifed.federation.training.device_placement.device_map", lambda model: where)
        return build_shared_model(task.load(folder), METHODS["fedavg-lora"], 1, 0, settings, task)

    inner = {"model.embed_tokens": 0, "model.layers.0": 0, "model.rotary_emb": 0}
    split = {**inner, "model.layers.1": "cpu", "model.norm": "cpu", "lm_head": "cpu"}
    monkeypatch.setattr(
        "trifed.federation.training.device_placement.dispatch_model",
        lambda model, device_map: dispatch_model(
            model, device_map=device_map, main_device="cpu" if "cpu" in device_map.values() else None
        ),
    )
    losses, gradients = [], []
    for where in ({"": 0}, split):
        made = shared_model(where)
        device = next(made.model.parameters()).device
        assert device.type == GPU
        batch = made.encode(Examples({"prompt": ["ab"] * 2, "answer": ["cd", "e"]}, np.zeros(2, np.int64))).batch(
            np.arange(2), device
        )
        torch.manual_seed(0)
        made.load({name: 0.1 * torch.randn(tensor.shape) for name, tensor in made.start.items()})
        loss = made.model.loss(batch)
        loss.backward()
        losses.append(loss.item())
        gradients.append({name: param.grad.cpu() for name, param in made.parameters.items()})
        devices = {param.device.type for param in made.parameters.values()}
    assert devices == {GPU, "cpu"}
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    for name, tensor in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], tensor, rtol=1e-3, atol=1e-5)


def test_frames_are_those_of_the_processor():
    weight = torch.randn(1100, 1200, generator=torch.Generator().manual_seed(0))
    here, there = (hash_projections([("a", *svd_projections(w, 8))]) for w in (weight, weight.to(GPU)))
    assert here == there
