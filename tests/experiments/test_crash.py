"""Runs that end early: a full disk, a lost folder, SIGTERM, a kill at the end; and runs that go back."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import tomli_w
from safetensors import SafetensorError

from test_cli_help import call
from trifed import make_config, resume, run
from trifed.common.errors import LockedError, RunError
from trifed.common.lock import held
from trifed.common.stopping import Terminated, stop_on_sigterm, stopped_later
from trifed.experiments.compare import compare
from trifed.experiments.compare_config import CompareConfig
from trifed.federation import client_model, kept_checkpoints, run_folder
from trifed.federation.run_folder import RunFolder

METHOD = "fedavg-lora"


def lasting(folder):
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    return {key: value for key, value in summary.items() if not key.startswith("seconds")}


def kept(folder):
    return kept_checkpoints.kept_rounds(folder)


@pytest.fixture(scope="module")
def five_rounds(toy_values, tmp_path_factory):
    """A finished run of five rounds. Do not write into its folder."""
    return run(make_config(toy_values(method=METHOD, rounds=5)), tmp_path_factory.mktemp("five") / "toy").path


@pytest.fixture
def copy(five_rounds, tmp_path):
    """A copy of that run."""
    return shutil.copytree(five_rounds, tmp_path / "toy")


# -- going back


def test_the_last_three_checkpoints_are_kept_without_a_second_write(five_rounds):
    assert kept(five_rounds) == [3, 4, 5]
    newest = five_rounds / "checkpoints" / "round-0005.safetensors"
    assert newest.samefile(five_rounds / "checkpoint.safetensors")


def test_how_many_are_kept_is_no_part_of_the_runs_identity(toy_values):
    one, other = (make_config(toy_values(keep_checkpoints=count)) for count in (1, 7))
    assert one.run_id() == other.run_id() == make_config(toy_values()).run_id()


def test_only_the_last_one_is_kept_if_so_set(toy_values, tmp_path):
    path = run(make_config(toy_values(method=METHOD, rounds=2, keep_checkpoints=1)), tmp_path / "run").path
    assert kept(path) == [] and RunFolder(path).rounds_done() == 2


@pytest.mark.parametrize("number", [3, 4, 5])
def test_a_run_that_went_back_reaches_the_same_numbers(number, five_rounds, copy):
    heard = []
    resume(copy, heard.append, from_round=number)
    assert [event["round"] for event in heard if event["event"] == "resumed"] == [number]
    assert {e["round"] for e in heard if e["event"] == "trained"} == set(range(number + 1, 6))
    assert lasting(copy) == lasting(five_rounds) and kept(copy) == [3, 4, 5]


def test_going_back_removes_what_came_after(copy):
    kept_checkpoints.go_back(copy, 4)
    assert kept(copy) == [3, 4] and RunFolder(copy).rounds_done() == 4
    assert not (copy / "summary.json").exists()
    assert not list(copy.glob(".*.partial"))


def test_a_damaged_checkpoint_can_be_left(five_rounds, copy):
    (copy / "checkpoint.safetensors").unlink()  # it is a link: the kept one of round 5 stays whole
    (copy / "checkpoint.safetensors").write_bytes(b"nothing")
    (copy / "summary.json").unlink()
    with pytest.raises(RunError):
        resume(copy)
    resume(copy, from_round=4)
    assert lasting(copy) == lasting(five_rounds)


def test_a_round_that_is_not_kept(copy, capsys, monkeypatch):
    said = call(capsys, monkeypatch, "run", "--resume", copy, "--from-round", 1)
    assert said.code == 2 and "3, 4, 5" in said.err.replace("\n", " ")
    assert (copy / "summary.json").is_file() and kept(copy) == [3, 4, 5]
    assert call(capsys, monkeypatch, "run", "--from-round", 1, "--data", "x.csv").code == 2


def test_a_file_system_without_hard_links(toy_values, tmp_path, monkeypatch):
    def refuses(*args):
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refuses)
    path = run(make_config(toy_values(method=METHOD, rounds=2)), tmp_path / "run").path
    assert kept(path) == [1, 2]


# -- the end


@pytest.mark.parametrize("lost", [["summary.json"], ["summary.json", "predictions.json", "clients"]])
def test_a_run_killed_at_its_end_can_be_finished(lost, five_rounds, copy):
    for name in lost:
        shutil.rmtree(copy / name) if (copy / name).is_dir() else (copy / name).unlink()
    resume(copy)
    assert lasting(copy) == lasting(five_rounds)
    assert (copy / "predictions.json").read_bytes() == (five_rounds / "predictions.json").read_bytes()


def test_half_a_configuration_is_no_dead_end(toy_values, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".config.toml.00.partial").touch()
    assert run(make_config(toy_values(method="local", rounds=1)), tmp_path / "run").summary["finished"]


# -- files that cannot be written


@pytest.mark.parametrize(("code", "nth"), [(errno.ENOSPC, 1), (errno.ENOSPC, 4), (errno.EROFS, 3), (errno.EIO, 8)])
def test_a_file_that_cannot_be_written(code, nth, toy_values, tmp_path, capsys, monkeypatch):
    """Whichever file it is: one message, code 2, and the run can be resumed."""
    whole, left = run_folder.whole_file, [nth]
    config = toy_values(method=METHOD, rounds=2)

    def full(target, **more):
        left[0] -= 1
        if not left[0]:
            raise OSError(code, os.strerror(code), str(target))
        return whole(target, **more)

    monkeypatch.chdir(tmp_path)
    Path("my.toml").write_text(tomli_w.dumps(config), encoding="utf-8")
    monkeypatch.setattr(run_folder, "whole_file", full)
    said = call(capsys, monkeypatch, "run", "my.toml")
    assert said.code == 2 and os.strerror(code) in said.err and "Traceback" not in said.err
    again = ("--resume", "runs/toy") if Path("runs/toy/config.toml").is_file() else ("my.toml",)
    assert call(capsys, monkeypatch, "run", *again).code == 0


@pytest.mark.draws
def test_a_disk_that_is_really_full(toy_values, tmp_path, capsys, monkeypatch):
    small = tmp_path / "small"
    small.mkdir()
    mounted = (
        os.geteuid() == 0
        and not subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=300k", "none", small], capture_output=True, check=False
        ).returncode
    )
    if not mounted:
        pytest.skip("needs root and tmpfs")
    try:
        config = tmp_path / "my.toml"
        config.write_text(tomli_w.dumps(toy_values(method=METHOD, rounds=9)), encoding="utf-8")
        said = call(capsys, monkeypatch, "run", config, "--runs", small)
        assert said.code == 2 and "No space left" in said.err
        subprocess.run(["mount", "-o", "remount,size=20m", small], check=True)
        assert call(capsys, monkeypatch, "run", "--resume", small / "toy").code == 0
    finally:
        subprocess.run(["umount", small], check=True)


def test_a_disk_that_is_full_when_the_models_are_written(toy_values, tmp_path, capsys, monkeypatch):
    """PEFT and safetensors write the clients' folders; safetensors has an error of its own."""

    def full(*args, **more):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.chdir(tmp_path)
    Path("my.toml").write_text(tomli_w.dumps(toy_values(method=METHOD, rounds=1)), encoding="utf-8")
    with monkeypatch.context() as patch:
        patch.setattr(client_model, "save_file", full)
        said = call(capsys, monkeypatch, "run", "my.toml")
    assert said.code == 2 and "No space left" in said.err and "trifed run --resume runs/toy" in said.err
    assert not Path("runs/toy/summary.json").exists()
    assert call(capsys, monkeypatch, "run", "--resume", "runs/toy").code == 0


def test_a_folder_that_vanishes_is_not_made_anew(toy_values, tmp_path, capsys, monkeypatch):
    config, runs = tmp_path / "my.toml", tmp_path / "runs"
    config.write_text(tomli_w.dumps(toy_values(method=METHOD, rounds=3)), encoding="utf-8")
    save = RunFolder.save_checkpoint

    def vanishes(folder, number, *args, **more):
        if number == 2:
            folder.path.rename(tmp_path / "elsewhere")
        save(folder, number, *args, **more)

    monkeypatch.setattr(RunFolder, "save_checkpoint", vanishes)
    said = call(capsys, monkeypatch, "run", config, "--runs", runs)
    assert said.code == 2 and "Traceback" not in said.err
    assert not (runs / "toy").exists()
    monkeypatch.setattr(RunFolder, "save_checkpoint", save)
    assert call(capsys, monkeypatch, "run", "--resume", tmp_path / "elsewhere").code == 0


# -- signals


class Signals:
    """A listener that sends this process a signal at the first upload of a round."""

    def __init__(self, number, round_number):
        self.number, self.round = number, round_number

    def __call__(self, event):
        if event["event"] == "trained" and event["round"] == self.round:
            os.kill(os.getpid(), self.number)


@pytest.fixture
def restores_sigterm():
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_sigterm_acts_as_ctrl_c(number, code, toy_values, tmp_path, capsys, monkeypatch, restores_sigterm):
    listener = Signals(number, 2)
    append = RunFolder.append

    def appends(folder, event):
        append(folder, event)
        listener(event)

    monkeypatch.setattr(RunFolder, "append", appends)
    config = tmp_path / "my.toml"
    config.write_text(tomli_w.dumps(toy_values(method=METHOD, rounds=2)), encoding="utf-8")
    said = call(capsys, monkeypatch, "run", config, "--runs", tmp_path)
    assert said.code == code and "--resume" in said.err and "Traceback" not in said.err
    assert not (tmp_path / "toy" / "lock").exists() and RunFolder(tmp_path / "toy").rounds_done() == 1


@pytest.mark.parametrize(("number", "stop"), [(signal.SIGTERM, Terminated), (signal.SIGINT, KeyboardInterrupt)])
def test_a_stop_waits_until_a_block_has_ended(number, stop, restores_sigterm):
    """An exception inside the import of a library of C++ would abort the process; any thread may get a signal."""
    stop_on_sigterm()
    handler, ended, done = signal.getsignal(number), False, threading.Event()
    other = threading.Thread(target=done.wait)
    other.start()
    try:
        with pytest.raises(stop), stopped_later():
            os.kill(os.getpid(), number)
            time.sleep(0.05)
            ended = True
    finally:
        done.set()
        other.join()
    assert ended and signal.getsignal(number) is handler


SITE = """
from trifed.deployment import worker
print("ready", flush=True)
worker.main()
"""


def test_a_sites_process_ends_with_143_and_a_second_one_with_2(tmp_path):
    (tmp_path / "node.toml").write_text('name = "amber"\n[data]\nsource = "amber.csv"\n', encoding="utf-8")

    def start():
        command = [sys.executable, "-c", SITE, str(tmp_path / "node.toml")]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    with start() as first:
        first.stdout.readline()
        while not (tmp_path / "trifed-node" / "worker.socket").exists():
            assert first.poll() is None
        with start() as second:
            assert f"process {first.pid}" in second.communicate()[1] and second.returncode == 2
        first.send_signal(signal.SIGTERM)
        first.communicate()
        assert first.returncode == 143
    assert not (tmp_path / "trifed-node" / "lock").exists()


# -- comparisons


def test_a_comparison_that_is_running_is_refused(toy_values, tmp_path):
    values = {key: value for key, value in toy_values(rounds=1).items() if key not in ("name", "method")}
    config = CompareConfig.model_validate({"name": "rivals", "methods": ["local"], "seeds": [0], "run": values})
    with held(tmp_path / "rivals"), pytest.raises(LockedError):
        compare(config, tmp_path / "rivals")
    assert not (tmp_path / "rivals").exists()
