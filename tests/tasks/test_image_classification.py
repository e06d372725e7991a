"""Image classification: what a model sees, how features are pooled, and a whole run."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor

from trifed import export_client, load_client, make_config, run
from trifed.adapters.settings import AdapterSettings
from trifed.common.errors import ModelError
from trifed.config.settings import ModelSettings, TrainingSettings
from trifed.data import as_png
from trifed.federation.training.evaluation import embed
from trifed.federation.training.local_training import Examples as Batches
from trifed.federation.training.shared_model import build_shared_model
from trifed.methods import METHODS
from trifed.tasks import TASKS
from trifed.tasks.image_classification import augmented

TASK = TASKS["image-classification"]
FP32 = TrainingSettings(precision="fp32", device="cpu")


def bench_of(folder, method="local", labels=3, **model):
    settings = (ModelSettings(name=str(folder), **model), AdapterSettings(rank=4), FP32)
    return build_shared_model(TASK.load(str(folder)), METHODS[method], labels, 0, settings, TASK)


def pictures(count=4, seed=0):
    rng = np.random.default_rng(seed)
    return [Image.fromarray(rng.integers(0, 256, (20 + n, 30, 3), np.uint8)) for n in range(count)]


def examples(images):
    from trifed.data import Examples

    return Examples({"image": [as_png(image) for image in images]}, np.arange(len(images)) % 3)


def test_the_model_sees_what_its_own_processor_makes(tiny_vision):
    """Pixels are rounded to whole numbers after resizing: half of 1/255 over the smallest spread."""
    shared_model = bench_of(tiny_vision("vit"))
    ours = shared_model.encode(examples(pictures())).batch(np.arange(4), torch.device("cpu"))["pixel_values"]
    theirs = AutoImageProcessor.from_pretrained(tiny_vision("vit"))(pictures(), return_tensors="pt")[
        "pixel_values"
    ]
    assert ours.shape == (4, 3, 16, 16)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0.51 / 255 / 0.2)


@pytest.mark.parametrize("kind", ["vit", "deit", "dinov2", "swin", "convnext"])
@pytest.mark.parametrize("method", ["fedavg-lora", "fed-xs"])
def test_every_architecture_takes_adapters_and_learns(tiny_vision, kind, method):
    shared_model = bench_of(tiny_vision(kind), method)
    batch = shared_model.encode(examples(pictures())).batch(np.arange(4), torch.device("cpu"))
    assert shared_model.model.features(batch).shape == (4, shared_model.model.hidden)
    before = shared_model.model.loss(batch).item()
    optimizer = torch.optim.AdamW(shared_model.parameters.values(), lr=0.03)
    for _ in range(80):
        shared_model.model.loss(batch).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert shared_model.model.loss(batch).item() < before / 2
    inside = [name for name in shared_model.parameters if not name.startswith("head.")]
    moved = [
        name for name in inside if not torch.equal(shared_model.parameters[name].cpu(), shared_model.start[name])
    ]
    assert moved == inside


@pytest.mark.parametrize("kind", ["vit", "convnext"])
def test_poolings_are_of_the_last_hidden_state(tiny_vision, kind):
    found = {}
    for pooling in ("mean", "cls", "pooler"):
        shared_model = bench_of(tiny_vision(kind), pooling=pooling)
        shared_model.model.eval()
        batch = shared_model.encode(examples(pictures())).batch(np.arange(4), torch.device("cpu"))
        with torch.no_grad():
            output = shared_model.encoder(pixel_values=batch["pixel_values"])
            found[pooling] = shared_model.model.features(batch)
    hidden = output.last_hidden_state
    spatial = kind == "convnext"
    torch.testing.assert_close(found["mean"], hidden.mean((2, 3)) if spatial else hidden.mean(1))
    torch.testing.assert_close(found["cls"], hidden.mean((2, 3)) if spatial else hidden[:, 0])
    torch.testing.assert_close(found["pooler"], output.pooler_output.flatten(1))


def test_mirroring_keeps_rows_and_happens_half_of_the_time():
    pixels = torch.arange(400 * 3 * 2 * 4).reshape(400, 3, 2, 4).float()
    made = augmented({"pixel_values": pixels}, "flip", torch.Generator().manual_seed(0))["pixel_values"]
    same = (made == pixels).all((1, 2, 3))
    assert ((made == pixels.flip(3)).all((1, 2, 3)) ^ same).all()
    assert abs(float(same.float().mean()) - 0.5) < 3 * 0.5 / 400**0.5  # three standard deviations


def test_moved_images_are_windows_of_the_padded_one():
    """Each pixel holds its own column and row, so the move can be read off; at most an eighth of 16: 2."""
    row, column = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
    pixels = torch.stack([row, column, 0 * row]).expand(100, 3, 16, 16)
    made = augmented({"pixel_values": pixels}, "flip-crop", torch.Generator().manual_seed(0))["pixel_values"]
    assert made.shape == pixels.shape
    down = made[:, 0, 8, 8] - 8
    assert set(down.tolist()) == {-2.0, -1.0, 0.0, 1.0, 2.0}
    wanted = (torch.arange(16.0) + down[:, None]).clamp(0, 15)  # edges repeated
    assert torch.equal(made[:, 0], wanted[:, :, None].expand(100, 16, 16))


def test_only_training_augments(tiny_vision):
    shared_model = bench_of(tiny_vision("vit"), augment="flip-crop")
    data, cpu = shared_model.encode(examples(pictures())), torch.device("cpu")
    plain, seen = data.batch(np.arange(4), cpu)["pixel_values"], Batches(shared_model.model, data, cpu, 0)
    assert not torch.equal(seen.batch(np.arange(4))["pixel_values"], plain)
    first, again = (embed(shared_model.model, data, TrainingSettings(device="cpu")) for _ in range(2))
    assert np.array_equal(first, again)


def test_a_run_learns_and_its_model_takes_images_in_every_form(image_values, tmp_path):
    result = run(make_config({**image_values, "method": "own-prior"}), tmp_path / "run")
    assert result.accuracy["mean"] > 0.9  # three colors; by chance 1/3
    assert set(result.summary["controls"]) >= {"probe-alone", "majority"}
    client = result.client("north")
    image = Image.new("RGB", (20, 20), (200, 150, 40))
    image.save(tmp_path / "a.png")
    forms = [image, tmp_path / "a.png", str(tmp_path / "a.png"), (tmp_path / "a.png").read_bytes()]
    assert client.predict(forms) == ["amber"] * 4
    np.testing.assert_allclose(client.probabilities(forms).sum(1), 1, rtol=1e-5)


@pytest.mark.parametrize("form", ["tri-matrix", "lora", "merged"])
@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_an_export_and_its_card_give_the_same_answers(image_values, tmp_path, form, pooling, plain_python):
    model = {**image_values["model"], "pooling": pooling}
    values = {**image_values, "model": model, "rounds": 1, "controls": False, "method": "ce-lora"}
    result = run(make_config(values), tmp_path / "run")
    folder = export_client(result.path, "south", form, tmp_path / "export")
    own = result.client("south").probabilities([Image.new("RGB", (64, 64))])
    np.testing.assert_allclose(load_client(folder).probabilities([Image.new("RGB", (64, 64))]), own, atol=1e-5)
    code = (folder / "README.md").read_text().split("```python\n")[1].split("```")[0]
    # A ViT with a head on its first token is a class of transformers; with one on the mean it is none.
    stock = form == "merged" and pooling == "cls"
    assert ("AutoModelForImageClassification" in code) == stock
    code += '\nimport numpy; numpy.save("answer.npy", classify([Image.new("RGB", (64, 64))]).detach().numpy())\n'
    plain_python(code, folder)
    np.testing.assert_allclose(np.load(folder / "answer.npy"), own, atol=1e-5)


def test_a_model_of_another_kind_names_the_tasks_that_it_fits(tiny_vision, tiny_encoder):
    with pytest.raises(ModelError, match=r"'bert'.*'text-class"):
        TASK.load(str(tiny_encoder))
    with pytest.raises(ModelError, match=r"'vit'.*'image-class"):
        TASKS["text-classification"].load(str(tiny_vision("vit")))


def test_a_processor_of_another_size_is_refused(tiny_vision):
    base = TASK.load(str(tiny_vision("vit")))
    processor = AutoImageProcessor.from_pretrained(tiny_vision("vit"), size={"height": 24, "width": 24})
    with pytest.raises(ModelError, match=r"24 × 24.*16 ×"):
        TASK.encode(replace(base, processor=processor), examples(pictures()), ModelSettings())


@pytest.mark.parametrize("kind", ["vit", "deit", "dinov2", "swin", "convnext"])
def test_patches_are_the_fewest_inputs_that_an_image_gives_a_layer(kind, tiny_vision):
    """Counted where they go in: rows of the linear layers' inputs. A first token comes on top of them."""
    base = TASK.load(str(tiny_vision(kind)))
    encoded = TASK.encode(base, examples([pictures()[0], *pictures(2)]), ModelSettings())
    seen = []
    for name, module in base.model.named_modules():
        if isinstance(module, torch.nn.Linear) and "pooler" not in name:
            module.register_forward_pre_hook(lambda _, args: seen.append(args[0][0].numel() // args[0].shape[-1]))
    with torch.no_grad():
        base.model(pixel_values=encoded.batch(np.arange(1), torch.device("cpu"))["pixel_values"])
    first = 0 if kind in ("swin", "convnext") else 1
    if kind == "deit":
        first = 2  # the token of distillation
    assert len(encoded.inputs(0)[""]) == encoded.patches == min(seen) - first
    assert encoded.inputs(0) == encoded.inputs(1) and not encoded.inputs(0)[""] & encoded.inputs(2)[""]
