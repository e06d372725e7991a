"""One process at a time writes to a run's folder."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys

import pytest

from test_cli_help import call
from trifed import make_config, resume, run
from trifed.common.errors import LockedError, RunError
from trifed.common.lock import LOCK, held, is_held
from trifed.federation.run_folder import RunFolder

HOLDER = """
import sys, time
from pathlib import Path
from trifed.common.lock import held
with held(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder():
    """`holder(folder)`: another process that holds a folder."""
    started = []

    def start(folder):
        process = subprocess.Popen([sys.executable, "-c", HOLDER, str(folder)], stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_the_error_names_process_and_host_and_nothing_changes(holder, tmp_path):
    other = holder(tmp_path)
    before = content(tmp_path)
    with pytest.raises(LockedError) as refused, held(tmp_path):
        pass
    assert f"process {other.pid} on {socket.gethostname()}" in str(refused.value)
    assert content(tmp_path) == before


def test_whether_a_folder_is_held_can_be_asked_without_a_change(holder, tmp_path):
    assert not is_held(tmp_path) and not is_held(tmp_path / "none") and content(tmp_path) == {}
    other = holder(tmp_path)
    before = content(tmp_path)
    assert is_held(tmp_path) and content(tmp_path) == before
    other.kill()
    other.wait()
    assert (tmp_path / LOCK).is_file() and not is_held(tmp_path)
    with held(tmp_path):
        assert is_held(tmp_path)
    assert not is_held(tmp_path)


def test_the_lock_of_a_killed_process_is_free(holder, tmp_path):
    other = holder(tmp_path)
    other.send_signal(signal.SIGKILL)
    other.wait()
    assert (tmp_path / LOCK).is_file()
    with held(tmp_path):
        assert str(os.getpid()) in (tmp_path / LOCK).read_text(encoding="utf-8")
    assert not (tmp_path / LOCK).exists()


def test_a_folder_with_a_lock_and_half_a_file_holds_no_run(tmp_path):
    (tmp_path / LOCK).write_text("process 1 on gone\n", encoding="utf-8")
    (tmp_path / ".config.toml.0123456789abcdef.partial").write_text("name", encoding="utf-8")
    RunFolder.refuse_existing(tmp_path)
    (tmp_path / "config.toml").touch()
    with pytest.raises(RunError):
        RunFolder.refuse_existing(tmp_path)


def test_a_copy_of_a_held_folder_is_free(holder, tmp_path):
    (tmp_path / "run").mkdir()
    holder(tmp_path / "run")
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / LOCK).write_bytes((tmp_path / "run" / LOCK).read_bytes())
    with held(tmp_path / "copy"):
        pass


def test_a_second_run_or_resume_is_refused(holder, toy_values, tmp_path, finished):
    config = make_config(toy_values(method="local", rounds=1))
    holder(tmp_path / "new")
    with pytest.raises(LockedError):
        run(config, tmp_path / "new")
    assert set(content(tmp_path / "new")) == {LOCK}
    done = run(config, tmp_path / "run").path
    (done / "summary.json").unlink()
    holder(done)
    before = content(done)
    with pytest.raises(LockedError):
        resume(done)
    assert content(done) == before


def test_the_command_ends_with_code_2(holder, toy_values, tmp_path, capsys, monkeypatch):
    done = run(make_config(toy_values(method="local", rounds=1)), tmp_path / "run").path
    (done / "summary.json").unlink()
    other = holder(done)
    said = call(capsys, monkeypatch, "run", "--resume", done)
    assert said.code == 2 and str(other.pid) in said.err and "Traceback" not in said.err
