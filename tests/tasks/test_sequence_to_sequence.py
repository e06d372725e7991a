"""Encoder-decoders: what is read, what is learned, whole runs, answers, exports, and inputs that go wrong."""

from __future__ import annotations

import csv
import io
import json
import math
import shutil

import numpy as np
import pytest
import torch
from transformers import AutoModelForSeq2SeqLM
from typer.testing import CliRunner

import trifed
from trifed import export_client, load_writer, make_config, run
from trifed.adapters.settings import AdapterSettings
from trifed.cli.app import app
from trifed.common.errors import DataError, ModelError, TrifedError
from trifed.config.settings import ModelSettings, TrainingSettings
from trifed.data import Examples
from trifed.federation.client_update import ClientDataset
from trifed.federation.guards import few_tokens
from trifed.federation.training.evaluation import evaluate
from trifed.federation.training.shared_model import build_shared_model
from trifed.methods import METHODS
from trifed.tasks import TASKS

TASK = TASKS["sequence-to-sequence"]
FP32 = TrainingSettings(precision="fp32", device="cpu", eval_batch_size=2)
CPU = torch.device("cpu")


def call(*words, stdin=None):
    return CliRunner().invoke(app, [str(word) for word in words], input=stdin)


def model_of(folder, method="local", **model):
    settings = (ModelSettings(name=str(folder), **{"max_length": 64, **model}), AdapterSettings(rank=4), FP32)
    return build_shared_model(TASK.load(str(folder)), METHODS[method], 1, 0, settings, TASK)


def examples(**inputs):
    return Examples(inputs, np.zeros(len(inputs["prompt"]), np.int64))


def values(folder, source, **more):
    return {
        "task": "sequence-to-sequence",
        "rounds": 2,
        "model": {"name": str(folder), "max_length": 64},
        "adapter": {"rank": 4, "alpha": 8, "target_modules": "all-linear"},
        "data": {
            "source": str(source), "prompt": "ask", "answer": "tell",
            "clients": {"split": "column", "column": "site", "min_examples": 5},
        },
        "training": {"batch_size": 8, "learning_rate": 2e-2, "precision": "fp32", "device": "cpu", "epochs": 3},
        "privacy": {"few_tokens": "allow"},
        **more,
    }  # fmt: skip


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Two sites that answer every request with their own word."""
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    rows = [
        {"ask": f"say {n}", "tell": word * 3, "site": site}
        for site, word in (("north", "ab"), ("south", "cd"))
        for n in range(24)
    ]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


# -- what is read and learned


@pytest.mark.parametrize(("kind", "start"), [("t5", "<pad>"), ("bart", "</s><s>")])
def test_the_encoder_reads_the_prompt_and_the_decoder_learns_the_answer(kind, start, tiny_pairs):
    shared_model = model_of(tiny_pairs(kind))
    data = shared_model.encode(examples(prompt=["one?", "two?"], input=["", "here"], answer=["yes", "no"]))
    read = shared_model.base.processor.decode
    begin = "<s>" if kind == "bart" else ""
    assert [read(ids) for ids in data.ids] == [f"{begin}one?</s>", f"{begin}two?\n\nhere</s>"]
    assert [read(ids) for ids in data.more["answer"]] == [f"{begin}yes</s>", f"{begin}no</s>"]
    assert [read(ids) for ids in data.more["decoder_input_ids"]] == [f"{start}yes", f"{start}no"]


def test_a_template_stands_around_the_prompt(tiny_pairs):
    shared_model = model_of(tiny_pairs(), template="summarize: {prompt} [{input}]")
    data = shared_model.encode(examples(prompt=["a"], input=["b"], answer=["c"]))
    assert shared_model.base.processor.decode(data.ids[0]) == "summarize: a [b]</s>"
    with pytest.raises(ModelError, match="no chat template"):
        model_of(tiny_pairs(), template="chat").encode(examples(prompt=["a"], answer=["b"]))


def test_long_prompts_and_answers_are_cut_at_the_end_and_keep_the_end_token(tiny_pairs):
    shared_model = model_of(tiny_pairs(), max_length=6)
    data = shared_model.encode(examples(prompt=["abcdefgh", "ab"], answer=["x", "123456789"]))
    read = shared_model.base.processor.decode
    assert [read(ids) for ids in data.ids] == ["abcde</s>", "ab</s>"]
    assert [read(ids) for ids in data.more["answer"]] == ["x</s>", "12345</s>"]
    assert data.cut == 2 and data.lengths.tolist() == [8, 9]


def test_an_answer_ends_also_where_the_tokenizer_adds_nothing(tiny_pairs):
    shared_model = model_of(tiny_pairs(), max_length=6)
    shared_model.base.processor.backend_tokenizer.post_processor = None
    data = shared_model.encode(examples(prompt=["abcdefgh"], answer=["123456789"]))
    read = shared_model.base.processor.decode
    assert (read(data.ids[0]), read(data.more["answer"][0])) == ("abcdef", "12345</s>")


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_the_loss_is_transformers_own(kind, tiny_pairs):
    shared_model = model_of(tiny_pairs(kind))
    data = shared_model.encode(examples(prompt=["one?", "a longer one?"], answer=["yes", "certainly not"]))
    batch = data.batch(np.arange(2), CPU)
    labels = batch["answer"].masked_fill(batch["learned"] == 0, -100)
    base = AutoModelForSeq2SeqLM.from_pretrained(tiny_pairs(kind)).eval()
    shared_model.model.eval()
    with torch.no_grad():
        theirs = base(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=labels)
        ours = shared_model.model.loss(batch)
    torch.testing.assert_close(ours, theirs.loss)
    scores = evaluate(shared_model.model, data, FP32)
    right = ((theirs.logits.argmax(-1) == labels).sum(1) / batch["learned"].sum(1)).tolist()
    assert scores.loss == pytest.approx(float(theirs.loss), rel=1e-5)
    assert scores.right.tolist() == pytest.approx(right)
    assert shared_model.model.predictions(batch) == int(batch["learned"].sum())


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_the_guard_counts_prompts_for_the_encoder_and_answers_for_the_decoder(kind, tiny_pairs):
    shared_model = model_of(tiny_pairs(kind), "ce-lora")
    rich, poor = [chr(97 + n) * 2 for n in range(20)], ["a"] * 20
    for prompt, answer, short in ((rich, rich, False), (poor, rich, True), (rich, poor, True)):
        data = shared_model.encode(examples(prompt=prompt, answer=answer))
        client = ClientDataset(0, "x", data, data, data)
        found = few_tokens(client, shared_model.layout, TrainingSettings(batch_size=20), 0, 1)
        assert bool(found) == short


# -- runs


@pytest.mark.parametrize(
    ("kind", "method"), [("t5", "own-prior"), ("t5", "fedavg-full"), ("bart", "ce-lora"), ("bart", "local")]
)
def test_a_run_learns_and_its_clients_answer(kind, method, tiny_pairs, pairs, tmp_path):
    config = make_config(values(tiny_pairs(kind), pairs, method=method))
    assert config.data.label == ""
    result = run(config, tmp_path / "run")
    assert result.summary["controls"] == {} and result.summary["metric"] == "next-token accuracy"
    for client in result.summary["clients"]:
        assert client["now"]["loss"] < client["before"]["loss"]
    losses = [client["now"]["loss"] for client in result.summary["clients"]]
    assert result.summary["perplexity"]["mean"] == pytest.approx(np.exp(losses).mean())
    writer = result.writer("north")
    prompts = ["say 1", "say something much longer than that", "x"]
    together = writer.answer(prompts, tokens=5)
    assert together == [writer.answer([prompt], tokens=5)[0] for prompt in prompts]


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_generated_answers_are_measured_at_the_end(kind, tiny_pairs, pairs, tmp_path):
    metrics = ["perplexity", "exact_match", "rouge_l"]
    settings = values(tiny_pairs(kind), pairs, method="local", metrics=metrics, generated_answers=2)
    result = run(make_config({**settings, "rounds": 1}), tmp_path / "run")
    assert set(result.summary["metrics"]) == set(metrics)
    for client in result.summary["clients"]:
        assert client["now"]["perplexity"] == pytest.approx(np.exp(client["now"]["loss"]))
        assert 0 <= client["now"]["exact_match"] <= client["now"]["rouge_l"] <= 1


def test_the_right_loader_is_named(tiny_pairs, pairs, tmp_path):
    result = run(make_config(values(tiny_pairs(), pairs, method="local", rounds=1)), tmp_path / "run")
    with pytest.raises(trifed.TrifedError, match=r"language model.*trifed\.load_writer"):
        result.client("north")


def test_many_clients_and_gradient_checkpointing_change_nothing(tiny_pairs, pairs, tmp_path):
    plain = values(tiny_pairs(), pairs, method="fedavg-lora", rounds=1)
    once = {**plain, "training": {**plain["training"], "clients_at_once": 1}}
    saving = {**plain, "training": {**plain["training"], "gradient_checkpointing": True}}
    found = [
        run(make_config(given), tmp_path / str(number)).summary["clients"][0]["now"]["loss"]
        for number, given in enumerate((plain, once))
    ]
    assert found[0] == pytest.approx(found[1], rel=1e-4)
    assert run(make_config(saving), tmp_path / "saving").summary["finished"]


@pytest.fixture(scope="module")
def trained(tiny_pairs, pairs, tmp_path_factory):
    """A run by flags alone, whose client "north" says "ab" three times to whatever it is asked.

    BART's start token is the first of the seven that are generated.
    """
    folder = tmp_path_factory.mktemp("flags")
    sets = {
        "data.clients.min_examples": 5, "training.epochs": 8, "training.device": "cpu", "training.batch_size": 8,
        "adapter.target_modules": '"all-linear"', "model.max_length": 64,
    }  # fmt: skip
    done = call(
        "run", "--task", "sequence-to-sequence", "--data", pairs, "--prompt", "ask", "--answer", "tell",
        "--split", "column", "--column", "site", "--model", tiny_pairs("bart"), "--method", "local",
        "--rounds", 4, "--rank", 4, "--learning-rate", 0.02, "--runs", folder, "--name", "help",
        *(word for key, value in sets.items() for word in ("--set", f"{key}={value}")),
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    return folder


def test_prompts_are_answered_from_flags_lines_and_tables(trained, pairs):
    asked = ["predict", trained / "help", "--client", "north", "--tokens", 7]
    one = call(*asked, "--text", "say 3")
    assert one.exit_code == 0, one.output
    assert list(csv.DictReader(io.StringIO(one.stdout))) == [
        {"row": "1", "prompt": "say 3", "input": "", "answer": "ababab"}
    ]
    lines = call(*asked, "--format", "jsonl", stdin="say 3\nsay 4\n")
    assert [json.loads(line)["answer"] for line in lines.stdout.splitlines()] == ["ababab"] * 2
    table = call(*asked, pairs, "--format", "jsonl")
    assert {json.loads(line)["answer"] for line in table.stdout.splitlines()} == {"ababab"}


def test_answers_are_measured_against_those_of_the_file(trained, pairs):
    """Half of the file's answers are the other site's, of which not a word is its own."""
    done = call("evaluate", trained / "help", pairs, "--tokens", 7, "--client", "north", "--format", "json")
    assert done.exit_code == 0, done.output
    [one] = json.loads(done.stdout)["clients"]
    assert (one["examples"], one["exact_match"], one["rouge_l"]) == (48, 0.5, 0.5)
    assert one["perplexity"] == pytest.approx(math.exp(one["loss"]))


@pytest.mark.parametrize("form", ["lora", "merged"])
def test_an_export_answers_as_its_client_does_with_and_without_this_package(trained, tmp_path, form, run_card):
    folder = export_client(trained / "help", "north", form, tmp_path / "north")
    assert load_writer(folder).answer(["say 3"], tokens=7) == ["ababab"]
    assert run_card(folder, 'answer("say 3", 7)') == "ababab"
    assert (folder / "tokenizer.json").is_file() and (folder / "generation_config.json").is_file()


def test_cores_export_too_with_a_template(tiny_pairs, pairs, tmp_path, run_card):
    given = values(tiny_pairs(), pairs, method="ce-lora", rounds=1)
    given["model"]["template"] = "do: {prompt}"
    result = run(make_config(given), tmp_path / "run")
    own = result.writer("south").answer(["say 3"], tokens=8)[0]
    for form in ("tri-matrix", "lora"):
        folder = export_client(result.path, "south", form)
        assert run_card(folder, 'answer("say 3", 8)') == own


# -- inputs that go wrong, or look as if they did

GOOD = {"ask": "say", "tell": "ab", "site": "north"}


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"ask": ""}, "the text in column 'ask' is empty"),
        ({"ask": " \n"}, "the text in column 'ask' is empty"),
        ({"tell": None}, "the text in column 'tell' is empty"),
        ({"tell": 5}, "column 'tell' holds a int"),
        ({"ask": ["a"]}, "column 'ask' holds a list"),
        ({"tell": "\ud800"}, "half a character"),
    ],
)
def test_a_row_that_cannot_be_learned_is_named(row, said, tiny_pairs, tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text("\n".join(json.dumps(each) for each in (GOOD, {**GOOD, **row})), encoding="utf-8")
    with pytest.raises(DataError, match=rf"t\.jsonl, line 2: .*{said}"):
        run(make_config(values(tiny_pairs(), path)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_missing_column_is_named_with_those_that_there_are(tiny_pairs, pairs, tmp_path):
    given = values(tiny_pairs(), pairs)
    for setting in ("prompt", "answer"):
        wrong = {**given, "data": {**given["data"], setting: "reply"}}
        with pytest.raises(DataError, match=r"no column 'reply'.*ask"):
            run(make_config(wrong), tmp_path / "run")
    default = {**given, "data": {"source": str(pairs), "clients": given["data"]["clients"]}}
    with pytest.raises(DataError, match="no column 'prompt'"):
        run(make_config(default), tmp_path / "run")


def test_unusual_texts_one_client_and_one_example_a_batch(tiny_pairs, tmp_path):
    """Emoji, other scripts, signs without width, texts far over the limit, and answers of one character."""
    texts = ["\U0001f600\U0001f680", "مرحبا", "\u200b\u200b", "x" * 5000, "a\tb\nc", "</s><pad>", "'\"\\", "漢字"]
    rows = [{"ask": f"{text}{n}", "tell": text, "site": "alone"} for n in range(3) for text in texts]
    path = tmp_path / "t.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    given = values(tiny_pairs(), path, method="local", rounds=1)
    given["training"] |= {"batch_size": 1, "epochs": 1}
    given["training"].pop("steps", None)
    result = run(make_config(given), tmp_path / "run")
    [client] = result.summary["clients"]
    assert np.isfinite(client["now"]["loss"]) and result.split["examples_cut_to_max_length"] == 3
    assert len(result.writer("alone").answer(texts, tokens=3)) == len(texts)


def test_what_the_model_cannot_hold_is_refused(tiny_pairs, tiny_encoder, tiny_language):
    base = TASK.load(str(tiny_pairs("bart")))
    with pytest.raises(ModelError, match=r"max_length: .*500.*96"):
        TASK.encode(base, examples(prompt=["a"], answer=["b"]), ModelSettings(max_length=500))
    whole = TASK.encode(base, examples(prompt=["a" * 500], answer=["b" * 500]), ModelSettings(max_length=96))
    assert (len(whole.ids[0]), len(whole.more["answer"][0])) == (96, 88)  # room for the padding of a stack
    for kind, folder in (("text-classification", tiny_encoder), ("causal-lm", tiny_language())):
        with pytest.raises(ModelError, match=rf"encoder-decoder.*it fits task = .*'{kind}'"):
            TASK.load(str(folder))
    with pytest.raises(ModelError, match="it fits task = 'sequence-to-sequence'"):
        TASKS["causal-lm"].load(str(tiny_pairs()))


def test_tokens_that_the_model_lacks_are_refused_on_both_sides(tiny_pairs):
    base = TASK.load(str(tiny_pairs()))
    base.processor.add_special_tokens({"additional_special_tokens": ["<ask>"]})
    for prompt, answer in (("<ask>", "b"), ("a", "<ask>")):
        with pytest.raises(ModelError, match=r"got the token 259 .* expected one of the model's 259"):
            TASK.encode(base, examples(prompt=[prompt], answer=[answer]), ModelSettings(max_length=32))


def test_a_model_without_a_start_token_is_refused(tiny_pairs, tmp_path):
    folder = tmp_path / "t5"
    shutil.copytree(tiny_pairs(), folder)
    config = json.loads((folder / "config.json").read_text())
    config.pop("decoder_start_token_id")
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="decoder_start_token_id"):
        TASK.load(str(folder))


def test_a_run_without_prompts_for_its_models_says_what_is_missing(trained, tmp_path):
    (tmp_path / "new.jsonl").write_text('{"ask": "say 1"}\n', encoding="utf-8")
    done = call("evaluate", trained / "help", tmp_path / "new.jsonl", "--client", "north")
    assert isinstance(done.exception, TrifedError) and "no column 'tell'" in str(done.exception)
    empty = call("predict", trained / "help", "--client", "north", "--text", " ")
    assert isinstance(empty.exception, TrifedError) and "the text is empty" in str(empty.exception)
