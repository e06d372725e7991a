"""Images and an audit: the whole model's gradient gives them back."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModel, ViTImageProcessor

from trifed import make_config
from trifed.attacks.audit import audit
from trifed.attacks.patches import find_patch_embedding
from trifed.attacks.plan import Plan
from trifed.attacks.reconstruction import ImageReconstruction
from trifed.attacks.target import train_target
from trifed.config.run import to_toml

pytestmark = pytest.mark.slow


def test_an_image_comes_back_from_the_whole_models_gradient(image_values, tmp_path):
    path = tmp_path / "photos.toml"
    values = {**image_values, "name": "photos", "method": "fedavg-full", "controls": False}
    values["training"] = {**values["training"], "learning_rate": 1e-4}
    path.write_text(to_toml(make_config(values)))
    plan = Plan(rounds=1, batches=(1,), trials=1, matched=1, iterations=60, clients=1, members=4, controls=())
    found = audit(path, tmp_path / "audit", plan)
    scores = {(row.attack, row.sees): row.scores for row in found.reconstruction}
    assert scores["matching", "gradient"]["psnr"].mean > scores["guesser", "gradient"]["psnr"].mean + 2
    assert scores["matching", "gradient"]["distance"].mean < scores["guesser", "gradient"]["distance"].mean / 2
    assert all(np.isfinite(value.mean) for row in scores.values() for value in row.values())
    assert found.reconstruction[0].attempts[0].original[0].startswith("data:image/png;base64,")


def wide_vision(folder):
    """A random ViT of 96 features that reads 16 patches: room for what tells a patch beside all inputs."""
    shape = {"image_size": 16, "patch_size": 4, "num_hidden_layers": 2, "num_attention_heads": 2}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModel.from_config(AutoConfig.for_model("vit", hidden_size=96, intermediate_size=96, **shape))
    with torch.no_grad():
        for norm in (m for m in model.modules() if isinstance(m, torch.nn.LayerNorm)):
            norm.weight.uniform_(0.5, 1.5)
            norm.bias.normal_(0, 0.3)
    model.save_pretrained(folder)
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize(
    ("method", "rank", "by_span", "by_embedding"),
    [("fedavg-full", 4, True, True), ("own-prior", 90, True, False), ("own-prior", 64, False, False)],
)
def test_an_image_is_solved_for_where_a_layer_has_room(
    image_values, tmp_path, method, rank, by_span, by_embedding
):
    """17 inputs and the 49 unknowns of a patch take 66 dimensions: a core of rank 90 has them, of 64 not."""
    values = {
        **image_values,
        "method": method,
        "model": {"name": wide_vision(tmp_path / "vit")},
        "controls": False,
    }
    values |= {"adapter": {"rank": rank, "alpha": rank}, "privacy": {"few_tokens": "allow"}}
    target = train_target(make_config(values), 1, None)
    trials = ImageReconstruction(target, Plan(batches=(1,), trials=2, matched=0), lambda text: None)
    found = {(row.attack, row.sees): row.scores["psnr"].mean for row in trials.run()}
    floor = found["guesser", "gradient"]
    assert (found["span", "gradient"] > 40) == by_span
    assert (("embedding", "gradient") in found) == by_embedding
    assert found.get(("embedding", "gradient"), 99) > 40
    assert found["span", "update"] == floor  # several steps of AdamW are no gradient
    if not by_span:
        assert found["span", "gradient"] == floor


def test_two_images_in_one_gradient_are_not_solved_for(image_values, tmp_path):
    """Each place has two patches in the span, and any mixture of them lies in it too."""
    values = {**image_values, "method": "fedavg-full", "model": {"name": wide_vision(tmp_path / "vit")}}
    target = train_target(make_config({**values, "controls": False}), 1, None)
    trials = ImageReconstruction(target, Plan(batches=(2,), trials=1, matched=0), lambda text: None)
    scores = {(row.attack, row.sees): row.scores["psnr"].mean for row in trials.run()}
    assert set(scores) == {("guesser", "gradient"), ("span", "gradient"), ("span", "update")}
    assert len(set(scores.values())) == 1


@pytest.mark.parametrize("kind", ["swin", "convnext"])
def test_models_without_such_an_opening_have_none(image_values, tiny_vision, kind):
    values = {**image_values, "model": {"name": str(tiny_vision(kind))}, "controls": False}
    target = train_target(make_config({**values, "method": "own-prior"}), 1, None)
    opening = find_patch_embedding(target.shared_model, target.client.train.pixels.shape[-1])
    assert opening is None or not opening.layers


@pytest.mark.parametrize(("kind", "added"), [("vit", 1), ("deit", 2), ("dinov2", 1)])
def test_what_enters_a_vision_transformer_is_patches_and_what_it_adds(image_values, tiny_vision, kind, added):
    values = {
        **image_values,
        "model": {"name": str(tiny_vision(kind))},
        "controls": False,
        "method": "fedavg-full",
    }
    target = train_target(make_config(values), 1, None)
    opening = find_patch_embedding(target.shared_model, target.client.train.pixels.shape[-1])
    assert opening is not None
    assert [name.rsplit(".", 1)[1] for name in opening.layers] == ["q_proj", "k_proj", "v_proj"]
    assert opening.inputs == len(opening.places) + added
