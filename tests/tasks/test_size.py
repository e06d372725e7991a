"""What makes larger models fit: steps in parts, activations computed again, a base in 16 bits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from trifed import export_client, load_writer, make_config, run
from trifed.adapters.settings import AdapterSettings
from trifed.common.errors import AdapterError, ModelError
from trifed.config.settings import ModelSettings, TrainingSettings
from trifed.data import Examples, as_png
from trifed.federation.training.batches import RoundRandom
from trifed.federation.training.local_training import LocalTraining, train_locally
from trifed.federation.training.shared_model import build_shared_model
from trifed.methods import METHODS
from trifed.tasks import TASKS


def texts(count=7):
    """Prompts whose answers are of very unlike lengths."""
    rows = {
        "prompt": [f"q{n}" for n in range(count)],
        "answer": ["x" * (1 + 9 * (n % 3)) for n in range(count)],
    }
    return Examples(rows, np.zeros(count, np.int64))


def images(count=7):
    rng = np.random.default_rng(0)
    made = [as_png(Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8))) for _ in range(count)]
    return Examples({"image": made}, np.arange(count) % 3)


CASES = {"causal-lm": ("tiny_language", texts), "image-classification": ("tiny_vision", images)}


def trained(request, task, model=None, **training):
    """The gradient of one step on seven examples, by parameter, and the step's loss."""
    fixture, examples = CASES[task]
    folder = request.getfixturevalue(fixture)()
    chosen = TrainingSettings(precision="fp32", device="cpu", batch_size=7, learning_rate=0.01, **training)
    settings = (ModelSettings(name=str(folder), max_length=64, **(model or {})), AdapterSettings(rank=4), chosen)
    base = TASKS[task].load(str(folder), settings[0].dtype)
    shared_model = build_shared_model(base, METHODS["fedavg-lora"], 3, 0, settings, TASKS[task])
    job = LocalTraining(
        shared_model.parameters, shared_model.encode(examples()), RoundRandom.of(0, 1, 0), 0, 2, {}
    )
    done = train_locally(shared_model.model, [job], chosen)[0]
    first = {name: m for name, m in done.moments.items() if name.startswith("exp_avg/")}  # 0.1 times the gradient
    return shared_model, first, done.loss


@pytest.mark.parametrize("task", CASES)
@pytest.mark.parametrize("size", [1, 3, 7, 20])
def test_a_step_in_parts_is_the_same_step(request, task, size):
    """Parts of 3, 3 and 1: the mean is over predictions, which the last part and short answers have fewer of."""
    whole, parts = (trained(request, task, **more) for more in ({}, {"micro_batch": size}))
    assert parts[2] == pytest.approx(whole[2], rel=1e-5)
    for name, tensor in whole[1].items():
        torch.testing.assert_close(parts[1][name], tensor, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("task", CASES)
def test_activations_that_are_computed_again_change_nothing(request, task):
    whole, again = (trained(request, task, **more) for more in ({}, {"gradient_checkpointing": True}))
    assert any(getattr(module, "gradient_checkpointing", False) for module in again[0].encoder.modules())
    assert again[2] == pytest.approx(whole[2], rel=1e-6)
    for name, tensor in whole[1].items():
        torch.testing.assert_close(again[1][name], tensor, rtol=1e-5, atol=1e-8)


def test_a_model_that_needs_its_activations_says_so(request, monkeypatch):
    base = TASKS["image-classification"].load(str(request.getfixturevalue("tiny_vision")()))
    monkeypatch.setattr(type(base.model), "supports_gradient_checkpointing", False)
    settings = (ModelSettings(), AdapterSettings(rank=4), TrainingSettings(gradient_checkpointing=True))
    with pytest.raises(ModelError, match="'vit' model"):
        build_shared_model(base, METHODS["local"], 3, 0, settings, TASKS["image-classification"])


@pytest.mark.parametrize("task", CASES)
@pytest.mark.parametrize("method", ["fedavg-lora", "ce-lora", "fed-xs"])
def test_over_a_base_of_16_bits_what_trains_has_32(request, task, method):
    fixture, examples = CASES[task]
    folder = request.getfixturevalue(fixture)()
    settings = (
        ModelSettings(name=str(folder), dtype="bfloat16", max_length=64),
        AdapterSettings(rank=4),
        TrainingSettings(device="cpu"),
    )
    base = TASKS[task].load(str(folder), "bfloat16")
    shared_model = build_shared_model(base, METHODS[method], 3, 0, settings, TASKS[task])
    assert {param.dtype for param in shared_model.parameters.values()} == {torch.float32}
    assert {param.dtype for param in shared_model.adapted.values()} == {torch.bfloat16}
    batch = shared_model.encode(examples()).batch(np.arange(7), torch.device("cpu"))
    loss = shared_model.model.loss(batch)
    loss.backward()
    assert loss.dtype == torch.float32 and torch.isfinite(loss)
    assert shared_model.model.features(batch).dtype == torch.float32


def test_a_run_over_a_base_of_16_bits_is_loaded_as_it_was_trained(tiny_language, tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text("\n".join(f'{{"text": "line {n}, and some more"}}' for n in range(40)), encoding="utf-8")
    values = {
        "baselines": [], "task": "causal-lm", "rounds": 1, "method": "own-prior", "adapter": {"rank": 4},
        "model": {"name": str(tiny_language()), "max_length": 32, "dtype": "bfloat16"},
        "data": {"source": str(path), "clients": {"split": "iid", "count": 2}},
        "training": {"device": "cpu"},
    }  # fmt: skip
    result = run(make_config(values), tmp_path / "run")
    writer = load_writer(result.path / "clients" / "client-00")
    assert {p.dtype for p in writer.base.model.parameters() if p.dtype != torch.float32} == {torch.bfloat16}
    assert isinstance(writer.answer(["line 1"], tokens=3)[0], str)


QUANTISED = ("int8", "nf4")


@pytest.mark.parametrize("dtype", QUANTISED)
@pytest.mark.parametrize("task", CASES)
def test_a_base_in_few_bits_is_nearly_the_same(request, task, dtype):
    """Rounded weights: another loss, but not by much, and adapters and their gradients in 32 bits."""
    whole, few = (trained(request, task, model) for model in ({}, {"dtype": dtype}))
    assert few[2] != whole[2]
    assert few[2] == pytest.approx(whole[2], rel=0.1)
    assert few[0].fingerprint != whole[0].fingerprint
    assert {tensor.dtype for tensor in few[0].parameters.values()} == {torch.float32}
    ours, theirs = (torch.cat([t.flatten() for t in one[1].values()]) for one in (few, whole))
    assert torch.cosine_similarity(ours, theirs, dim=0) > {"int8": 0.95, "nf4": 0.6}[dtype]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["ce-lora", "own-prior", "fedavg-lora"])
@pytest.mark.parametrize("dtype", QUANTISED)
def test_a_run_over_a_base_in_few_bits(tiny_language, tmp_path, dtype, method):
    rows = [f'{{"ask": "say {n}", "tell": "abab", "site": "s{n % 2}"}}' for n in range(32)]
    (tmp_path / "a.jsonl").write_text("\n".join(rows))
    values = {
        "baselines": [], "task": "causal-lm", "rounds": 2, "method": method,
        "model": {"name": str(tiny_language()), "max_length": 64, "dtype": dtype},
        "adapter": {"rank": 8, "alpha": 16, "target_modules": "all-linear"},
        "data": {
            "source": str(tmp_path / "a.jsonl"), "prompt": "ask", "answer": "tell",
            "clients": {"split": "column", "column": "site"},
        },
        "training": {"batch_size": 8, "learning_rate": 3e-2, "device": "cpu", "epochs": 5, "precision": "fp32"},
    }  # fmt: skip
    done = run(make_config(values), tmp_path / "run")
    for client in done.summary["clients"]:
        assert client["now"]["loss"] < 0.8 * client["before"]["loss"]
    own = done.writer("s0").answer(["say 3"], tokens=4)
    assert load_writer(export_client(done.path, "s0", "lora", tmp_path / "s0")).answer(["say 3"], tokens=4) == own
    with pytest.raises(AdapterError, match=r"expected one of.* lora"):
        export_client(done.path, "s0", "merged", tmp_path / "merged")


def test_without_the_package_for_few_bits(tiny_language, monkeypatch):
    monkeypatch.setattr("trifed.tasks.base_model.find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"'nf4'.*'\.\[quantized\]'"):
        TASKS["causal-lm"].load(str(tiny_language()), "nf4")


@pytest.mark.parametrize("method", ["fed-sb", "fedavg-full", "fedex-lora", "fedalt", "feddpa"])
def test_methods_that_need_the_bases_own_weights_refuse_few_bits(tiny_language, method):
    task = TASKS["causal-lm"]
    settings = (ModelSettings(dtype="int8"), AdapterSettings(rank=4), TrainingSettings(device="cpu"))
    with pytest.raises(ModelError, match=rf"model\.dtype: got 'int8'.*'{method}'"):
        build_shared_model(task.load(str(tiny_language())), METHODS[method], 1, 0, settings, task)
