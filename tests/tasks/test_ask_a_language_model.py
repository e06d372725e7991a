"""`trifed run` by flags and `trifed predict` of a language model."""

from __future__ import annotations

import csv
import io
import json
import math
from types import SimpleNamespace

import pytest
import torch
from typer.testing import CliRunner

from trifed import export_client, load_writer, make_config, run
from trifed.cli.app import app
from trifed.common.errors import AdapterError, TrifedError
from trifed.config.settings import ModelSettings
from trifed.export.evaluate import rouge_l
from trifed.tasks import TASKS
from trifed.tasks.causal_lm import generate_answers


def call(*words, stdin=None):
    return CliRunner().invoke(app, [str(word) for word in words], input=stdin)


@pytest.fixture(scope="module")
def trained(tiny_language, tmp_path_factory):
    """A run by flags alone, whose client "north" says "ab" three times to whatever it is asked."""
    folder = tmp_path_factory.mktemp("flags")
    rows = [
        {"ask": f"say {n}", "about": "" if n % 2 else "this", "tell": word * 3, "site": site}
        for site, word in (("north", "ab"), ("south", "cd"))
        for n in range(24)
    ]
    (folder / "help.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    sets = {
        "data.input": "about", "data.clients.min_examples": 5, "training.epochs": 6, "training.device": "cpu",
        "training.batch_size": 8, "adapter.target_modules": '"all-linear"', "model.max_length": 120,
    }  # fmt: skip
    done = call(
        "run", "--task", "causal-lm", "--data", folder / "help.jsonl", "--prompt", "ask", "--answer", "tell",
        "--split", "column", "--column", "site", "--model", tiny_language(), "--method", "local", "--rounds", 3,
        "--rank", 4, "--learning-rate", 0.02, "--runs", folder, "--name", "help",
        *(word for key, value in sets.items() for word in ("--set", f"{key}={value}")),
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    return folder


def test_the_result_is_named_for_what_it_is(trained):
    summary = json.loads((trained / "help" / "summary.json").read_text())
    assert (summary["task"], summary["metric"]) == ("causal-lm", "next-token accuracy")


def test_prompts_are_answered_from_flags_lines_and_tables(trained):
    asked = ["predict", trained / "help", "--client", "north", "--tokens", 6]
    one = call(*asked, "--text", "say 3")
    assert one.exit_code == 0, one.output
    assert list(csv.DictReader(io.StringIO(one.stdout))) == [
        {"row": "1", "prompt": "say 3", "input": "", "answer": "ababab"}
    ]
    lines = call(*asked, "--format", "jsonl", stdin="say 3\nsay 4\n")
    assert [json.loads(line) for line in lines.stdout.splitlines()] == [
        {"row": 1, "prompt": "say 3", "answer": "ababab"},
        {"row": 2, "prompt": "say 4", "answer": "ababab"},
    ]
    table = call(*asked, trained / "help.jsonl", "--format", "jsonl")
    assert table.exit_code == 0, table.output
    records = [json.loads(line) for line in table.stdout.splitlines()]
    assert [record.get("input") for record in records[:2]] == ["this", None]
    assert {record["answer"] for record in records} == {"ababab"}


def test_answers_in_a_terminals_table(trained):
    shown = call("predict", trained / "help", "--client", "south", "--text", "say 1", "--format", "table")
    assert "say 1" in shown.stdout and "cdcdcd" in shown.stdout


def test_answers_are_measured_against_those_of_the_file(trained):
    """Half of the file's answers are the other site's, of which not a word is its own."""
    asked = ["evaluate", trained / "help", trained / "help.jsonl", "--tokens", 6]
    done = call(*asked, "--client", "all", "--format", "json")
    assert done.exit_code == 0, done.output
    north, south = json.loads(done.stdout)["clients"]
    assert (north["client"], south["client"]) == ("north", "south")
    for one in (north, south):
        assert (one["examples"], one["exact_match"], one["rouge_l"]) == (48, 0.5, 0.5)
        assert one["perplexity"] == pytest.approx(math.exp(one["loss"]))
        assert 0.4 < one["accuracy"] < 0.9
    table = call(*asked, "--client", "north").stdout
    assert "perplexity" in table and "50.0" in table
    rows = list(csv.DictReader(io.StringIO(call(*asked, "--client", "north", "--format", "csv").stdout)))
    assert float(rows[0]["exact_match"]) == 0.5


def test_a_file_without_answers_is_refused(trained, tmp_path):
    (tmp_path / "new.jsonl").write_text('{"ask": "say 1", "about": ""}\n', encoding="utf-8")
    done = call("evaluate", trained / "help", tmp_path / "new.jsonl", "--client", "north")
    assert "no column 'tell'" in str(done.exception)


@pytest.mark.parametrize(
    ("one", "other", "wanted"),
    [
        ("the cat sat", "The cat sat.", 1.0),
        ("police killed the gunman", "police kill the gunman", 0.75),  # Lin 2004, 3.1: three of four words
        ("the gunman kill police", "police kill the gunman", 0.5),
        ("a b c d", "a d", 2 * 2 / 6),
        ("a", "b", 0.0),
        ("", "a", 0.0),
        ("", "!", 1.0),  # neither has words
    ],
)
def test_rouge_l(one, other, wanted):
    assert rouge_l(one, other) == rouge_l(other, one) == pytest.approx(wanted)


@pytest.mark.parametrize("form", ["lora", "merged"])
def test_an_export_answers_as_its_client_does_with_and_without_this_package(trained, tmp_path, form, run_card):
    done = call("export", trained / "help", "--client", "north", "--form", form, "--to", tmp_path / "north")
    assert done.exit_code == 0, done.output
    asked = call("predict", tmp_path / "north", "--tokens", 6, "--text", "say 3", "--format", "jsonl")
    assert json.loads(asked.stdout)["answer"] == "ababab"
    assert run_card(tmp_path / "north", 'answer("say 3", 6)') == "ababab"


@pytest.mark.parametrize("form", ["tri-matrix", "lora", "merged"])
def test_cores_export_too_and_prompts_may_stand_in_a_chat(tiny_language, trained, tmp_path, form, run_card):
    values = {
        "baselines": [], "task": "causal-lm", "rounds": 1, "method": "ce-lora",
        "model": {"name": str(tiny_language(chat=True)), "max_length": 64, "template": "chat"},
        "adapter": {"rank": 4, "alpha": 8, "target_modules": "all-linear"},
        "data": {
            "source": str(trained / "help.jsonl"), "prompt": "ask", "answer": "tell",
            "clients": {"split": "column", "column": "site", "min_examples": 5},
        },
        "training": {"batch_size": 8, "learning_rate": 2e-2, "precision": "fp32", "device": "cpu", "epochs": 4},
    }  # fmt: skip
    result = run(make_config(values), tmp_path / "run")
    own = result.writer("south").answer(["say 3"], tokens=8)[0]
    folder = export_client(result.path, "south", form, tmp_path / "export")
    assert load_writer(folder).answer(["say 3"], tokens=8) == [own]
    assert run_card(folder, 'answer("say 3", 8)') == own


def test_a_language_model_has_no_head_to_leave_out(trained, tmp_path):
    done = call("export", trained / "help", "--client", "north", "--form", "lora-no-head", "--to", tmp_path / "x")
    assert isinstance(done.exception, AdapterError) and str(done.exception).endswith(" lora, merged")
    assert not (tmp_path / "x").exists()


def test_a_model_of_texts_is_measured_on_texts_and_one_of_conversations_on_conversations(tiny_language, tmp_path):
    talk = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
    rows = [
        {
            "text": f"line {n} of many", "talk": [*talk[:1], {**talk[1], "content": f"ho {n}"}], "ask": "hi",
            "tell": f"ho {n}",
        }
        for n in range(40)
    ]  # fmt: skip
    path = tmp_path / "t.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    values = {
        "baselines": [], "task": "causal-lm", "rounds": 1, "method": "local", "adapter": {"rank": 4},
        "model": {"name": str(tiny_language(chat=True)), "max_length": 64},
        "data": {"source": str(path), "clients": {"split": "iid", "count": 2}},
        "training": {"precision": "fp32", "device": "cpu"},
    }  # fmt: skip
    run(make_config(values), tmp_path / "texts")
    done = call("evaluate", tmp_path / "texts", path, "--client", "client-00", "--format", "json")
    assert done.exit_code == 0, done.output
    one = json.loads(done.stdout)["clients"][0]
    assert one["perplexity"] > 1 and one["exact_match"] is None and one["rouge_l"] is None
    run(make_config({**values, "data": {**values["data"], "messages": "talk"}}), tmp_path / "talks")
    asked = ["--client", "client-00", "--tokens", 4]
    columns = ["--text-column", "ask", "--label-column", "tell"]
    both = [
        call("evaluate", tmp_path / "talks", path, *asked, "--format", "json", *more) for more in ([], columns)
    ]
    assert [done.exit_code for done in both] == [0, 0], [done.exception for done in both]
    talked, as_columns = (json.loads(done.stdout)["clients"] for done in both)
    assert talked == as_columns and talked[0]["exact_match"] is not None
    both = [
        call("predict", tmp_path / "talks", path, *asked, "--format", "jsonl", *more) for more in ([], columns[:2])
    ]
    assert both[0].stdout == both[1].stdout and both[0].stdout.count('"prompt": "hi"') == 40
    done = call("evaluate", tmp_path / "talks", path, *asked, "--text-column", "text")
    assert isinstance(done.exception, TrifedError) and "conversations" in str(done.exception)


def test_the_answer_is_to_the_turns_before_it(tiny_language):
    base = TASKS["causal-lm"].load(str(tiny_language(chat=True)))
    turns = ["be short", "one", "two", "three", "four", "five"]
    roles = ["system", "user", "assistant", "user", "assistant", "user"]
    talk = [{"role": role, "content": turn} for role, turn in zip(roles, turns, strict=True)]
    seen = []

    class Model:
        def parameters(self):
            return iter([torch.zeros(1)])

        def generate(self, input_ids, **more):
            seen.append(base.processor.decode(input_ids[0]))
            return input_ids

    asked = {"prompt": ["x"], "messages": [json.dumps(talk)]}
    generate_answers(SimpleNamespace(encoder=Model()), base, asked, ModelSettings(max_length=96), 1)
    assert seen == ["<system>be short</s><user>one</s><assistant>two</s><user>three</s><assistant>"]
