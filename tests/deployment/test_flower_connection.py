"""Flower's own commands with other defaults: kept connections, short headers, fewer looks for messages."""

from __future__ import annotations

import inspect
import re
import subprocess
import time
from importlib.metadata import entry_points

import pytest

pytest.importorskip("flwr")
import httpx
import uvicorn
from cryptography.hazmat.primitives.serialization import load_ssh_public_key
from flwr.supercore.primitives.asymmetric import uses_nist_ec_curve
from flwr.supernode import start_client_internal

from trifed.deployment import flower_connection
from trifed.deployment.certificates import write_authority
from trifed.deployment.flower_connection import KEEP, LONGEST, LOOK, KeptClient, Waiting
from trifed.deployment.folders import write_server_folder, write_site_folder

ECHO = '#!/bin/sh\n{ echo "${0##*/}"; /usr/bin/env; } > "$TOLD"\n'


def test_the_longer_a_node_has_waited_the_later_it_looks(monkeypatch):
    slept = []
    monkeypatch.setattr(time, "sleep", slept.append)
    waiting = Waiting()
    for _ in range(12):
        waiting.sleep(LOOK)
    assert slept[:4] == [LOOK] * 4 and slept[-1] == LONGEST
    for number in range(1, 12):
        assert slept[number] <= max(LOOK, sum(slept[:number]) / 3)
    waiting.sleep(0.5)  # a message came
    waiting.sleep(LOOK)
    assert slept[-2:] == [0.5, LOOK]


def test_requests_leave_out_what_the_server_does_not_use():
    sent = []

    def answer(request):
        sent.append(dict(request.headers))
        return httpx.Response(200)

    with KeptClient(transport=httpx.MockTransport(answer), follow_redirects=True) as client:
        client.post("https://fed.example.org:8443/v1", content=b"12", headers={"flwr-signature": "s"})
    assert sent == [{
        "host": "fed.example.org:8443", "accept": "*/*", "content-length": "2", "flwr-signature": "s",
    }]  # fmt: skip


def test_a_node_runs_with_the_changed_defaults(monkeypatch):
    monkeypatch.setattr(httpx, "Client", httpx.Client)
    monkeypatch.setattr(start_client_internal, "time", time)
    monkeypatch.setattr(flower_connection, "flower_supernode", lambda: seen.append(httpx.Client))
    seen = []
    flower_connection.supernode()
    assert seen == [KeptClient]
    assert isinstance(start_client_internal.time.sleep.__self__, Waiting)


def test_flowers_node_still_waits_as_expected():
    """If this fails, Flower has changed its loop: look at `Waiting` again."""
    source = inspect.getsource(start_client_internal)
    assert set(re.findall(r"\btime\.\w+(?:\([\d.]+\))?", source)) == {f"time.sleep({LOOK})", "time.sleep(0.5)"}


def test_a_superlink_keeps_connections_open(monkeypatch):
    given = []
    monkeypatch.setattr(uvicorn, "run", lambda **settings: given.append(settings))
    monkeypatch.setattr(flower_connection, "flower_superlink", lambda: uvicorn.run(app=1))
    flower_connection.superlink()
    assert given == [{"app": 1, "timeout_keep_alive": KEEP}]


def test_flower_accepts_the_keys_and_their_curve(tmp_path):
    site = _site(tmp_path)
    key = load_ssh_public_key((site / "berlin.pub").read_bytes())
    assert uses_nist_ec_curve(key) and key.curve.key_size == 256


def _site(folder):
    (folder / "authority").mkdir()
    write_authority(folder / "authority", "tickets")
    (folder / "berlin.csv").write_text("text,label\nhello,a\n")
    write_site_folder(
        folder / "site", "berlin", "x.org:8443", folder / "authority/ca.pem", folder / "berlin.csv", 9094
    )
    return folder / "site"


def _server(folder):
    (folder / "run.toml").write_text('name = "tickets"\n[data]\nlabels = ["a", "b"]\n')
    write_server_folder(folder / "server", folder / "run.toml", "127.0.0.1", 8443)
    return folder / "server"


@pytest.mark.parametrize(("make", "command"), [(_site, "supernode"), (_server, "superlink")])
@pytest.mark.parametrize("there", [True, False])
def test_start_runs_flowers_command_where_this_versions_is_not_installed(make, command, there, tmp_path):
    (tmp_path / "bin").mkdir()
    names = [f"flower-{command}", "flower-superexec", "trifed-clientapp", *[f"trifed-{command}"] * there]
    for name in names:
        (tmp_path / "bin" / name).write_text(ECHO)
        (tmp_path / "bin" / name).chmod(0o755)
    env = {"PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin", "TOLD": str(tmp_path / "told")}
    subprocess.run([make(tmp_path) / "start.sh"], env=env, timeout=30, check=True)
    name, *variables = (tmp_path / "told").read_text().splitlines()
    assert name == f"{'trifed' if there else 'flower'}-{command}"
    single = {f"FLWR_PRIVATE_MAX_CONCURRENT_OBJ_{what}=1" for what in ("PULLS", "PUSHES")}
    assert single <= set(variables) or command == "superlink"


def test_the_installed_commands_lead_here():
    """Where the package is installed in this version."""
    found = {e.name: e.load() for e in entry_points(group="console_scripts") if e.name.startswith("trifed-super")}
    expected = {"trifed-supernode": flower_connection.supernode, "trifed-superlink": flower_connection.superlink}
    assert found in ({}, expected)
