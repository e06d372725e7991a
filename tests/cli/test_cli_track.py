"""`trifed track`: what it writes, what it says, and what it refuses with one message."""

from __future__ import annotations

import shlex

import pytest

from test_cli_help import call, tree


@pytest.fixture
def track(capsys, monkeypatch, tmp_path):
    """`track(ARGS)`: `trifed track ARGS` in a folder of its own, 80 columns wide."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    return lambda *args: call(capsys, monkeypatch, "track", *args)


def test_a_run_is_written_where_it_is_said(track, tmp_path, finished):
    pytest.importorskip("tensorboard", reason="the tensorboard extra is not installed")
    run = finished("ce-lora")
    said = track(run.path, "--to", "tensorboard", "--into", "the board")
    assert said.code == 0
    points = (3 + 2 + 3) + 3 * (3 + 2 + 1 + 3 + 3)  # accuracy, bytes, loss; accuracy and loss of three clients
    assert f"ce-lora: {points} " in said.out and f"board/{run.path.name}" in said.out
    assert shlex.split(said.out.splitlines()[-1].partition(": ")[2]) == [
        "tensorboard", "--logdir", f"the board/{run.path.name}",
    ]  # fmt: skip
    (written,) = (tmp_path / "the board").rglob("events.out*")
    assert written.parent.name == "ce-lora"


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["nosuch", "--to", "tensorboard"], ["nosuch: no run here"]),
        (["nosuch"], ["--to"]),
        (["nosuch", "--to", "comet"], ["--to", "'tensorboard'", "'mlflow'", "'wandb'"]),
    ],
)
def test_what_is_refused(track, tmp_path, args, words):
    said = track(*args)
    assert said.code == 2
    assert "Traceback" not in said.err
    assert not tree(tmp_path)
    for word in words:
        assert word in said.err


def test_the_help_names_the_extras(track):
    text = track("--help").out
    assert "Example" in text and "trifed track runs/demo" in text and "--to tensorboard" in text
    assert all(f"'.[{extra}]'" in text for extra in ("tensorboard", "mlflow", "wandb"))
    assert max(map(len, text.splitlines())) <= 80
