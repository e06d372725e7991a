"""A run that continues: more rounds, and settings that changed meanwhile."""

from __future__ import annotations

import json
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file

from test_cli_help import call
from trifed import make_config, resume, run
from trifed.common.errors import RunError
from trifed.federation.kept_checkpoints import CHECKPOINT
from trifed.federation.run_folder import RunFolder

METHOD = "fedavg-lora"


def rewrite(folder, old, new):
    path = folder / "config.toml"
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


def models(folder):
    return {
        file.parent.name: load_file(file)
        for file in sorted((folder / "clients").glob("*/adapter_model.safetensors"))
    }


@pytest.fixture(scope="module")
def two_rounds(toy_values, tmp_path_factory):
    """A finished run of two rounds with a baseline. Do not write into its folder."""
    config = make_config(toy_values(method=METHOD, rounds=2, baselines=["local"]))
    return run(config, tmp_path_factory.mktemp("two") / "toy").path


@pytest.fixture
def copy(two_rounds, tmp_path):
    return shutil.copytree(two_rounds, tmp_path / "toy")


@pytest.mark.parametrize("way", ["file", "flag"])
def test_a_finished_run_goes_on_to_more_rounds(way, copy, toy_values, tmp_path, capsys, monkeypatch):
    """With the numbers of a run that had them from the beginning."""
    if way == "file":
        rewrite(copy, "rounds = 2", "rounds = 4")
        resume(copy)
    else:
        assert call(capsys, monkeypatch, "run", "--resume", copy, "--rounds", 4).code == 0
    whole = run(make_config(toy_values(method=METHOD, rounds=4, baselines=["local"])), tmp_path / "whole").path
    for part in ("", "baselines/local"):
        summary = json.loads((copy / part / "summary.json").read_text())
        expected = json.loads((whole / part / "summary.json").read_text())
        assert summary["rounds"] == 4 and summary["bytes"] == expected["bytes"]
        assert summary["accuracy"] == expected["accuracy"]
        for name, tensors in models(whole / part).items():
            assert all(torch.equal(tensor, models(copy / part)[name][key]) for key, tensor in tensors.items())
    assert "rounds = 4" in (copy / "config.toml").read_text()


def test_an_interrupted_run_may_end_earlier(copy):
    """It had been planned for more."""
    rewrite(copy, "rounds = 2", "rounds = 5")
    resume(copy)
    resume(copy, from_round=3, rounds=4)
    assert json.loads((copy / "summary.json").read_text())["rounds"] == 4


def test_fewer_rounds_than_are_done(copy):
    with pytest.raises(RunError, match="got rounds = 1, expected at least 2"):
        resume(copy, rounds=1)
    assert (copy / "summary.json").is_file()


def test_changed_settings_are_named_with_both_values(copy, two_rounds):
    rewrite(copy, "rank = ", "rank = 1")
    rewrite(copy, "batch_size = ", "batch_size = 1")
    with pytest.raises(RunError) as error:
        resume(copy)
    text = str(error.value)
    assert "adapter.rank (was " in text and "training.batch_size (was " in text
    assert re.search(r"put them back", text)
    assert models(copy).keys() == models(two_rounds).keys()


@pytest.mark.parametrize("setting", ["keep_checkpoints = 3", "controls = "])
def test_settings_that_change_no_numbers_may_change(setting, copy):
    text = (copy / "config.toml").read_text()
    line = next((line for line in text.splitlines() if line.startswith(setting.split(" =")[0])), None)
    if line:
        text = text.replace(line, "")
    changed = "keep_checkpoints = 7\n" if "keep" in setting else "controls = true\n"
    (copy / "config.toml").write_text(changed + text)
    assert resume(copy, rounds=3).summary["rounds"] == 3


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"training": {"schedule": "linear"}}, "training.schedule"),
        ({"training": {"warmup": 0.1}}, "training.warmup"),
    ],
)
def test_rounds_that_a_schedule_was_planned_for_stay(values, says, toy_values, tmp_path):
    folder = run(make_config(toy_values(method=METHOD, rounds=1, **values)), tmp_path / "run").path
    with pytest.raises(RunError, match=says):
        resume(folder, rounds=2)
    assert (folder / "summary.json").is_file()


def test_a_schedule_of_each_round_allows_more_rounds(toy_values, tmp_path):
    own = {"training": {"schedule": "linear-each-round", "warmup": 0.5, "optimizer_state": "reset"}}
    folder = run(make_config(toy_values(method=METHOD, rounds=1, **own)), tmp_path / "run").path
    resume(folder, rounds=2)
    whole = run(make_config(toy_values(method=METHOD, rounds=2, **own)), tmp_path / "whole").path
    for site, tensors in models(whole).items():
        for name, tensor in tensors.items():
            assert torch.equal(models(folder)[site][name], tensor)


def test_rounds_by_set_count_too_and_a_dry_run_does_not_resume(copy, capsys, monkeypatch):
    before = (copy / "config.toml").read_text()
    assert call(capsys, monkeypatch, "run", "--resume", copy, "--rounds", 3, "--dry-run").code == 2
    assert (copy / "config.toml").read_text() == before
    assert call(capsys, monkeypatch, "run", "--resume", copy, "--set", "rounds=3").code == 0
    assert json.loads((copy / "summary.json").read_text())["rounds"] == 3


def test_a_baseline_that_was_left_behind_is_continued(copy, two_rounds):
    """As after a failure between the run and its baseline."""
    resume(copy, rounds=3)
    shutil.rmtree(copy / "baselines" / "local")
    shutil.copytree(two_rounds / "baselines" / "local", copy / "baselines" / "local")
    assert resume(copy).baselines["local"].summary["rounds"] == 3


def test_a_checkpoint_of_an_earlier_version_does_not_know_its_settings(copy):
    checkpoint = RunFolder(copy)
    facts = {**checkpoint.facts(), "settings": None}
    checkpoint.write_tensors(CHECKPOINT, load_file(copy / CHECKPOINT), {"trifed": json.dumps(facts)})
    with pytest.raises(RunError, match="an earlier version did not keep which"):
        resume(copy, rounds=3)
    assert "rounds = 2" in (copy / "config.toml").read_text()
    assert resume(copy).summary["rounds"] == 2
