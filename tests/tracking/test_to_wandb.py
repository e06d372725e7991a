"""W&B's own files, written offline, have every point of a run once, and nothing of the machine."""

from __future__ import annotations

import json
import struct
import time
from pathlib import Path
from typing import Any

import pytest

from trifed.common.errors import RunError
from trifed.config.run import make_config
from trifed.experiments.runner import resume, run
from trifed.reports.tracking import track

MISSING = "the wandb extra is not installed: pip install '.[wandb]'"
wandb = pytest.importorskip("wandb", reason=MISSING)
# W&B's files are logs of LevelDB's form: frames in blocks, after a header of its own.
HEADER, BLOCK, FRAME = 7, 32768, struct.Struct("<IHB")
WHOLE, LAST = 1, 4
messages = pytest.importorskip("wandb.proto.wandb_internal_pb2", reason=MISSING)


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    for name in ("WANDB_PROJECT", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    for name in ("WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))


def records(folder: Path) -> list[Any]:
    """Everything in the one file below a W&B run's folder, when W&B's own process has written it."""
    for _ in range(100):
        found = read(folder)
        if any(record.WhichOneof("record_type") == "exit" for record in found):
            break
        time.sleep(0.1)
    return found


def read(folder: Path) -> list[Any]:
    (path,) = folder.glob("*.wandb")
    content, place, data, found = path.read_bytes(), HEADER, b"", []
    while place < len(content):
        left = BLOCK - place % BLOCK
        if left < FRAME.size:  # padding at the end of a block
            place += left
            continue
        _, size, kind = FRAME.unpack_from(content, place)
        place += FRAME.size + size
        data += content[place - size : place]
        if kind in (WHOLE, LAST):
            record = messages.Record()
            record.ParseFromString(data)
            found, data = [*found, record], b""
    return found


def points(folder: Path) -> list[tuple[tuple[str, int], float]]:
    """All points of a W&B run, sorted, doubles kept."""
    found = []
    for record in records(folder):
        if record.WhichOneof("record_type") == "history":
            items = {
                item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item
            }
            step = items.get("_step", record.history.step.num)
            found += [((name, step), value) for name, value in items.items() if not name.startswith("_")]
    return sorted(found)


def test_a_finished_run_and_its_baseline(finished_copy, expected):
    done = track(finished_copy, "wandb")
    assert [(item.method, item.rounds) for item in done] == [("ce-lora", 3), ("local", 3)]
    for item, folder in zip(done, (finished_copy, finished_copy / "baselines" / "local"), strict=True):
        assert Path(item.place).parent == finished_copy / "wandb"
        wanted = expected(folder)
        assert item.points == len(wanted) > 30
        assert points(Path(item.place)) == sorted((key, pytest.approx(value)) for key, value in wanted.items())


def test_the_configuration_goes_with_it_and_nothing_of_the_machine(finished_copy):
    (done, *_) = track(finished_copy, "wandb")
    kinds = {record.WhichOneof("record_type"): record for record in records(Path(done.place))}
    config = {item.key: item.value_json for item in kinds["run"].run.config.update}
    assert json.loads(config["rounds"]) == 3 and "ce-lora" in config["method"]
    assert (kinds["run"].run.run_group, kinds["run"].run.project) == ("toy", "trifed")
    assert "stats" not in kinds and "output" not in kinds and "output_raw" not in kinds
    assert not list(Path(done.place).rglob("requirements.txt")) and not list(
        Path(done.place).rglob("*metadata.json")
    )


def test_writing_twice_doubles_nothing(finished_copy, expected, tmp_path):
    for _ in range(2):
        track(finished_copy, "wandb", tmp_path / "board")
    runs = sorted((tmp_path / "board" / "wandb").glob("offline-run-*"))
    assert len(runs) == 2  # the run and its baseline
    assert len(points(runs[0])) == len(expected(finished_copy))


def test_a_followed_run_that_was_broken_off_and_resumed(break_off, expected, tmp_path):
    folder = break_off(tmp_path / "toy", 3, trackers=["wandb"])
    assert {step for (_, step), _ in points(next((folder / "wandb").glob("offline-run-*")))} == {0, 1}
    resume(folder)
    (place,) = (folder / "wandb").glob("offline-run-*")
    assert len(points(place)) == len(expected(folder))


def test_a_run_goes_on_where_nobody_is_logged_in(toy_values, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    told = []
    run(make_config(toy_values(rounds=1, trackers=["wandb"])), tmp_path / "run", told.append)
    assert ["wandb login" in event["text"] for event in told if event["event"] == "trouble"] == [True]
    with pytest.raises(RunError, match="wandb login"):
        track(tmp_path / "run", "wandb")
