"""A run's folder: broken off and continued, refused, and read back."""

from __future__ import annotations

import csv
import json
import shutil
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from trifed import load_result, make_config, resume, run
from trifed.common.errors import RunError, TrifedError
from trifed.config.run import to_toml
from trifed.federation.run_folder import RunFolder, plain


class Breaks:
    """A listener that breaks the run off at the n-th event that fits, as Ctrl-C does."""

    def __init__(self, count: int = 1, **wanted: object) -> None:
        self.count, self.wanted = count, wanted

    def __call__(self, event) -> None:
        if all(event.get(key) == value for key, value in self.wanted.items()):
            self.count -= 1
            if not self.count:
                raise KeyboardInterrupt


def events(path: Path):
    """The log without what may differ: seconds, and the lines that tell of a resumption."""
    kept = [e for e in RunFolder.open(path).events() if e["event"] != "resumed"]
    return [{key: value for key, value in e.items() if key != "seconds"} for e in kept]


def lasting(path: Path):
    summary = json.loads((path / "summary.json").read_text(encoding="utf-8"))
    return {key: value for key, value in summary.items() if not key.startswith("seconds")}


def tensors(path: Path):
    """Everything a run leaves behind as tensors: matrices and clients' folders."""
    return {str(p.relative_to(path)): load_file(p) for p in sorted(path.rglob("*.safetensors"))}


def content(path: Path):
    return {str(p.relative_to(path)): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()}


def assert_same_run(one: Path, other: Path) -> None:
    assert events(one) == events(other)
    assert lasting(one) == lasting(other)
    first, second = tensors(one), tensors(other)
    assert set(first) == set(second)
    for name in first:
        assert set(first[name]) == set(second[name])
        for tensor in first[name]:
            assert torch.equal(first[name][tensor], second[name][tensor]), (name, tensor)
    for name in ("predictions.json", "split.json", "config.toml"):
        assert (one / name).read_bytes() == (other / name).read_bytes()


def broken_off(config, path: Path, listener) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(config, path, listener)
    assert not (path / "summary.json").exists()


MIDDLE = {"event": "trained", "round": 2, "client": "basil"}


@pytest.mark.parametrize(
    ("method", "changes"),
    [
        ("ce-lora", {}),
        ("ce-lora", {"training": {"optimizer_state": "reset", "schedule": "linear"}}),
        ("fedavg-lora", {"training": {"schedule": "linear", "warmup": 0.2}}),
        ("local", {}),
        ("ce-lora", {"participation": 0.5}),
        ("fedavg-lora", {"wire": {"bits": 1}, "personalization": {"interpolate": "auto"}}),
        ("fedex-lora", {"wire": {"bits": 1}}),
        ("fedalt", {"wire": {"bits": 1}, "participation": 0.5}),
        ("feddpa", {"wire": {"bits": 1}, "training": {"schedule": "linear"}}),
    ],
    ids=[
        "ce-lora",
        "ce-lora, moments reset",
        "fedavg-lora, linear",
        "local",
        "half of the clients",
        "one bit, auto",
        "more is received than sent",
        "what is sent is not received",
        "two phases, one bit",
    ],
)
def test_a_run_broken_off_reaches_the_numbers_of_an_unbroken_one(method, changes, finished, toy_values, tmp_path):
    whole = finished(method, **changes)
    config = make_config(toy_values(method=method, **changes))
    assert config.training.optimizer_state == "keep" or "training" in changes
    where = {"event": "trained", "round": 2} if "participation" in changes else MIDDLE
    broken_off(config, tmp_path / "run", Breaks(**where))
    heard = []
    resume(tmp_path / "run", heard.append)
    assert [e["round"] for e in heard if e["event"] == "resumed"] == [1]
    assert not any(e["event"] == "trained" and e["round"] == 1 for e in heard)
    assert_same_run(whole.path, tmp_path / "run")


@pytest.mark.parametrize(
    "where",
    [
        {"event": "scores", "round": 0},
        {"event": "trained", "round": 1},
        {"event": "scores", "round": 3, "stage": "received"},
        {"event": "delivered"},
        {"event": "closing"},
    ],
    ids=["before round 1", "in round 1", "in the last scores", "after the last round", "while closing"],
)
def test_wherever_it_was_broken_off(where, finished, toy_values, tmp_path):
    broken_off(make_config(toy_values(method="ce-lora")), tmp_path / "run", Breaks(**where))
    resume(tmp_path / "run")
    assert_same_run(finished("ce-lora").path, tmp_path / "run")


def test_broken_off_again_and_again(finished, toy_values, tmp_path):
    path = tmp_path / "run"
    broken_off(make_config(toy_values(method="ce-lora")), path, Breaks(**MIDDLE))
    for where in (MIDDLE, {"event": "trained", "round": 3}, {"event": "finished"}):
        with pytest.raises(KeyboardInterrupt):
            resume(path, Breaks(**where))
    resume(path)
    assert_same_run(finished("ce-lora").path, path)


def test_half_a_line_in_the_log_is_no_obstacle(finished, toy_values, tmp_path):
    path = tmp_path / "run"
    broken_off(make_config(toy_values(method="ce-lora")), path, Breaks(**MIDDLE))
    with (path / "events.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"event": "trai')
    resume(path)
    assert_same_run(finished("ce-lora").path, path)


def test_resuming_a_finished_run_changes_nothing(finished):
    done = finished("ce-lora")
    before, heard = content(done.path), []
    again = resume(done.path, heard.append)
    assert content(done.path) == before and heard == []
    assert again.summary == done.summary


def toy_copy(toy_table: Path, path: Path, change=None) -> Path:
    with toy_table.open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    if change:
        change(rows)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    return path


def swap_two_labels(rows) -> None:
    other = next(row for row in rows[2:] if row[1] != rows[1][1] and row[2] == rows[1][2])
    rows[1][1], other[1] = other[1], rows[1][1]


def test_resuming_on_other_data_is_refused(toy_values, toy_table, tmp_path):
    table = toy_copy(toy_table, tmp_path / "table.csv")
    config = make_config(toy_values(data={"source": str(table)}))
    broken_off(config, tmp_path / "run", Breaks(**MIDDLE))
    toy_copy(toy_table, table, swap_two_labels)
    before = content(tmp_path / "run")
    with pytest.raises(RunError, match="data or the base"):
        resume(tmp_path / "run")
    assert content(tmp_path / "run") == before  # a refusal writes nothing
    toy_copy(toy_table, table)
    assert resume(tmp_path / "run").summary["finished"]


def test_resuming_on_another_base_model_is_refused(toy_values, tiny_encoder, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(tiny_encoder, base)
    config = make_config(toy_values(model={"name": str(base)}))
    broken_off(config, tmp_path / "run", Breaks(**MIDDLE))
    weights = load_file(base / "model.safetensors")
    name = next(name for name in weights if "LayerNorm" not in name)
    weights[name] = weights[name] + 1e-3
    save_file(weights, base / "model.safetensors", {"format": "pt"})
    with pytest.raises(RunError, match="data or the base"):
        resume(tmp_path / "run")


def test_resuming_under_other_settings_is_refused(toy_values, tmp_path):
    config = make_config(toy_values())
    broken_off(config, tmp_path / "run", Breaks(**MIDDLE))
    (tmp_path / "run" / "config.toml").write_text(
        to_toml(config).replace("seed = 0", "seed = 1"), encoding="utf-8"
    )
    with pytest.raises(RunError, match="start a new run"):
        resume(tmp_path / "run")


def test_a_damaged_checkpoint_is_refused(toy_values, tmp_path):
    broken_off(make_config(toy_values()), tmp_path / "run", Breaks(**MIDDLE))
    checkpoint = tmp_path / "run" / "checkpoint.safetensors"
    checkpoint.write_bytes(checkpoint.read_bytes()[:-100])
    with pytest.raises(RunError, match="damaged"):
        resume(tmp_path / "run")


def test_a_folder_without_a_run_is_refused(tmp_path):
    for call in (resume, load_result):
        with pytest.raises(RunError, match="no run here"):
            call(tmp_path)


def test_an_unfinished_run_has_no_result_yet(toy_values, tmp_path):
    broken_off(make_config(toy_values()), tmp_path / "run", Breaks(**MIDDLE))
    with pytest.raises(RunError, match=r"not finished.*--resume"):
        load_result(tmp_path / "run")


def test_a_folder_that_is_taken_is_refused_and_left_alone(toy_values, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(RunError, match=str(tmp_path / "run")):
        run(make_config(toy_values()), tmp_path / "run")
    assert content(tmp_path / "run") == {"mine.txt": b"mine"}


@pytest.mark.parametrize(
    "changes",
    [
        {"data": {"source": "absent.csv"}},
        {"data": {"label": "colour"}},
        {"model": {"name": "./absent"}},
        {"adapter": {"rank": 64}},
    ],
    ids=["no data", "no label", "no model", "too large a rank"],
)
def test_a_run_that_cannot_begin_leaves_nothing_behind(changes, toy_values, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TrifedError):
        run(make_config(toy_values(**changes)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_is_kept_under_its_name_unless_told_otherwise(toy_values, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = run(make_config(toy_values(name="by-name", rounds=1)))
    assert done.path == Path("runs/by-name") and (tmp_path / "runs" / "by-name" / "summary.json").is_file()


def test_the_folder_holds_what_it_promises(finished):
    done = finished("ce-lora")
    kept = content(done.path)
    assert {
        "config.toml",
        "environment.json",
        "split.json",
        "events.jsonl",
        "checkpoint.safetensors",
        "matrices/round-0001.safetensors",
        "clients/coral/adapter_config.json",
        "clients/coral/adapter_model.safetensors",
        "clients/coral/head.safetensors",
        "clients/coral/classifier.json",
        "predictions.json",
        "summary.json",
    } <= set(kept)
    assert not [name for name in kept if name.endswith(".tmp")]
    assert make_config(tomllib.loads(kept["config.toml"].decode())) == done.config
    facts = json.loads(kept["environment.json"])
    assert facts["run_id"] == done.config.run_id() and facts["sent_values"] == 2 * 2 * 4 * 4
    assert facts["trained_values"] == 2 * 2 * (2 * 4 * 32 + 4 * 4) + 3 * 32 + 3
    for name, raw in kept.items():
        if name.endswith(".json"):
            json.loads(raw, parse_constant=lambda constant: pytest.fail(f"{constant} is no JSON"))


def test_predictions_and_summary_agree(finished):
    done = finished("ce-lora")
    told = json.loads((done.path / "predictions.json").read_text(encoding="utf-8"))
    for client in done.summary["clients"]:
        labels, predicted = told["labels"][client["name"]], told["model"][client["name"]]
        right = np.mean(np.array(labels) == np.array(predicted))
        assert client["now"]["accuracy"] == pytest.approx(right) and client["now"]["examples"] == len(labels)
    spread = [client["now"]["accuracy"] for client in done.summary["clients"]]
    weights = [client["now"]["examples"] for client in done.summary["clients"]]
    accuracy = done.result.accuracy
    assert accuracy["mean"] == pytest.approx(np.mean(spread)) and accuracy["worst"] == min(spread)
    assert accuracy["best"] == max(spread)
    assert accuracy["weighted_mean"] == pytest.approx(np.average(spread, weights=weights))


def test_baselines_run_on_the_same_split(finished, toy_values, tmp_path):
    config = make_config(toy_values(method="ce-lora", baselines=["local", "fedavg-lora"]))
    done = run(config, tmp_path / "run")
    assert list(done.baselines) == ["local", "fedavg-lora"]
    assert events(tmp_path / "run") == events(finished("ce-lora").path)
    for name, other in done.baselines.items():
        assert other.path == tmp_path / "run" / "baselines" / name
        assert events(other.path) == events(finished(name).path)
        assert other.split == done.split
    assert load_result(tmp_path / "run").summary == done.summary


def test_a_run_broken_off_in_a_baseline_goes_on_there(finished, toy_values, tmp_path):
    path = tmp_path / "run"
    config = make_config(toy_values(method="ce-lora", baselines=["local", "fedavg-lora"]))
    with pytest.raises(KeyboardInterrupt):
        run(config, path, Breaks(2, **MIDDLE))  # the first one is ce-lora's own
    assert (path / "summary.json").exists() and not (path / "baselines" / "local" / "summary.json").exists()
    own = (path / "events.jsonl").read_bytes()
    done = resume(path)
    assert (path / "events.jsonl").read_bytes() == own
    assert list(done.baselines) == ["local", "fedavg-lora"]
    for name in done.baselines:
        assert events(path / "baselines" / name) == events(finished(name).path)


def test_controls_stand_beside_the_result(toy_values, tmp_path):
    done = run(make_config(toy_values(rounds=1, controls=True)), tmp_path / "run")
    told = json.loads((tmp_path / "run" / "predictions.json").read_text(encoding="utf-8"))
    assert list(done.summary["controls"]) == [
        "probe-alone",
        "probe-all",
        "probe-all-prior",
        "class-means",
        "majority",
    ]
    for name, control in done.summary["controls"].items():
        for client, accuracy in control["clients"].items():
            right = np.mean(np.array(told["labels"][client]) == np.array(told["controls"][name][client]))
            assert accuracy == pytest.approx(right)
        assert control["worst"] == min(control["clients"].values())
    assert done.summary["controls"]["probe-all"]["mean"] > done.summary["controls"]["majority"]["mean"]


def test_what_json_cannot_say_becomes_null():
    value = {"a": np.float32("nan"), 1: [np.inf, np.int64(3)], "b": (np.array([1.5, np.nan]),), "c": True}
    assert plain(value) == {"a": None, "1": [None, 3], "b": [[1.5, None]], "c": True}
