"""Settings that cannot be: every mistake at once, by its name, with what was expected; exit code 2."""

from __future__ import annotations

import pytest

from test_cli_help import call, tree


@pytest.fixture
def refused(capsys, monkeypatch, tmp_path):
    """`refused(ARGS)`: what `trifed run ARGS` says, which must be a refusal that leaves nothing behind."""
    monkeypatch.chdir(tmp_path)

    def check(*args):
        before = tree(tmp_path)
        said = call(capsys, monkeypatch, "run", *args)
        assert said.code == 2
        assert "Traceback" not in said.out + said.err
        assert tree(tmp_path) == before
        assert said.out == ""
        return said.err

    return check


def test_several_mistakes_are_told_at_once(refused, tmp_path):
    (tmp_path / "my.toml").write_text(
        'nam = "x"\nseed = -1\nrounds = 0\n[model]\nnmae = "x"\n[adapter]\nrank = "a"\n[data]\nsorce = "t.csv"\n'
        '[data.clients]\nsplit = "dirichle"\n[method]\nsmoothin = 3\n[training]\nbatch_size = 1.5\n',
        encoding="utf-8",
    )
    message = refused("my.toml")
    assert message.startswith("error: my.toml: 10 mistakes\n")
    for line in (
        "  - seed: got -1, expected at least 0",
        "  - rounds: got 0, expected at least 1",
        "  - nam: unknown setting (did you mean 'name'?)",
        "  - model.nmae: unknown setting (did you mean 'name'?)",
        "  - data.sorce: unknown setting (did you mean 'source'?)",
        "  - data.source: missing",
        "  - adapter.rank: got 'a', expected a whole number",
        "  - method.smoothin: unknown setting (did you mean 'smoothing'?)",
        "  - training.batch_size: got 1.5, expected a whole number",
        "'files' (did you mean 'dirichlet'?)",
    ):
        assert line in message


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--seed", "-1"], ["seed: got -1", "at least 0"]),
        (["--seed", 2**63], ["seed", "less than"]),
        (["--rounds", "0"], ["rounds: got 0", "at least 1"]),
        (["--rounds", "x"], ["--rounds", "integer"]),
        (["--alpha", "0"], ["data.clients.alpha", "more than 0"]),
        (["--alpha", "inf"], ["data.clients.alpha", "finite"]),
        (["--clients", "0"], ["data.clients.count"]),
        (["--rank", "0"], ["adapter.rank"]),
        (["--learning-rate", "inf"], ["training.learning_rate", "finite"]),
        (["--learning-rate", "nan"], ["training.learning_rate", "finite"]),
        (["--text", "label"], ["text", "label", "different columns"]),
        (["--split", "dirichlett"], ["data.clients.split", "did you mean 'dirichlet'"]),
        (["--split", "column"], ["data.clients", 'column = "..."']),
        (["--column", "site"], ['split = "column"']),
        (["--split", "sizes"], ["sizes = [3, 2, 1]"]),
        (["--name", "a/b"], ["name: got 'a/b'", "letters"]),
        (["--name", ".."], ["name"]),
        (["--name", ""], ["name"]),
        (["--name", "x" * 300], ["name", "at most 100"]),
        (["--method", "fedprox"], ["method.name", "ce-lora, ce-lora-authors, co-lora-like, fed-sb"]),
        (["--baseline", "locl"], ["did you mean 'local'"]),
        (["--baseline", "own-prior"], ["baselines", "own method"]),
        (["--baseline", "local", "--baseline", "local"], ["baselines", "twice"]),
        (["--model", ""], ["model.name"]),
        (["--set", "epochs"], ["--set", "'epochs'", "KEY=VALUE"]),
        (["--set", "=3"], ["--set", "KEY=VALUE"]),
        (["--set", "training.epoch=2"], ["training.epoch", "did you mean 'epochs'"]),
        (["--set", "training.epochs=two"], ["training.epochs: got 'two'", "whole number"]),
        (["--set", "training=3"], ["training: got 3", "table"]),
        (["--set", "data=3"], ["data"]),
        (["--set", "a.b.c=1"], ["a: unknown setting"]),
        (["--set", "baselines=local"], ["baselines: got 'local'", "a list"]),
        (["--set", "adapter.target_modules=foo"], ["1 mistake\n", "a list", "'auto' or 'all-linear'"]),
        (["--set", "adapter.alpha=inf"], ["adapter.alpha", "finite"]),
        (["--set", "training.precision=fp16"], ["'auto', 'fp32' or 'bf16'"]),
        (["--set", "training.device=gpu"], ["training.device: got 'gpu'", "cuda:1"]),
        (["--set", "data.test_fraction=0.9"], ["valid_fraction", "nothing to train on"]),
        (["--round", "3"], ["--round"]),
    ],
    ids=lambda value: " ".join(map(str, value))[:40],
)
def test_a_flag_that_cannot_be(refused, flags, words):
    message = refused("--data", "t.csv", *flags)
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"name = \n[x", ["not valid TOML", "line 1"]),
        (b"name = '\xff'", ["not UTF-8", "byte 8"]),
        (b"", ["data: missing"]),
        (
            b'model = "tiny"\nmethod = 3\n[data]\nsource = "t.csv"',
            ["model: got 'tiny', expected a table", "method"],
        ),
    ],
)
def test_a_file_that_is_no_configuration(refused, tmp_path, content, words):
    (tmp_path / "my.toml").write_bytes(content)
    for flags in ([], ["--model", "other"]):
        message = refused("my.toml", *flags)
        for word in ["my.toml", *words]:
            if not (flags and word.startswith("data: missing")):
                assert word in message


def test_no_such_file_or_a_folder(refused, tmp_path):
    assert "no such file" in refused("my.toml")
    (tmp_path / "folder").mkdir()
    assert "trifed run --resume" in refused("folder")
    (tmp_path / "afile").write_text("x")
    assert "afile" in refused("afile/my.toml")


def test_resume_takes_nothing_else_and_needs_a_run(refused, tmp_path):
    (tmp_path / "runs").mkdir()
    assert "runs: no run here" in refused("--resume", "runs")
    assert "nosuch: no run here" in refused("--resume", "nosuch")
    for extra in (["--rank", "9"], ["--set", "training.epochs=2"], ["my.toml"]):
        assert "--resume" in refused("--resume", "runs", *extra)
    assert "runs: no run here" in refused("--resume", "runs", "--rounds", "9")


def test_demo_refuses_no_rounds(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    said = call(capsys, monkeypatch, "demo", "--rounds", 0)
    assert said.code == 2
    assert "rounds: got 0" in said.err
    assert not tree(tmp_path)


def test_settings_are_found_by_a_part_of_their_name_or_meaning(capsys, monkeypatch):
    said = call(capsys, monkeypatch, "settings", "CHECKPOINT")
    assert said.code == 0 and "keep_checkpoints" in said.out and "learning_rate" not in said.out
    nothing = call(capsys, monkeypatch, "settings", "no such thing")
    assert nothing.code == 2 and "trifed settings" in nothing.err
