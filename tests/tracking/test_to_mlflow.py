"""MLflow's own client finds every point of a run once, with the configuration beside it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from trifed.common.errors import RunError
from trifed.config.run import make_config
from trifed.config.toml_files import read_toml
from trifed.experiments.runner import resume
from trifed.federation.run_folder import RunFolder
from trifed.reports.tracking import track
from trifed.reports.tracking.scalars import Point
from trifed.reports.tracking.trackers import Source

# Ours first: it tells MLflow, before that is imported, not to report home.
MISSING = "the mlflow extra is not installed: pip install '.[mlflow]'"
to_mlflow = pytest.importorskip("trifed.reports.tracking.to_mlflow", reason=MISSING)
mlflow = pytest.importorskip("mlflow", reason=MISSING)


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with its tables, which take seconds to make."""
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    mlflow.MlflowClient(f"sqlite:///{path}")
    return path


@pytest.fixture
def store(empty_store: Path, tmp_path: Path) -> Path:
    """The folder of an empty store."""
    (tmp_path / "store").mkdir()
    return Path(shutil.copy(empty_store, tmp_path / "store")).parent


@pytest.fixture(autouse=True)
def no_other_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def runs(folder: Path, experiment: str = "toy") -> dict[str, Any]:
    """All MLflow runs of an experiment by name; there may be no two of one name."""
    client = mlflow.MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    found = client.get_experiment_by_name(experiment)
    assert found is not None
    listed = client.search_runs([found.experiment_id])
    assert len({run.info.run_name for run in listed}) == len(listed)
    return {run.info.run_name: run for run in listed}


def read(folder: Path, run: Any) -> list[tuple[tuple[str, int], float]]:
    client = mlflow.MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    histories = [client.get_metric_history(run.info.run_id, key) for key in run.data.metrics]
    return sorted(((m.key, m.step), m.value) for history in histories for m in history)


def test_a_finished_run_and_its_baseline(finished_copy, expected, store):
    done = track(finished_copy, "mlflow", store)
    found = runs(store)
    assert set(found) == {"ce-lora", "local"}
    for item, folder in zip(done, (finished_copy, finished_copy / "baselines" / "local"), strict=True):
        assert read(store, found[item.method]) == sorted(expected(folder).items())
        assert found[item.method].info.status == "FINISHED"


def test_the_configuration_is_there_as_parameters(finished_copy, store):
    track(finished_copy, "mlflow", store)
    params = runs(store)["ce-lora"].data.params
    config = make_config(read_toml(finished_copy / "config.toml"))
    assert params["training.learning_rate"] == str(config.training.learning_rate)
    assert (params["method.name"], params["data.clients.column"], params["rounds"]) == ("ce-lora", "site", "3")
    assert runs(store)["ce-lora"].data.tags["trifed.run"] == config.run_id()


def test_writing_twice_doubles_nothing(finished_copy, expected, store):
    for _ in range(2):
        track(finished_copy, "mlflow", store)
    assert read(store, runs(store)["ce-lora"]) == sorted(expected(finished_copy).items())


def test_a_run_that_was_broken_off_is_continued(break_off, expected, store, tmp_path):
    folder = break_off(tmp_path / "toy", 3)
    assert track(folder, "mlflow", store)[0].rounds == 2
    first = runs(store)["ce-lora"]
    assert first.info.status == "KILLED"
    resume(folder)
    track(folder, "mlflow", store)
    second = runs(store)["ce-lora"]
    assert (second.info.run_id, second.info.status) == (first.info.run_id, "FINISHED")
    assert read(store, second) == sorted(expected(folder).items())


def test_a_followed_run_that_was_broken_off_and_resumed(break_off, expected, store, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{store / 'mlflow.db'}")
    folder = break_off(tmp_path / "toy", 3, trackers=["mlflow"])
    first = runs(store)["ce-lora"]
    assert first.info.status == "KILLED"
    assert {step for (_, step), _ in read(store, first)} == {0, 1}
    resume(folder)
    second = runs(store)["ce-lora"]
    assert (second.info.run_id, second.info.status) == (first.info.run_id, "FINISHED")
    assert read(store, second) == sorted(expected(folder).items())
    assert not (folder / "mlflow.db").exists()


def test_a_run_that_mlflow_no_longer_has_is_made_anew(finished_copy, expected, store):
    track(finished_copy, "mlflow", store)
    gone = runs(store)["ce-lora"].info.run_id
    mlflow.MlflowClient(f"sqlite:///{store / 'mlflow.db'}").delete_run(gone)
    track(finished_copy, "mlflow", store)
    new = runs(store)["ce-lora"]
    assert new.info.run_id != gone
    assert read(store, new) == sorted(expected(finished_copy).items())


def test_clients_of_any_name(finished_copy, store):
    """MLflow takes few characters; what it would make alike stays apart, and what is a path does not go up."""
    path = finished_copy / "events.jsonl"
    text = path.read_text(encoding="utf-8")
    for old, new in (("amber", "site#1"), ("basil", "site%1"), ("coral", "..")):
        text = text.replace(f'"{old}"', f'"{new}"')
    path.write_text(text, encoding="utf-8")
    track(finished_copy, "mlflow", store)
    names = set(runs(store)["ce-lora"].data.metrics)
    assert {f"client accuracy/{name}" for name in ("site_1", "site_1_2", "_")} <= names
    assert len(names) == 6 + 2 * 3


def test_a_long_configuration_and_a_round_of_many_clients(finished_copy, store):
    source = Source.open(finished_copy)
    sink = to_mlflow.MlflowSink(source, store)
    sink.write([Point(f"client accuracy/{number}", 1, 0.5) for number in range(1001)])
    sink.close(True)
    assert len(runs(store)["ce-lora"].data.metrics) == 1001


def test_by_default_the_store_is_in_the_runs_folder(break_off, tmp_path, monkeypatch, empty_store):
    monkeypatch.chdir(tmp_path)
    folder = break_off(tmp_path / "toy", 2)
    shutil.copy(empty_store, folder)
    (done,) = track(folder, "mlflow")
    assert done.place == f"sqlite:///{folder / 'mlflow.db'}"
    assert RunFolder(folder).read_json("mlflow.json").keys() == {done.place}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["toy"]  # no mlruns where MLflow stands


@pytest.mark.parametrize("kind", ["text", "folder", "file above"])
def test_what_is_no_store(finished_copy, tmp_path, kind):
    if kind == "file above":
        (tmp_path / "into").write_text("a file")
    else:
        (tmp_path / "into").mkdir()
    if kind == "text":
        (tmp_path / "into" / "mlflow.db").write_text("this is no database, and long enough to be read as one" * 10)
    elif kind == "folder":
        (tmp_path / "into" / "mlflow.db").mkdir()
    with pytest.raises(RunError, match=rf"{tmp_path / 'into'}.*MLflow"):
        track(finished_copy, "mlflow", tmp_path / "into")


def test_an_address_that_mlflow_does_not_know(finished_copy, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nosuch://x")
    with pytest.raises(RunError, match="MLflow at nosuch://x"):
        track(finished_copy, "mlflow")


def test_nothing_is_reported_to_anybody():
    assert mlflow.telemetry.client.get_telemetry_client() is None
