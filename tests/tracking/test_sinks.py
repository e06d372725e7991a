"""What a tracker needs: said before anything else happens, with the command that installs it."""

from __future__ import annotations

import re
import sys

import pytest

from trifed.common.errors import ConfigError
from trifed.config.run import make_config
from trifed.experiments.runner import run
from trifed.reports.tracking import require_trackers, track
from trifed.reports.tracking.trackers import NEEDS, Source


@pytest.fixture
def nothing_installed(monkeypatch):
    """As where no extra is installed: a name that stands for None in sys.modules cannot be imported."""
    for package in {package for packages in NEEDS.values() for package in packages}:
        monkeypatch.setitem(sys.modules, package, None)


@pytest.mark.usefixtures("nothing_installed")
def test_missing_extras_are_named_with_their_install_lines():
    with pytest.raises(ConfigError) as caught:
        require_trackers(["tensorboard", "mlflow", "wandb"])
    assert {problem.split(":")[0] for problem in caught.value.problems} == {"trackers"}
    assert [re.search(r"'\.\[(\w+)\]'", problem)[1] for problem in caught.value.problems] == [
        "tensorboard", "mlflow", "wandb",
    ]  # fmt: skip
    assert "mlflow, sqlalchemy, alembic" in caught.value.problems[1]


@pytest.mark.usefixtures("nothing_installed")
def test_a_run_whose_tracker_is_missing_leaves_nothing(toy_values, tmp_path):
    with pytest.raises(ConfigError, match=r"\.\[tensorboard\]"):
        run(make_config(toy_values(trackers=["tensorboard"])), tmp_path / "run")
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("nothing_installed")
def test_no_tracker_needs_nothing(finished_copy):
    require_trackers([])
    with pytest.raises(ConfigError, match=r"\.\[mlflow\]"):
        track(finished_copy, "mlflow")


def test_trackers_change_no_numbers_and_no_identity(toy_values):
    plain, followed = make_config(toy_values()), make_config(toy_values(trackers=["tensorboard"]))
    assert plain.run_id() == followed.run_id()
    assert followed.with_method("local").trackers == ["tensorboard"]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["tensorbord"], ["trackers.0: got 'tensorbord'", "did you mean 'tensorboard'"]),
        ("mlflow", ["trackers: got 'mlflow'", "a list"]),
    ],
)
def test_an_unknown_tracker(toy_values, given, words):
    with pytest.raises(ConfigError) as caught:
        make_config(toy_values(trackers=given))
    for word in words:
        assert word in str(caught.value)


def test_a_baseline_belongs_to_its_run(finished_copy):
    own, baseline = Source.open(finished_copy), Source.open(finished_copy / "baselines" / "local")
    assert own.home == baseline.home == finished_copy.resolve()
    assert (own.method, baseline.method) == ("ce-lora", "local")
    assert baseline.parameters()["method.name"] == "local"
