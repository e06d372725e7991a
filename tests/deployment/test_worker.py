"""The process that holds a node's model: started once, private, and no end of it loses what is kept."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from safetensors.numpy import load

from trifed import make_config
from trifed.deployment.coordinator import settings_to_send
from trifed.deployment.protocol import Reply, Request
from trifed.deployment.refusals import RefusalCode
from trifed.deployment.worker import LOG, SOCKET, ask_worker, send

LABELS = ["billing", "delivery", "login"]


@pytest.fixture
def node(toy_values, tmp_path):
    """A node's settings file, and the greeting of a run; its worker is ended afterwards."""
    values = toy_values(method="own-prior", rounds=2, data={"labels": LABELS})
    source = values["data"]["source"]
    text = f'name = "amber"\nfolder = "kept"\nidle_seconds = 60\n[data]\nsource = {json.dumps(source)}\n'
    path = tmp_path / "node.toml"
    path.write_text(text)
    hello = Request("hello", {"run": "run-1", "config": settings_to_send(make_config(values))})
    yield path, hello
    for pid in workers(path):
        os.kill(pid, signal.SIGKILL)


def workers(path):
    """Process numbers of the workers for a node."""
    told = subprocess.run(
        ["pgrep", "-f", f"trifed.deployment.worker {path}"], capture_output=True, text=True, check=False
    )
    return [int(line) for line in told.stdout.split()]


def until_gone(path):
    for _ in range(100):
        if not workers(path):
            return
        time.sleep(0.1)
    raise AssertionError("the worker is still there")


def open_and_train(path, hello, number=1, counts=0):
    about = {"run": "run-1", "place": 0}
    opened = ask_worker(path, Request("open", about))
    assert opened.error is None
    told = {**about, "round": number, "counts": counts, "asked": 2, "data": opened.facts["data"]}
    return ask_worker(path, Request("train", told))


def test_one_process_answers_and_keeps_to_its_user(node):
    path, hello = node
    told = ask_worker(path, hello)
    assert (told.error, told.facts["name"]) == (None, "amber")
    first = workers(path)
    assert len(first) == 1
    assert open_and_train(path, hello).parts["upload"]
    assert workers(path) == first
    folder = path.parent / "kept"
    assert (folder / SOCKET).stat().st_mode & 0o077 == 0
    assert folder.stat().st_mode & 0o077 == 0


def test_killed_in_between_it_comes_again_and_goes_on(node):
    path, hello = node
    ask_worker(path, hello)
    one = open_and_train(path, hello)
    mark = json.loads(next((path.parent / "kept").rglob("data.json")).read_text())["mark"]
    for pid in workers(path):
        os.kill(pid, signal.SIGKILL)
    until_gone(path)
    again = ask_worker(
        path, Request("train", {"run": "run-1", "place": 0, "round": 1, "counts": 0, "asked": 2, "data": mark})
    )
    assert again.error is None
    first, second = (load(reply.parts["upload"]) for reply in (one, again))
    assert {name: array.tolist() for name, array in first.items()} == {n: a.tolist() for n, a in second.items()}


def test_killed_while_it_works_it_says_so(node, monkeypatch, caplog):
    path, hello = node
    ask_worker(path, hello)
    [pid] = workers(path)

    def sends(*message):
        send(*message)
        os.kill(pid, signal.SIGKILL)

    monkeypatch.setattr("trifed.deployment.worker.send", sends)
    told = ask_worker(path, Request("open", {"run": "run-1", "place": 0}))
    assert told == Reply(error=RefusalCode.UNREACHABLE) and LOG in caplog.text


def test_nobody_waits_longer_than_the_server(node):
    path, hello = node
    ask_worker(path, hello)
    [pid] = workers(path)
    os.kill(pid, signal.SIGSTOP)
    told = ask_worker(path, Request("open", {"run": "run-1", "place": 0, "seconds": 0.5}))
    assert told.error == RefusalCode.UNREACHABLE


def test_idle_it_ends_and_comes_again(node):
    path, hello = node
    path.write_text(path.read_text().replace("idle_seconds = 60", "idle_seconds = 0.5"))
    assert ask_worker(path, hello).error is None
    until_gone(path)
    assert not (path.parent / "kept" / SOCKET).exists()
    assert open_and_train(path, hello).error is None


def test_settings_that_changed_hold_from_the_next_greeting(node):
    path, hello = node
    ask_worker(path, hello)
    path.write_text(path.read_text().replace('"amber"', '"basil"'))
    assert ask_worker(path, hello).facts["name"] == "basil"


def test_mistakes_in_the_settings_are_said_at_the_site_alone(tmp_path, caplog):
    (tmp_path / "node.toml").write_text('nam = "amber"\n')
    told = ask_worker(tmp_path / "node.toml", Request("hello"))
    assert told == Reply(error=RefusalCode.SETTINGS_UNUSABLE)
    assert str(tmp_path) in caplog.text and "name: missing" in caplog.text
    assert ask_worker(tmp_path / "other.toml", Request("hello")) == told


def test_who_asks_needs_no_torch():
    code = (
        "import sys, trifed.deployment.worker; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_deep_folders_have_no_trouble_with_sockets(node, toy_values, tmp_path):
    path, hello = node
    deep = tmp_path / ("x" * 60) / ("y" * 60)
    path.write_text(path.read_text().replace('"kept"', json.dumps(str(deep))))
    assert ask_worker(path, hello).error is None
