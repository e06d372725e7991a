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
from trifed.deployment.greeting import greeting
from trifed.deployment.protocol import Reply, Request
from trifed.deployment.worker import LOG, SOCKET, ask_worker, send

pytestmark = pytest.mark.slow

LABELS = ["billing", "delivery", "login"]


def write_settings(path, values, **changes):
    settings = {"name": "amber", "folder": "kept", "idle_seconds": 600, **changes}
    lines = [f"{name} = {json.dumps(value)}" for name, value in settings.items()]
    path.write_text("\n".join([*lines, "[data]", f"source = {json.dumps(values['data']['source'])}", ""]))


def end_workers(path):
    for pid in workers(path):
        os.kill(pid, signal.SIGKILL)
    until_gone(path)


@pytest.fixture(scope="module")
def values(toy_values):
    return toy_values(method="own-prior", rounds=2, data={"labels": LABELS})


@pytest.fixture(scope="module")
def path(values, tmp_path_factory):
    """A site's settings file. Its worker, whose start takes seconds, is shared by all tests that do not end it."""
    path = tmp_path_factory.mktemp("site") / "node.toml"
    write_settings(path, values)
    yield path
    end_workers(path)


@pytest.fixture
def hello(values, request):
    """The greeting of a run of this test's own."""
    run = f"run-{abs(hash(request.node.name))}"
    return greeting(run, make_config(values))


def workers(path):
    """Process numbers of the workers for a node."""
    told = subprocess.run(
        ["pgrep", "-f", f"trifed.deployment.worker {path}"], capture_output=True, text=True, check=False
    )
    return [int(line) for line in told.stdout.split()]


def until_gone(path):
    for _ in range(600):
        if not workers(path):
            return
        time.sleep(0.1)
    raise AssertionError("the worker is still there")


def open_and_train(path, hello):
    about = {"run": hello.facts["run"], "place": 0}
    opened = ask_worker(path, Request("open", about))
    assert opened.error is None
    train = Request("train", {**about, "round": 1, "counts": 0, "asked": 2, "data": opened.facts["data"]})
    return train, ask_worker(path, train)


def test_one_process_answers_and_keeps_to_its_user(path, hello):
    reply = ask_worker(path, hello)
    assert (reply.error, reply.facts["name"]) == (None, "amber")
    first = workers(path)
    assert len(first) == 1
    assert open_and_train(path, hello)[1].parts["upload"]
    assert workers(path) == first
    folder = path.parent / "kept"
    assert (folder / SOCKET).stat().st_mode & 0o077 == 0
    assert folder.stat().st_mode & 0o077 == 0


def test_nobody_waits_longer_than_the_server(path, hello):
    ask_worker(path, hello)
    [pid] = workers(path)
    os.kill(pid, signal.SIGSTOP)
    reply = ask_worker(path, Request("open", {"run": hello.facts["run"], "place": 0, "seconds": 0.5}))
    os.kill(pid, signal.SIGCONT)
    assert reply.error == "unreachable"


def test_killed_while_it_works_it_says_so_and_goes_on_when_it_is_asked_again(path, hello, monkeypatch, caplog):
    ask_worker(path, hello)
    train, one = open_and_train(path, hello)
    [pid] = workers(path)

    def send_and_kill(*message):
        send(*message)
        os.kill(pid, signal.SIGKILL)

    with monkeypatch.context() as patch:
        patch.setattr("trifed.deployment.worker.send", send_and_kill)
        reply = ask_worker(path, train)
    assert reply == Reply(error="unreachable") and LOG in caplog.text
    until_gone(path)
    again = ask_worker(path, train)
    assert again.error is None
    first, second = (load(reply.parts["upload"]) for reply in (one, again))
    assert {name: array.tolist() for name, array in first.items()} == {n: a.tolist() for n, a in second.items()}


def test_settings_that_changed_hold_from_the_next_greeting(path, hello, values):
    ask_worker(path, hello)
    write_settings(path, values, name="basil")
    assert ask_worker(path, hello).facts["name"] == "basil"
    write_settings(path, values)


def test_idle_it_ends_and_comes_again_in_a_deep_folder_too(hello, values, tmp_path):
    """A socket's path has at most some hundred characters."""
    path, deep = tmp_path / "node.toml", tmp_path / ("x" * 60) / ("y" * 60)
    write_settings(path, values, folder=str(deep), idle_seconds=0.5)
    assert ask_worker(path, hello).error is None
    until_gone(path)
    assert not list(tmp_path.rglob(SOCKET))
    assert ask_worker(path, hello).error is None
    until_gone(path)


def test_mistakes_in_the_settings_are_said_at_the_site_alone(tmp_path, caplog):
    (tmp_path / "node.toml").write_text('nam = "amber"\n')
    reply = ask_worker(tmp_path / "node.toml", Request("hello"))
    assert reply == Reply(error="settings_unusable")
    assert str(tmp_path) in caplog.text and "name: missing" in caplog.text
    assert ask_worker(tmp_path / "other.toml", Request("hello")) == reply


def test_who_asks_needs_no_torch():
    code = (
        "import sys, trifed.deployment.worker; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
