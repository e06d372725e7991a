"""A dry run says what a run would take, and leaves nothing."""

from __future__ import annotations

import pytest

from test_cli_help import call, tree
from trifed import make_config, run
from trifed.config.run import to_toml
from trifed.experiments.dry_run import dry_run


@pytest.mark.parametrize("method", ["own-prior", "fedavg-lora", "local"])
def test_it_tells_what_the_run_then_takes(method, toy_values, tmp_path):
    config = make_config(toy_values(method=method, rounds=2))
    found = dry_run(config)
    events = [event for event in _events(config, tmp_path) if event["event"] == "trained"]
    assert found.steps == sum(event["steps"] for event in events) and found.clients == 3
    sent = [sum((event["up"] or {}).values()) for event in events]
    assert all(abs(found.bytes_up - size) < 64 for size in sent)  # headers hold numbers of one or two digits
    assert found.step_seconds > 0 and found.peak_bytes > 10**7
    assert ("nothing is sent" in str(found)) == (method == "local")


def _events(config, folder):
    told = []
    run(config, folder / "run", told.append)
    return told


def test_the_command_writes_nothing(toy_values, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "toy.toml").write_text(to_toml(make_config(toy_values())))
    before = tree(tmp_path)
    said = call(capsys, monkeypatch, "run", "toy.toml", "--dry-run")
    assert said.code == 0 and "Training takes about" in said.out and "3 clients, 3 rounds" in said.out
    assert tree(tmp_path) == before


def test_mistakes_are_told_as_by_a_run(toy_values, tmp_path, capsys, monkeypatch):
    (tmp_path / "toy.toml").write_text(to_toml(make_config(toy_values(data={"label": "topic"}))))
    said = call(capsys, monkeypatch, "run", tmp_path / "toy.toml", "--dry-run")
    assert said.code == 2 and "no column 'topic'" in said.err
