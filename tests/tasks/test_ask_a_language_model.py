"""`trifed run` by flags and `trifed predict` of a language model."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from trifed import export_client, load_writer, make_config, run
from trifed.cli import app


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


def test_what_is_not_there_for_language_models_says_so(trained, monkeypatch):
    monkeypatch.chdir(trained)
    done = call("evaluate", "help", "help.jsonl", "--client", "north")
    assert done.exit_code != 0
    assert "this is a language model" in str(done.exception)


@pytest.mark.parametrize("form", ["lora", "merged"])
def test_an_export_answers_as_its_client_does_with_and_without_this_package(trained, tmp_path, form):
    done = call("export", trained / "help", "--client", "north", "--form", form, "--to", tmp_path / "north")
    assert done.exit_code == 0, done.output
    asked = call("predict", tmp_path / "north", "--tokens", 6, "--text", "say 3", "--format", "jsonl")
    assert json.loads(asked.stdout)["answer"] == "ababab"
    assert run_card(tmp_path / "north", 'answer("say 3", 6)') == "ababab"


def run_card(folder, question):
    code = (folder / "README.md").read_text().split("```python\n")[1].split("```")[0]
    code = code[: code.index("print(")] + f"\nprint({question})\n"
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=env, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("form", ["tri-matrix", "lora", "merged"])
def test_cores_export_too_and_prompts_may_stand_in_a_chat(tiny_language, trained, tmp_path, form):
    values = {
        "task": "causal-lm", "rounds": 1, "method": "ce-lora",
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
    assert "expected one of lora, merged" in str(done.exception)
    assert not (tmp_path / "x").exists()
