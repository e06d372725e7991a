"""Nodes of two sites on one machine: each has its own port, and one that is in use is refused in one sentence."""

from __future__ import annotations

import re
import socket
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from trifed.cli.app import app
from trifed.deployment import ports
from trifed.deployment.certificates import write_authority
from trifed.deployment.ports import find_port, is_free, ports_beside


@pytest.fixture
def in_use():
    """A port at which something listens."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield server.getsockname()[1]


@pytest.fixture
def join(tmp_path):
    write_authority(tmp_path, "tickets")
    (tmp_path / "table.csv").write_text("text,label\nhello,a\n")

    def run(name, *words):
        told = CliRunner().invoke(app, [
            "flower", "join", str(tmp_path / name), "--name", name, "--superlink", "x.org:8443",
            "--ca", str(tmp_path / "ca.pem"), "--data", str(tmp_path / "table.csv"), *words,
        ])  # fmt: skip
        assert told.exit_code == 0, told.output
        [port] = re.findall(r"--port (\d+) ", (tmp_path / name / "start.sh").read_text())
        return int(port)

    return run


def test_sites_that_join_on_one_machine_have_different_ports(join):
    first, second = join("berlin"), join("oslo")
    assert first != second and first >= ports.FIRST and is_free(second)
    assert join("paris", "--port", "9999") == 9999


def test_a_port_that_is_in_use_is_passed_over(join, in_use, monkeypatch, tmp_path):
    monkeypatch.setattr("trifed.deployment.folders.find_port", lambda taken: find_port(taken, in_use))
    berlin = join("berlin")
    assert berlin > in_use
    assert ports_beside(tmp_path / "oslo") == {berlin}


def test_without_a_free_port_there_is_none(in_use):
    assert find_port(range(1, 2**16), 2**16 - 3) == 0


@pytest.mark.parametrize("command", ["supernode", "superlink"])
def test_a_node_whose_port_is_in_use_ends_with_one_message(command, in_use):
    pytest.importorskip("flwr")
    start = (
        "import trifed.deployment.ports as p; p.RELEASE_SECONDS = 0\n"
        f"from trifed.deployment.flower_connection import {command}; {command}()"
    )
    done = subprocess.run(
        [sys.executable, "-c", start, "--port", "1", "--insecure", "--port", str(in_use)],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 2 and done.stdout == ""
    [line] = done.stderr.splitlines()
    assert line.startswith("error: ") and str(in_use) in line
    assert is_free(int(re.search(r"start\.sh --port (\d+)$", line)[1]))


def test_a_port_that_is_about_to_be_released_is_waited_for(monkeypatch):
    looks = iter([False, False, True])
    monkeypatch.setattr(ports, "is_free", lambda port, host: next(looks))
    monkeypatch.setattr(ports.time, "sleep", lambda seconds: None)
    ports.refuse_taken_port(["--port", "9094"], "the node")
    assert next(looks, None) is None
    ports.refuse_taken_port(["--superlink", "x.org:8443"], "the node")  # no port is given
