"""Images and captions: the loss in closed form, scores that no batch size changes, and a model that matches."""

from __future__ import annotations

import io
import json
import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from transformers import AutoModel
from typer.testing import CliRunner

from trifed import export_client, load_client, load_retrieval_model, make_config, run
from trifed.adapters.settings import AdapterSettings
from trifed.cli.app import app
from trifed.common.errors import ConfigError, DataError, ModelError, RunError
from trifed.config.settings import ModelSettings, TrainingSettings
from trifed.data import Examples, as_png
from trifed.export.evaluate import measure_matches
from trifed.federation.client_update import ClientDataset
from trifed.federation.guards import few_tokens
from trifed.federation.training.evaluation import compared_together, evaluate
from trifed.federation.training.shared_model import build_shared_model
from trifed.methods import METHODS
from trifed.tasks import TASKS
from trifed.tasks.image_text_pairs import same_captions

TASK = TASKS["image-text-pairs"]
KINDS = ["clip", "siglip", "dual"]
CAPTIONS = ["a photo of amber", "a photo of green thing .", "violet", "a photo of amber"]


def bench_of(folder, method="fedavg-lora", **training):
    settings = (
        ModelSettings(name=str(folder), max_length=16),
        AdapterSettings(rank=4, alpha=8),
        TrainingSettings(precision="fp32", device="cpu", **training),
    )
    return build_shared_model(TASK.load(str(folder)), METHODS[method], 1, 0, settings, TASK)


def pairs(captions=CAPTIONS):
    rng = np.random.default_rng(0)
    images = [as_png(Image.fromarray(rng.integers(0, 256, (20, 24, 3), np.uint8))) for _ in captions]
    return Examples({"image": images, "text": list(captions)}, np.zeros(len(captions), np.int64))


def batch_of(shared_model, captions=CAPTIONS):
    return shared_model.encode(pairs(captions)).batch(np.arange(len(captions)), torch.device("cpu"))


@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_those_of_transformers(tiny_towers, kind):
    shared_model = bench_of(tiny_towers(kind))
    batch = batch_of(shared_model)
    shared_model.model.eval()
    tokens = {name: batch[name] for name in ("input_ids", "attention_mask") if name in batch}
    with torch.no_grad():
        plain = AutoModel.from_pretrained(tiny_towers(kind)).eval()
        theirs = plain(pixel_values=batch["pixel_values"], **tokens).logits_per_image
        ours = shared_model.model(batch)
    assert theirs.std() > 1e-3
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["clip", "dual"])
def test_without_captions_in_common_the_loss_is_clips_own(tiny_towers, kind):
    """Mean over both directions of the cross-entropy with the diagonal."""
    shared_model = bench_of(tiny_towers(kind))
    batch = batch_of(shared_model, CAPTIONS[:3])
    shared_model.model.eval()
    logits = shared_model.model(batch)
    own = -(logits.log_softmax(1).diag().mean() + logits.log_softmax(0).diag().mean()) / 2
    assert shared_model.model.loss(batch).item() == pytest.approx(own.item(), rel=1e-5)


def test_the_loss_of_siglip_is_its_own(tiny_towers):
    """transformers' class computes it for batches without captions in common."""
    shared_model = bench_of(tiny_towers("siglip"))
    batch = batch_of(shared_model, CAPTIONS[:3])
    shared_model.model.eval()
    with torch.no_grad():
        plain = AutoModel.from_pretrained(tiny_towers("siglip")).eval()
        theirs = plain(pixel_values=batch["pixel_values"], input_ids=batch["input_ids"], return_loss=True).loss
        assert shared_model.model.loss(batch).item() == pytest.approx(theirs.item(), rel=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_equal_captions_are_all_right(tiny_towers, kind):
    """With one caption for all there is nothing to tell apart: everything found is right.

    CLIP's loss is then log n in one direction, whatever the images, for all captions are equally near; in the
    other it is the cross-entropy with the even distribution, at least log n.
    """
    shared_model = bench_of(tiny_towers(kind))
    batch = batch_of(shared_model, ["a photo of green"] * 4)
    assert same_captions(batch).all()
    shared_model.model.eval()
    assert shared_model.model.score(batch).right.tolist() == [1.0] * 4
    if kind != "siglip":
        assert shared_model.model.loss(batch).item() >= math.log(4) - 1e-6
    same = same_captions(batch_of(shared_model))
    assert same.tolist() == [[i == j or {i, j} == {0, 3} for j in range(4)] for i in range(4)]


def test_scores_do_not_depend_on_the_batch_size(tiny_towers):
    shared_model = bench_of(tiny_towers())
    rng = np.random.default_rng(1)
    words = ["amber", "green", "violet", "thing", "photo", "of", "a"]
    data = shared_model.encode(pairs([" ".join(rng.choice(words, 5)) for _ in range(70)]))
    scores = [
        evaluate(shared_model.model, data, TrainingSettings(device="cpu", eval_batch_size=n)) for n in (1, 7, 64)
    ]
    assert len({score.accuracy for score in scores}) == 1 and len({score.loss for score in scores}) == 1
    assert scores[0].right.shape == (70,) and len(scores[0].predictions) == 0


@pytest.mark.parametrize(("n", "sizes"), [(1, [1]), (32, [32]), (33, [17, 16]), (70, [24, 23, 23])])
def test_groups_are_even_and_in_order(n, sizes):
    groups = compared_together(range(n), 32)
    assert [len(group) for group in groups] == sizes
    assert np.concatenate(groups).tolist() == list(range(n))


def test_captions_that_are_cut_are_counted(tiny_towers):
    folder = str(tiny_towers())
    settings = ModelSettings(name=folder, max_length=5)
    data = TASK.encode(TASK.load(folder), pairs(["a photo of a thing .", "a photo of", "green"]), settings)
    assert data.cut == 1
    assert data.tokens["input_ids"].shape == (3, 5)


HUES = {"amber": (200, 150, 40), "green": (60, 190, 70), "violet": (150, 60, 200)}


@pytest.fixture(scope="module")
def captions_table(tmp_path_factory):
    """`photo,said,site`: 96 noisy images of three colors at two sites, and what is said of them."""
    rng = np.random.default_rng(0)
    rows = []
    for site in ("north", "south"):
        for hue in list(HUES) * 16:
            made = io.BytesIO()
            pixels = rng.normal(HUES[hue], 40, (20, 20, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(made, "PNG")
            said = f"a photo of {hue}" if rng.random() < 0.5 else f"a {hue} thing"
            rows.append({"photo": {"bytes": made.getvalue(), "path": None}, "said": said, "site": site})
    path = tmp_path_factory.mktemp("captions") / "captions.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def values_of(folder, table, **more):
    return {
        "baselines": [], "task": "image-text-pairs", "rounds": 3, "method": "fedavg-lora",
        "model": {"name": str(folder), "max_length": 16},
        "adapter": {"rank": 4, "alpha": 8},
        "data": {
            "source": str(table), "image": "photo", "text": "said",
            "clients": {"split": "column", "column": "site"},
        },
        "training": {"batch_size": 12, "learning_rate": 2e-2, "precision": "fp32", "device": "cpu", "epochs": 8},
        **more,
    }  # fmt: skip


@pytest.fixture(scope="module")
def trained(tiny_towers, captions_table, tmp_path_factory):
    return run(make_config(values_of(tiny_towers(), captions_table)), tmp_path_factory.mktemp("runs") / "captions")


def test_a_run_learns_to_match(trained):
    for client in trained.summary["clients"]:
        assert client["now"]["loss"] < 0.8 * client["before"]["loss"]
        assert client["now"]["accuracy"] > client["before"]["accuracy"] + 0.2
    assert trained.summary["metric"] == "matching accuracy"
    assert "perplexity" not in trained.summary and trained.summary["controls"] == {}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ["own-prior", "ce-lora"])
def test_other_methods_and_models(tiny_towers, captions_table, tmp_path, kind, method):
    values = values_of(tiny_towers(kind), captions_table, method=method)
    done = run(make_config({**values, "rounds": 2}), tmp_path / "run")
    for client in done.summary["clients"]:
        assert client["now"]["loss"] < client["before"]["loss"]


def test_it_says_which_text_fits(trained, paint):
    matcher = trained.matcher("north")
    texts = [f"a photo of {hue}" for hue in HUES]
    images = [paint(hue, seed) for hue in HUES for seed in range(5)]
    right = np.repeat(np.arange(3), 5) == matcher.among(texts).probabilities(images).argmax(1)
    assert right.mean() > 0.6  # by chance 1/3
    with pytest.raises(RunError, match="got no texts"):
        matcher.among([])


def call(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def test_from_the_command_line(trained, captions_table, paint, tmp_path):
    (tmp_path / "one.png").write_bytes(paint("green"))
    asked = ["predict", trained.path, "--client", "north", "--image", tmp_path / "one.png"]
    told = call(*asked, "--text", "a green thing", "--text", "a violet thing", "--format", "jsonl", "--top", 2)
    assert told.exit_code == 0, told.output
    labels = {item["label"] for item in json.loads(told.stdout)["top"]}
    assert labels == {"a green thing", "a violet thing"}
    refused = call(*asked)
    assert isinstance(refused.exception, DataError)
    assert "--text" in str(refused.exception)
    evaluated_model = call("evaluate", trained.path, captions_table, "--client", "all", "--format", "json")
    assert evaluated_model.exit_code == 0, evaluated_model.output
    for client in json.loads(evaluated_model.stdout)["clients"]:
        assert (client["examples"], client["captions"]) == (96, 6)
        assert client["caption_found"] > 0.3 > 1 / 6
    table = call("evaluate", trained.path, captions_table, "--client", "north")
    assert table.exit_code == 0 and "96 images" in table.output and "6 captions" in table.output


@pytest.mark.parametrize(
    ("method", "form"), [("fedavg-lora", "lora"), ("ce-lora", "tri-matrix"), ("own-prior", "merged")]
)
def test_an_export_matches_with_and_without_this_package(
    tiny_towers, captions_table, paint, run_card, tmp_path, method, form
):
    values = values_of(tiny_towers("dual" if form == "merged" else "clip"), captions_table, method=method)
    done = run(make_config({**values, "rounds": 1}), tmp_path / "run")
    folder = export_client(done.path, "north", form, tmp_path / "north")
    (tmp_path / "one.png").write_bytes(paint("green"))
    texts = ["a green thing", "a photo of amber", "violet"]
    own = done.matcher("north").among(texts).probabilities([tmp_path / "one.png"])
    again = load_retrieval_model(folder).among(texts).probabilities([tmp_path / "one.png"])
    np.testing.assert_allclose(again, own, rtol=1e-4)
    told = run_card(folder, f"match([Image.open({str(tmp_path / 'one.png')!r})], {texts!r}).tolist()")
    # A card's pixels are not rounded to bytes first.
    np.testing.assert_allclose(json.loads(told), own, atol=0.02)
    assert "zero-shot-image-classification" in (folder / "README.md").read_text()


def test_what_it_is_not_is_said(trained, tiny_vision, captions_table):
    with pytest.raises(RunError, match=r"trifed\.load_"):
        load_client(trained.path / "clients" / "north")
    with pytest.raises(RunError, match="load_retrieval_model"):
        trained.writer("north")
    with pytest.raises(ModelError, match="images and texts"):
        TASK.load(str(tiny_vision("vit")))
    values = values_of("x", captions_table)
    with pytest.raises(ConfigError) as refused:
        make_config({**values, "training": {"micro_batch": 4}})
    assert refused.value.problems[0].startswith("training.micro_batch: ")


def test_ranks_by_hand():
    """Images 0 and 1 have caption 0, image 2 caption 1.

    Rows: image 0 finds caption 0; image 1 caption 1, wrongly; image 2 ties, which is not found. Columns: caption 0
    finds image 0; caption 1 finds image 1, wrongly.
    """
    nearness = np.array([[0.9, 0.1], [0.2, 0.8], [0.5, 0.5]], np.float32)
    found = measure_matches("a", nearness, np.array([0, 0, 1]))
    assert (found.caption_found, found.image_found) == pytest.approx((1 / 3, 1 / 2))
    assert (found.caption_near, found.image_near) == (1.0, 1.0)
    assert found.accuracy == pytest.approx((1 / 3 + 1 / 2) / 2)


def test_each_tower_is_asked_for_what_it_reads(tiny_towers):
    """A core in a tower is measured by the inputs of that tower: n of them are enough for rank n / 2, no more."""
    shared_model = bench_of(tiny_towers("clip"))
    data = shared_model.encode(pairs(["violet"]))
    read = data.inputs(0)
    assert set(read) == {"vis", "text"} and len(read["vis"]) == data.patches
    towers = {name.split("_")[0] for name in shared_model.parameters if "lora_" in name}
    assert towers == {"vision", "text"}
    settings, alone = TrainingSettings(), ClientDataset(0, "amber", data, data, data)
    texts, images = len(read["text"]), len(read["vis"])
    for tower, there in (("text", texts), ("vision", images)):
        fits, over = ((f"{tower}_model.x.lora_C.weight", (rank, rank)) for rank in (there // 2, there // 2 + 1))
        assert few_tokens(alone, (fits,), settings, 0, 1) is None
        assert few_tokens(alone, (over,), settings, 0, 1).tokens == there
