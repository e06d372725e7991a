"""TensorBoard's own reader finds every point of a run once: followed, resumed or written afterwards."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from trifed.common.errors import RunError
from trifed.config.run import make_config
from trifed.experiments.runner import resume, run
from trifed.federation.run_folder import RunFolder
from trifed.reports.tracking import track

reader = pytest.importorskip(
    "tensorboard.backend.event_processing.event_accumulator",
    reason="the tensorboard extra is not installed: pip install '.[tensorboard]'",
)


def read(folder: Path) -> list[tuple[tuple[str, int], float]]:
    """All points in a folder of event files, sorted, doubles kept."""
    found = reader.EventAccumulator(str(folder), size_guidance={reader.SCALARS: 0})
    found.Reload()
    return sorted(((tag, e.step), e.value) for tag in found.Tags()["scalars"] for e in found.Scalars(tag))


def as_stored(values: dict[tuple[str, int], float]) -> list[tuple[tuple[str, int], float]]:
    """Event files hold float32."""
    return sorted((key, float(np.float32(value))) for key, value in values.items())


def test_a_finished_run_and_its_baseline(finished_copy, expected):
    done = track(finished_copy, "tensorboard")
    assert [(item.method, item.rounds) for item in done] == [("ce-lora", 3), ("local", 3)]
    for item, folder in zip(done, (finished_copy, finished_copy / "baselines" / "local"), strict=True):
        wanted = expected(folder)
        assert item.points == len(wanted) > 30
        assert item.place == str(finished_copy / "tensorboard")
        assert read(Path(item.place) / item.method) == as_stored(wanted)


def test_the_configuration_is_there_as_text(finished_copy):
    track(finished_copy, "tensorboard")
    found = reader.EventAccumulator(str(finished_copy / "tensorboard" / "ce-lora"))
    found.Reload()
    (event,) = found.Tensors("configuration/text_summary")
    text = event.tensor_proto.string_val[0].decode("utf-8")
    assert (finished_copy / "config.toml").read_text(encoding="utf-8") in text


def test_writing_twice_doubles_nothing(finished_copy, expected, tmp_path):
    for _ in range(2):
        track(finished_copy, "tensorboard", tmp_path / "board")
    target = tmp_path / "board" / "toy" / "local"
    assert len(list(target.iterdir())) == 1
    assert read(target) == as_stored(expected(finished_copy / "baselines" / "local"))


def test_a_followed_run_that_was_broken_off_and_resumed(break_off, expected, finished, tmp_path):
    folder = break_off(tmp_path / "toy", 3, trackers=["tensorboard"])
    board = folder / "tensorboard" / "ce-lora"
    whole = expected(folder)
    assert {step for _, step in whole} == {0, 1, 2}
    seen = read(board)
    assert {step for (_, step), _ in seen} == {0, 1}  # round 2 is over when round 3 begins, which was too late
    assert set(seen) <= set(as_stored(whole))
    resume(folder)
    assert read(board) == as_stored(expected(folder))
    unbroken = expected(finished("ce-lora").path)
    assert dict(read(board)).keys() == unbroken.keys()
    assert dict(read(board))["accuracy/mean", 3] == np.float32(unbroken["accuracy/mean", 3])


def test_a_run_that_was_broken_off_is_written_up_to_its_last_whole_round(break_off, expected, tmp_path):
    folder = break_off(tmp_path / "toy", 3)
    (done,) = track(folder, "tensorboard")
    assert done.rounds == 2
    assert read(folder / "tensorboard" / "ce-lora") == as_stored(expected(folder))


def test_half_a_line_at_the_end_of_the_log_is_no_trouble(break_off, expected, tmp_path):
    folder = break_off(tmp_path / "toy", 3)
    before = expected(folder)
    with (folder / "events.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"event": "trai')
    assert track(folder, "tensorboard")[0].rounds == 2
    assert expected(folder) == before


def test_without_a_whole_round_there_is_nothing_to_write(break_off, tmp_path):
    folder = break_off(tmp_path / "toy", 1)
    with pytest.raises(RunError, match="no round"):
        track(folder, "tensorboard")
    assert not (folder / "tensorboard").exists()


def test_a_baseline_is_followed_beside_its_run(toy_values, expected, tmp_path):
    config = make_config(toy_values(trackers=["tensorboard", "tensorboard"], baselines=["ce-lora"], rounds=1))
    run(config, tmp_path / "toy")
    board = tmp_path / "toy" / "tensorboard"
    assert sorted(path.name for path in board.iterdir()) == ["ce-lora", "own-prior"]
    assert read(board / "ce-lora") == as_stored(expected(tmp_path / "toy" / "baselines" / "ce-lora"))


def test_another_runs_files_are_left_alone(finished_copy, tmp_path):
    other = tmp_path / "board" / "toy" / "ce-lora" / "events.out.tfevents.1.host.1.0"
    other.parent.mkdir(parents=True)
    other.write_bytes(b"theirs")
    with pytest.raises(RunError, match="another run"):
        track(finished_copy, "tensorboard", tmp_path / "board")
    assert [path.name for path in other.parent.iterdir()] == [other.name]


def test_a_place_where_nothing_can_be_written(finished_copy, tmp_path):
    (tmp_path / "board").write_text("a file")
    with pytest.raises(RunError, match="event file"):
        track(finished_copy, "tensorboard", tmp_path / "board")


def test_a_tracker_that_fails_does_not_end_the_run(toy_values, tmp_path):
    told = []

    def listener(event):
        told.append(event)
        if event["event"] == "started":
            (tmp_path / "toy" / "tensorboard").write_text("in the way")

    result = run(make_config(toy_values(trackers=["tensorboard"], rounds=1)), tmp_path / "toy", listener)
    (trouble,) = [event["text"] for event in told if event["event"] == "trouble"]
    assert "event file" in trouble
    assert f"trifed track {tmp_path / 'toy'} --to" in trouble
    assert result.summary["finished"]
    assert "trouble" not in {event["event"] for event in RunFolder.open(result.path).events()}
