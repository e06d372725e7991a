"""Training that diverges is said in the terminal, the log, the summary and the report."""

from __future__ import annotations

import json
import math

import pytest

from test_cli_help import call
from trifed.config.run import make_config, to_toml
from trifed.federation.training.divergence import Divergence


@pytest.mark.parametrize(
    ("losses", "found"),
    [
        ([0.7, 0.5, 0.6], []),
        ([0.7, 6.9, 7.1], [7.1]),
        ([0.03, 0.4, 3.0], []),
        ([1e29, 1e28], [1e29]),
        ([0.7, math.inf], [math.inf]),
        ([0.001, 0.02, 5.5], [5.5]),
    ],
)
def test_what_counts_as_diverged(losses, found):
    watched = Divergence()
    told = [loss for loss in losses if watched.begins("a", loss, 5) is not None]
    assert told == found


def test_no_number_is_divergence_only_of_a_client_that_tells_its_steps():
    watched = Divergence()
    assert watched.begins("a", math.nan, 0) is None
    assert math.isnan(watched.begins("a", math.nan, 3))


@pytest.mark.draws
def test_a_learning_rate_that_is_far_too_high_is_said_everywhere(toy_values, tmp_path, capsys, monkeypatch):
    values = toy_values(rounds=2, method="local", training={"learning_rate": 1e6})
    (tmp_path / "toy.toml").write_text(to_toml(make_config(values)))
    said = call(capsys, monkeypatch, "run", tmp_path / "toy.toml", "--runs", tmp_path)
    assert said.code == 0 and "training diverges" in said.out and "training.learning_rate" in said.out
    summary = json.loads((tmp_path / "toy" / "summary.json").read_text())
    assert summary["diverged"] == ["amber", "basil", "coral"]
    report = call(capsys, monkeypatch, "report", tmp_path / "toy", "--out", tmp_path / "report.md")
    assert report.code == 0
    assert "Training diverged" in (tmp_path / "report.md").read_text()


def test_training_that_does_not_diverge_is_not_mentioned(toy_values, tmp_path, capsys, monkeypatch):
    (tmp_path / "toy.toml").write_text(to_toml(make_config(toy_values(rounds=2))))
    said = call(capsys, monkeypatch, "run", tmp_path / "toy.toml", "--runs", tmp_path)
    assert said.code == 0 and "diverge" not in said.out
    assert json.loads((tmp_path / "toy" / "summary.json").read_text())["diverged"] == []
