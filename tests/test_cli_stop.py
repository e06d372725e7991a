"""Runs in a process of their own: broken off by Ctrl-C or killed and taken up again, and seen in a terminal."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time

import pexpect
import pytest
import tomli_w

from test_cli_help import call, finished_run
from trifed.config.toml_files import read_toml

pytestmark = pytest.mark.slow

ROUNDS = 24
COMMAND = [sys.executable, "-m", "trifed.cli.app", "run"]
PATIENCE = 300
"""Seconds; only a machine that is very busy needs more than a few of them."""


@pytest.fixture
def environment(monkeypatch):
    """Little threading and nothing from the caller's terminal, in this process and those it starts."""
    for name in ("COLUMNS", "FORCE_COLOR", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("TERM", "xterm-256color")


@pytest.fixture(scope="module")
def toml(toy_values, tmp_path_factory):
    path = tmp_path_factory.mktemp("stopping") / "my.toml"
    values = toy_values(rounds=ROUNDS, baselines=["local"], training={"batch_size": 16})
    path.write_text(tomli_w.dumps(values), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def unbroken(toml, tmp_path_factory):
    """The folder of the same run, never broken off."""
    return finished_run(read_toml(toml), tmp_path_factory.mktemp("unbroken") / "toy")


def numbers(folder):
    """All that a run measured, for itself and its baseline; not how long it took."""
    found = {}
    for part in (folder, folder / "baselines" / "local"):
        whole = json.loads((part / "summary.json").read_text(encoding="utf-8"))
        found[part.name] = {key: value for key, value in whole.items() if not key.startswith("seconds")}
        found[f"{part.name} predictions"] = json.loads((part / "predictions.json").read_text(encoding="utf-8"))
    return found


def test_ctrl_c_stops_cleanly_and_resume_reaches_the_same_numbers(
    environment, toml, unbroken, tmp_path, capsys, monkeypatch
):
    runs = tmp_path / "my runs"
    folder = runs / "toy"
    child = in_a_terminal(120, str(toml), "--runs", str(runs))
    child.expect(rf"own-prior (?:[3-9]|\d\d)/{ROUNDS}")  # the display may skip a round that was quick
    child.sendintr()
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 130
    assert "\x1b[?25h" in child.before  # the cursor is back
    assert "Traceback" not in child.before
    assert f"trifed run --resume '{folder}'" in re.sub(r"\r\n", "", child.before)
    assert not (folder / "summary.json").exists()
    said = call(capsys, monkeypatch, "run", "--resume", folder)
    assert said.code == 0
    done = int(re.findall(r"own-prior \(1 of 2\): going on after round (\d+)", said.out)[0])
    assert 2 <= done < ROUNDS
    first = next(line for line in said.out.splitlines() if line.startswith("own-prior  round "))
    assert first.startswith(f"own-prior  round {done + 1}/{ROUNDS}")
    assert numbers(folder) == numbers(unbroken)


def in_a_terminal(columns, *args):
    """`trifed run ARGS` in a pseudo-terminal."""
    return pexpect.spawn(
        COMMAND[0], [*COMMAND[1:], *args], dimensions=(40, columns), encoding="utf-8", timeout=PATIENCE
    )


def wait_for(process, log, text):
    """Wait until a running process has written `text` into a file."""
    deadline = time.monotonic() + PATIENCE
    while not (log.is_file() and text in log.read_text(encoding="utf-8")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_run_killed_in_its_baseline_reaches_the_same_numbers(
    environment, toml, unbroken, tmp_path, capsys, monkeypatch
):
    folder = tmp_path / "toy"
    log = folder / "baselines" / "local" / "events.jsonl"
    process = subprocess.Popen([*COMMAND, str(toml), "--runs", str(tmp_path)], stdout=subprocess.DEVNULL)
    try:
        wait_for(process, log, '"event": "trained", "round": 3')
    finally:
        process.kill()
    assert process.wait(PATIENCE) == -signal.SIGKILL
    with log.open("a", encoding="utf-8") as file:
        file.write('{"event": "tra')  # what a kill in the middle of a line leaves
    said = call(capsys, monkeypatch, "run", "--resume", folder)
    assert said.code == 0
    assert "local (2 of 2): " in said.out
    assert numbers(folder) == numbers(unbroken)


def test_in_a_terminal_one_line_moves_and_is_taken_away(environment, toml, tmp_path):
    child = in_a_terminal(
        80,
        str(toml),
        "--runs",
        str(tmp_path),
        "--name",
        "seen",
        "--rounds",
        "6",
        "--set",
        "baselines=[]",
        "--set",
        "training.epochs=4",
    )
    child.expect(pexpect.EOF)
    child.close()
    seen = child.before
    assert child.exitstatus == 0
    assert "Traceback" not in seen
    assert seen.count("\x1b[?25l") == seen.count("\x1b[?25h") == 1  # the cursor is hidden once, and shown again
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", seen)
    shared_projections = [
        frame.rstrip() for frame in re.split(r"[\r\n]+", plain) if "━ " in frame and "loss" in frame
    ]
    assert shared_projections
    for frame in shared_projections:
        assert len(frame) <= 80
        facts = [r"(?:-:--|\d+:\d\d(?::\d\d)?) +own-prior \d/6", r"loss \d\.\d+", r"acc [\d.-]+", r"[\d.]+ KB"]
        assert re.search("  ".join(facts), frame)
    assert any(re.search(r"KB  (amber|basil|coral)$", frame) for frame in shared_projections)
    ending = plain[plain.rindex("own-prior  round 6/6") :]
    assert "Test accuracy" in ending
    tables = [line for line in ending.splitlines() if set("│┃┏└") & set(line)]
    assert max(map(len, tables)) <= 80
