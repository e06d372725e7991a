"""`trifed doctor` on a run's folder: every check with a good and a broken case."""

from __future__ import annotations

import fcntl
import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from test_doctor import cut_off, mend, states, wrong

from trifed.federation.run_folder import RunFolder
from trifed.reports.doctor import diagnose


@pytest.mark.parametrize("path", ["runs/finished", "sites-finished/server"])
def test_a_finished_run_has_no_problem(kept, path):
    assert wrong(path) == {}


@pytest.mark.parametrize("path", ["runs/stopped", "runs/private", "sites-stopped/server", "sites-private/server"])
def test_a_stopped_run_can_be_continued(kept, path):
    assert wrong(path) == {"result": "warning"}
    assert ("--resume" if path.startswith("runs") else "run.sh") in mend(path, "result")


def test_a_run_that_was_just_made_has_no_problem(finished):
    assert wrong(finished("ce-lora").path) == {}


def lines(change):
    def fault(run):
        text = (run / "events.jsonl").read_text()
        (run / "events.jsonl").write_text("".join(change(text.splitlines(keepends=True))))

    return fault


def checkpoint(**changes):
    def fault(run):
        path, known = run / "checkpoint.safetensors", RunFolder(run).facts()
        save_file(load_file(path), path, {"trifed": json.dumps({**known, **changes})})

    return fault


STOPPED, FINISHED = "runs/stopped", "runs/finished"
LEDGER, CLIENT = "privacy/energy/ledger.json", "clients/energy"
RUN_FAULTS = {
    "bad settings": (STOPPED, lambda run: (run / "config.toml").write_text("rounds = 0\n"), "settings"),
    "no log": (STOPPED, lambda run: (run / "events.jsonl").unlink(), "checkpoint"),
    "no JSON in the log": (STOPPED, lines(lambda log: [*log[:3], "}{\n", *log[4:]]), "event log"),
    "rounds in disorder": (
        STOPPED,
        lines(lambda log: [*log[:7], *log[10:16], *log[7:10]]),
        "checkpoint",
    ),
    "a short log": (STOPPED, lines(lambda log: log[:8]), "checkpoint"),
    "no checkpoint": (STOPPED, lambda run: (run / "checkpoint.safetensors").unlink(), "checkpoint"),
    "half a checkpoint": (STOPPED, lambda run: cut_off(run / "checkpoint.safetensors"), "files"),
    "another round": (STOPPED, checkpoint(round=1), "checkpoint"),
    "too few bytes": (STOPPED, checkpoint(events_bytes=700), "checkpoint"),
    "no steps": (STOPPED, checkpoint(steps=None), "checkpoint"),
    "half a matrix": (STOPPED, lambda run: cut_off(run / "matrices" / "round-0001.safetensors"), "files"),
    "no JSON": (STOPPED, lambda run: (run / "split.json").write_text("{"), "files"),
    "a temporary file": (
        STOPPED,
        lambda run: (run / f".a.{'0a' * 8}.partial").touch(),
        "temporary files",
    ),
    "a damaged ledger": ("runs/private", lambda run: (run / LEDGER).write_text("{}"), "ledger"),
    "no client": (FINISHED, lambda run: shutil.rmtree(run / CLIENT), "clients"),
    "no head": (FINISHED, lambda run: (run / CLIENT / "head.safetensors").unlink(), "clients"),
    "no facts": (
        FINISHED,
        lambda run: (run / CLIENT / "classifier.json").write_text("{}"),
        "clients",
    ),
    "no result": (FINISHED, lambda run: (run / "summary.json").write_text('{"clients": 1}'), "result"),
    "a baseline's client": (
        FINISHED,
        lambda run: shutil.rmtree(run / "baselines/ce-lora" / CLIENT),
        "baselines/ce-lora: clients",
    ),
}


@pytest.mark.parametrize("name", RUN_FAULTS)
def test_a_fault_of_a_run_is_found(kept, name):
    path, fault, check = RUN_FAULTS[name]
    assert wrong(path).get(check, "ok") == "ok"
    fault(Path(path))
    assert wrong(path)[check] == ("warning" if check == "temporary files" else "problem")


def test_a_run_in_its_first_round_needs_no_checkpoint(kept):
    (Path(STOPPED) / "checkpoint.safetensors").unlink()
    lines(lambda log: log[:8])(Path(STOPPED))
    assert wrong(STOPPED) == {"result": "warning"}
    (Path(STOPPED) / "events.jsonl").unlink()
    assert wrong(STOPPED) == {"result": "warning"}


def test_a_lock_that_another_process_holds_is_found(kept):
    path = Path("sites-stopped/server/lock")
    path.touch()
    assert states(diagnose(path.parent))["lock"] == "ok"
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # of another open file, as another process would hold it
        assert wrong(path.parent)["lock"] == "warning"
