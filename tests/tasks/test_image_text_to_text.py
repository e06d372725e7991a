"""Models that write about images: what they read, what is learned, and whole runs of a tiny LLaVA."""

from __future__ import annotations

import csv
import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    Gemma3ImageProcessorPil,
    Gemma3Processor,
)
from typer.testing import CliRunner

from trifed import export_client, load_writer, make_config, run
from trifed.adapters.settings import AdapterSettings
from trifed.cli.app import app
from trifed.common.errors import ConfigError, DataError, ModelError, RunError
from trifed.config.settings import ModelSettings, TrainingSettings
from trifed.data import Examples
from trifed.federation.training.evaluation import evaluate
from trifed.federation.training.shared_model import build_shared_model
from trifed.methods import METHODS
from trifed.tasks import TASKS

TASK = TASKS["image-text-to-text"]
FP32 = TrainingSettings(precision="fp32", device="cpu", eval_batch_size=2)
CPU = torch.device("cpu")
ANSWERS = {"amber": "aa", "green": "gg", "violet": "vv"}


def bench_of(folder, adapter=None, **model):
    settings = (
        ModelSettings(name=str(folder), **{"max_length": 96, **model}),
        AdapterSettings(rank=4, alpha=8, **(adapter or {})),
        FP32,
    )
    return build_shared_model(TASK.load(str(folder)), METHODS["local"], 1, 0, settings, TASK)


@pytest.fixture
def examples(paint):
    return lambda prompts, answers: made_of(paint, prompts, answers)


def made_of(paint, prompts, answers):
    inputs = {
        "image": [paint("green", seed) for seed in range(len(prompts))],
        "prompt": prompts,
        "input": [""] * len(prompts),
        "answer": answers,
    }
    return Examples(inputs, np.zeros(len(prompts), np.int64))


def read(shared_model, data):
    """Each example as (what is read only, what is learned)."""
    decode = shared_model.base.processor.tokenizer.decode
    tokens = data
    return [
        tuple(
            decode([t for t, mark in zip(ids, marks, strict=True) if mark == part], skip_special_tokens=False)
            for part in (0, 1)
        )
        for ids, marks in zip(tokens.ids, tokens.more["learned"], strict=True)
    ]


def test_the_image_stands_before_the_prompt_and_the_answer_is_learned(tiny_scenes, examples):
    shared_model = bench_of(tiny_scenes(), template="Q {prompt}\nA ")
    data = shared_model.encode(examples(["one?", "and two?"], ["yes", "no"]))
    image = "<image>" * 4  # 16 pixels a side in patches of 8
    assert read(shared_model, data) == [
        (f"<s>{image}\nQ one?\nA ", "yes</s>"),
        (f"<s>{image}\nQ and two?\nA ", "no</s>"),
    ]
    batch = data.batch(np.array([0, 1]), CPU)
    assert batch["pixel_values"].shape == (2, 3, 16, 16)
    assert batch["input_ids"].shape == batch["attention_mask"].shape == (2, 22)
    assert data.lengths.tolist() == [1 + 4 + 10 + 4, 1 + 4 + 14 + 3]


def test_a_template_says_where_the_image_stands(tiny_scenes, examples):
    shared_model = bench_of(tiny_scenes(), template="{prompt} <image>:")
    assert read(shared_model, shared_model.encode(examples(["a"], ["b"]))) == [
        ("<s>a " + "<image>" * 4 + ":", "b</s>")
    ]


def test_a_models_own_chat_template_is_used_where_none_is_named(tiny_scenes, examples):
    shared_model = bench_of(tiny_scenes(chat=True))
    data = shared_model.encode(examples(["a"], ["b"]))
    assert read(shared_model, data) == [("<s><user>" + "<image>" * 4 + "a</s><assistant>", "b</s>")]
    with pytest.raises(ModelError, match="no chat template"):
        bench_of(tiny_scenes(), template="chat").encode(examples(["a"], ["b"]))


def test_the_loss_is_that_of_transformers(tiny_scenes, examples):
    shared_model = bench_of(tiny_scenes(), template="{prompt}")
    data = shared_model.encode(examples(["one?", "two and three?"], ["yes", "not at all"]))
    batch = data.batch(np.arange(2), CPU)
    labels = batch["input_ids"].where(batch["learned"].bool(), -100)
    shared_model.model.eval()
    with torch.no_grad():
        theirs = shared_model.encoder(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"],
            pixel_values=batch["pixel_values"], labels=labels,
        ).loss  # fmt: skip
    assert evaluate(shared_model.model, data, FP32).loss == pytest.approx(float(theirs), rel=1e-5)


def test_another_image_is_another_loss(tiny_scenes, examples, paint):
    shared_model = bench_of(tiny_scenes(), template="{prompt}")
    one = examples(["what?"], ["yes"])
    other = Examples({**one.inputs, "image": [paint("violet", 1)]}, one.labels)
    losses = [evaluate(shared_model.model, shared_model.encode(each), FP32).loss for each in (one, other)]
    assert abs(losses[0] - losses[1]) > 1e-4


def test_what_is_too_long(tiny_scenes, examples):
    shared_model = bench_of(tiny_scenes(), template="{prompt}", max_length=12)
    data = shared_model.encode(examples(["a"], ["yes and no"]))
    assert data.cut == 1
    assert read(shared_model, data) == [("<s>" + "<image>" * 4 + "\na", "yes a")]
    with pytest.raises(ModelError, match=r"max_length: .*12.*16 tokens"):
        shared_model.encode(examples(["long prompt"[:10]], ["y"]))
    with pytest.raises(ModelError, match="at most 128"):
        bench_of(tiny_scenes(), max_length=256).encode(examples(["a"], ["b"]))


@pytest.mark.parametrize(("towers", "wanted"), [("text", {"language_model"}), ("vision", {"vision_tower"})])
def test_one_tower_may_be_left_as_it_is(tiny_scenes, towers, wanted):
    shared_model = bench_of(tiny_scenes(), adapter={"towers": towers})
    assert {name.split(".")[1] for name in shared_model.parameters} == wanted


def test_a_model_that_only_reads_texts_is_refused(tiny_language):
    with pytest.raises(ModelError, match=r"image.*'text-classification'.*'causal-lm'"):
        TASK.load(str(tiny_language()))


@pytest.fixture(scope="module")
def gemma(tiny_scenes, tmp_path_factory):
    """A folder with a tiny random Gemma 3, whose processor also says which tokens are an image's."""
    folder = tmp_path_factory.mktemp("gemma3")
    marks = {"image_token": "<soft>", "boi_token": "<image>", "eoi_token": "<end>"}
    tokenizer = AutoTokenizer.from_pretrained(tiny_scenes(), extra_special_tokens=marks)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<soft>", "<end>"]})
    template = AutoProcessor.from_pretrained(tiny_scenes(chat=True)).chat_template
    Gemma3Processor(
        image_processor=Gemma3ImageProcessorPil(size={"height": 16, "width": 16}), tokenizer=tokenizer,
        chat_template="<s>" + template, image_seq_length=4,
    ).save_pretrained(folder)  # fmt: skip
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = AutoConfig.for_model(
        "gemma3",
        text_config={
            **shape, "head_dim": 8, "num_key_value_heads": 2, "vocab_size": len(tokenizer),
            "max_position_embeddings": 128, "bos_token_id": 0, "eos_token_id": 1, "initializer_range": 0.2,
        },
        vision_config={**shape, "image_size": 16, "patch_size": 4}, mm_tokens_per_image=4,
        image_token_index=tokenizer.image_token_id, boi_token_index=2, eoi_token_index=tokenizer.eoi_token_id,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        AutoModelForImageTextToText.from_config(config).save_pretrained(folder)
    return folder


def test_what_a_processor_says_of_each_token_is_padded_with_the_tokens(gemma, examples):
    """Gemma 3's image tokens see each other; its template writes the start token itself, and one is enough."""
    shared_model = bench_of(gemma)
    data = shared_model.encode(examples(["a", "a longer one"], ["yes", "no"]))
    ids, kinds = data.ids[1], data.more["token_type_ids"][1]
    soft = shared_model.base.processor.tokenizer.image_token_id
    assert ids.count(soft) == 4
    assert ids.count(0) == 1
    assert [token for token, kind in zip(ids, kinds, strict=True) if kind] == [soft] * 4
    batch = data.batch(np.arange(2), CPU)
    assert batch["token_type_ids"].shape == batch["input_ids"].shape
    assert set(batch) == {"input_ids", "attention_mask", "labels", "learned", "token_type_ids", "pixel_values"}
    assert np.isfinite(evaluate(shared_model.model, data, FP32).loss)
    inputs = examples(["a", "a longer one"], ["", ""]).inputs
    shared_model.model.eval()
    with torch.no_grad():
        together = TASK.generate(shared_model.model, shared_model.base, inputs, shared_model.settings, 3)
        alone = [
            TASK.generate(
                shared_model.model,
                shared_model.base,
                {k: [v[row]] for k, v in inputs.items()},
                shared_model.settings,
                3,
            )[0]
            for row in range(2)
        ]
    assert together == alone


@pytest.fixture(scope="module")
def scenes_table(paint, tmp_path_factory):
    """`photo,ask,tell,site`: what is told is the color."""
    rows = [
        {"photo": {"bytes": paint(hue, seed), "path": None}, "ask": "color?", "tell": said, "site": site}
        for first, site in ((0, "north"), (100, "south"))
        for seed, (hue, said) in enumerate(list(ANSWERS.items()) * 8, first)
    ]
    path = tmp_path_factory.mktemp("scenes") / "scenes.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def values_of(folder, table, **more):
    return {
        "baselines": [], "task": "image-text-to-text", "rounds": 4, "method": "fedavg-lora",
        "model": {"name": str(folder), "max_length": 32, "template": "{prompt}"},
        "adapter": {"rank": 8, "alpha": 16, "target_modules": "all-linear"},
        "data": {
            "source": str(table), "image": "photo", "prompt": "ask", "answer": "tell",
            "clients": {"split": "column", "column": "site"},
        },
        "training": {"batch_size": 8, "learning_rate": 2e-2, "precision": "fp32", "device": "cpu", "epochs": 8},
        **more,
    }  # fmt: skip


@pytest.fixture(scope="module")
def trained(tiny_scenes, scenes_table, tmp_path_factory):
    return run(make_config(values_of(tiny_scenes(), scenes_table)), tmp_path_factory.mktemp("runs") / "scenes")


def call(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def test_clients_learn_to_say_what_is_seen(trained):
    for client in trained.summary["clients"]:
        assert client["now"]["loss"] < 0.3 * client["before"]["loss"]
    assert trained.summary["metric"] == "next-token accuracy"
    assert trained.summary["perplexity"]["mean"] > 1


def test_answers_are_about_the_image_in_batches_and_alone(trained, tmp_path, paint):
    writer = trained.writer("north")
    images = [paint(hue, 50) for hue in ANSWERS]
    together = writer.answer(["color?", "a longer one: color?", "color?"], images=images, tokens=2)
    alone = [
        writer.answer([prompt], images=[image], tokens=2)[0]
        for prompt, image in zip(["color?", "a longer one: color?", "color?"], images, strict=True)
    ]
    assert together == alone
    assert {together[0], together[2]} <= set(ANSWERS.values())  # the second prompt is one it never saw
    with pytest.raises(RunError, match="an image with every"):
        writer.answer(["color?"])


def test_a_writer_of_texts_takes_no_images(tiny_language, tmp_path):
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"ask": f"{n}", "tell": "b"}) for n in range(24)))
    values = {
        "task": "causal-lm", "rounds": 1, "method": "local", "model": {"name": str(tiny_language())},
        "adapter": {"rank": 4}, "training": {"device": "cpu"},
        "data": {
            "source": str(tmp_path / "a.jsonl"), "prompt": "ask", "answer": "tell",
            "clients": {"split": "iid", "count": 2},
        },
    }  # fmt: skip
    with pytest.raises(RunError, match="reads no images"):
        run(make_config(values), tmp_path / "run").writer("client-00").answer(["a"], images=["b.png"])


def test_predict_and_evaluate_read_images_and_prompts(trained, scenes_table, tmp_path, paint):
    image = tmp_path / "one.png"
    image.write_bytes(paint("green", 7))
    asked = ["predict", trained.path, "--client", "north", "--tokens", 2, "--format", "csv"]
    one = call(*asked, "--image", image, "--text", "color?", "--text", "which?")
    assert one.exit_code == 0, one.output
    rows = list(csv.DictReader(io.StringIO(one.stdout)))
    assert [row["prompt"] for row in rows] == ["color?", "which?"]
    table = call(*asked, scenes_table)
    assert table.exit_code == 0, table.output
    assert len(list(csv.DictReader(io.StringIO(table.stdout)))) == 48
    for words in (["--text", "color?"], ["--image", image], []):
        assert "'photo' and 'ask'" in str(call(*asked, *words).exception)
    pair = call(*asked, "--image", image, "--image", image, "--text", "color?")
    assert isinstance(pair.exception, DataError)
    done = call("evaluate", trained.path, scenes_table, "--client", "all", "--format", "json", "--tokens", 2)
    assert done.exit_code == 0, done.output
    for client in json.loads(done.stdout)["clients"]:
        assert client["examples"] == 48
        assert client["accuracy"] > 0.5


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("form", ["lora", "merged"])
def test_an_export_answers_with_and_without_this_package(
    tiny_scenes, scenes_table, trained, tmp_path, form, chat, paint, run_card
):
    done = trained
    if chat:
        values = values_of(tiny_scenes(chat=True), scenes_table, rounds=1)
        done = run(make_config({**values, "model": {**values["model"], "template": None}}), tmp_path / "run")
    folder = export_client(done.path, "south", form, tmp_path / "south")
    image = tmp_path / "one.png"
    image.write_bytes(paint("amber", 9))
    own = done.writer("south").answer(["color?"], images=[image], tokens=4)
    assert load_writer(folder).answer(["color?"], images=[image], tokens=4) == own
    assert run_card(folder, f'answer(Image.open({str(image)!r}).convert("RGB"), "color?", 4)') == own[0]


def test_prompt_and_answer_are_columns_of_these_names_unless_named(tiny_scenes, scenes_table):
    values = values_of(tiny_scenes(), scenes_table)
    del values["data"]["prompt"], values["data"]["answer"]
    config = make_config(values)
    assert (config.data.prompt, config.data.answer, config.data.label) == ("prompt", "answer", "")
    with pytest.raises(ConfigError, match=r"task"):
        make_config({**values, "task": "image-to-text"})


def test_an_image_counts_by_its_places_and_a_token_once(tiny_scenes, examples):
    """4 places of an image, and the characters, equal ones once: [<s>, a, b, </s>] wherever they stand."""
    data = bench_of(tiny_scenes(), template="{prompt}<image>").encode(examples(["a", "ab", "a"], ["b", "a", "b"]))
    first, longer, other = (data.inputs(row)[""] for row in range(3))
    assert len(first) == len(longer) == len(other) == 4 + 4
    assert len(first & other) == 4 and len(first | longer | other) == 4 + 3 * 4
    data.images[2] = data.images[0]
    assert data.inputs(2)[""] == first
