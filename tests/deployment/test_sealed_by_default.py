"""`trifed flower init` seals a run between sites where it can, and says so; the run's file has the last word."""

from __future__ import annotations

import tomllib

import pytest
import tomli_w
from typer.testing import CliRunner

from trifed.cli.app import app
from trifed.common.dict_merge import deep_merge
from trifed.config.run import make_config, to_toml
from trifed.deployment.folders import read_run

RUN = {"name": "tickets", "rounds": 2, "data": {"labels": ["a", "b"]}, "deployment": {"clients": 4}}
GROUPS, SIX = [["a", "b", "c"], ["d", "e", "f"]], {"deployment": {"clients": 6}}
NOISE = {"epsilon": 4.0, "delta": 1e-5}


@pytest.fixture
def init(tmp_path):
    """`init({...})`: what `trifed flower init` prints for `RUN` with changes, and the settings of its app."""

    def made(changes, whole=False):
        path = tmp_path / "run.toml"
        values = deep_merge(RUN, changes)
        if whole:
            values |= {"data": {**values["data"], "source": "x.csv"}}
        path.write_text(to_toml(make_config(values)) if whole else tomli_w.dumps(values), encoding="utf-8")
        words = ["flower", "init", tmp_path / "server", "--run", path, "--host", "fed.example.org"]
        said = CliRunner().invoke(app, [str(word) for word in words])
        assert said.exit_code == 0, said.output
        return said.output, tomllib.loads((tmp_path / "server/app/run.toml").read_text(encoding="utf-8"))

    return made


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"method": "fedavg-lora"},
        {"deployment": {"clients": 3}},
        {"privacy": {"summary": NOISE, "training": {**NOISE, "rate": 0.1}}, "training": {"steps": 4}},
    ],
)
def test_a_run_of_three_and_more_sites_is_sealed(init, changes):
    said, values = init(changes)
    assert "The run is sealed" in said and "trifed flower sites" in said and "(deployment.quorum)" in said
    assert values["sealing"]["on"] and values["deployment"]["quorum"] == values["sealing"]["at_least"] == 3


def test_only_what_the_file_leaves_open_is_set(init):
    _, values = init({"sealing": {"at_least": 4}, "deployment": {"quorum": 2}})
    assert values["sealing"] == {"on": True, "at_least": 4, "levels": 1} and values["deployment"]["quorum"] == 2


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"sealing": {"on": False}}, "sealing.on = false"),
        ({"deployment": {"clients": 2}}, "needs 3 sites, and a round has 2"),
        ({"sealing": {"at_least": 5}}, "needs 5 sites, and a round has 4"),
        ({"participation": 0.5}, "needs 3 sites, and a round has 2"),
        ({"method": "ce-lora"}, "'ce-lora' has a server that needs each client's upload"),
        ({"method": "local"}, "sends nothing"),
        ({"aggregation": {"norm_bound": 2.0}}, "aggregation.norm_bound has no effect"),
        ({"aggregation": {"most_examples": 3.0}}, "aggregation.most_examples has no effect"),
        ({"aggregation": {"weights": "examples"}}, "aggregation.weights has no effect"),
        ({"aggregation": {"groups": "given", "members": GROUPS}, **SIX, "participation": 0.5}, "of one list"),
        ({"aggregation": {"rule": "median"}}, "aggregation.rule: 'median' compares single uploads"),
        ({"training": {"class_weights": {"a": 100.0, "b": 1.0}}}, "training.class_weights"),
        ({"privacy": {"summary": NOISE, "update": {**NOISE, "clip": 0.1}}}, "privacy.update"),
    ],
)
def test_what_cannot_be_sealed_is_open_and_the_reason_is_said(init, changes, why):
    said, values = init(changes)
    assert "The run is not sealed" in said and why in " ".join(said.split())
    assert not values["sealing"]["on"] and values["deployment"]["quorum"] == 1


def test_a_file_with_all_settings_is_left_as_it_is(init):
    """A run's own config.toml has sealing.on = false."""
    said, values = init({}, whole=True)
    assert "The run is not sealed" in said and "has sealing.on = false" in said and not values["sealing"]["on"]


def test_the_app_of_a_folder_reads_the_settings_as_they_stand(init, tmp_path):
    """Folders that were written before are not sealed by a new version."""
    _, values = init({})
    del values["sealing"]
    path = tmp_path / "server/app/run.toml"
    path.write_text(tomli_w.dumps(values), encoding="utf-8")
    assert not read_run(path).sealing.on


def test_what_a_seal_changes_is_said_before_keys_are_compared(init):
    """The default method loses its groups; the server would say so only when the run starts."""
    said, _ = init({})
    assert "all clients are one group" in " ".join(said.split())


def test_a_file_that_seals_is_told_what_does_not_work(init):
    said, values = init({"sealing": {"on": True}, "deployment": {"clients": 3}})
    told = " ".join(said.split())
    assert values["sealing"]["on"] and values["deployment"]["quorum"] == 1
    assert "deployment.quorum: got 1" in told


@pytest.mark.parametrize("task", ["causal-lm", "image-classification", "token-classification"])
def test_all_tasks_are_sealed(init, task):
    said, values = init({"task": task})
    assert "The run is sealed" in said and values["sealing"]["on"] and values["task"] == task
