"""What `trifed flower init` and `join` write: private keys, TLS throughout, and nothing that cannot work."""

from __future__ import annotations

import json
import os
import subprocess
import time
import tomllib

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_ssh_private_key, load_ssh_public_key
from typer.testing import CliRunner

from trifed.cli.app import app
from trifed.common.errors import ConfigError, RunError
from trifed.deployment.protocol import Reply, Request
from trifed.deployment.release_log import record_release
from trifed.deployment.site_settings import LEFT, read_site_settings

RUN = 'name = "tickets"\nrounds = 2\n[data]\nlabels = ["a", "b"]\nsource = "mine.csv"\ntext = "message"\n'


def call(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture
def server(tmp_path):
    (tmp_path / "run.toml").write_text(RUN)
    told = call("flower", "init", tmp_path / "server", "--run", tmp_path / "run.toml", "--host", "fed.example.org")
    assert told.exit_code == 0, told.output
    return tmp_path / "server"


@pytest.fixture
def site(server, tmp_path):
    (tmp_path / "berlin.csv").write_text("message,label\nhello,a\n")
    told = call(
        "flower", "join", tmp_path / "berlin", "--name", "berlin", "--superlink", "fed.example.org:8443",
        "--ca", server / "ca.pem", "--data", tmp_path / "berlin.csv",
    )  # fmt: skip
    assert told.exit_code == 0, told.output
    return tmp_path / "berlin"


def test_the_certificate_is_signed_and_names_the_server(server):
    made, authority = (
        x509.load_pem_x509_certificate((server / f"{n}.pem").read_bytes()) for n in ("server", "ca")
    )
    made.verify_directly_issued_by(authority)
    names = made.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["fed.example.org", "localhost"]
    assert [str(address) for address in names.get_values_for_type(x509.IPAddress)] == ["127.0.0.1"]
    assert authority.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert not made.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def test_what_is_private_is_readable_by_its_owner_alone(server, site):
    for path in (server, site, server / "ca.key", server / "server.key", site / "berlin.key"):
        assert path.stat().st_mode & 0o077 == 0, path


def test_a_sites_key_is_its_own(site):
    private = load_ssh_private_key((site / "berlin.key").read_bytes(), None)
    public = load_ssh_public_key((site / "berlin.pub").read_bytes())
    assert private.public_key() == public and private.curve.name == "secp384r1"


def test_nothing_is_sent_in_the_open_or_installed_or_told(server, site):
    for script in [*server.glob("*.sh"), *site.glob("*.sh")]:
        text = script.read_text()
        assert "--insecure" not in text
        for switch in (
            "TELEMETRY_ENABLED=0",
            "DISABLE_UPDATE_CHECK=1",
            "DISABLE_RUNTIME_DEPENDENCY_INSTALLATION=1",
        ):
            assert switch in text, script
    start = (server / "start.sh").read_text()
    assert "--enable-supernode-auth" in start and "--ssl-certfile" in start
    assert "--auth-supernode-private-key berlin.key" in (site / "start.sh").read_text()
    connection = tomllib.loads((server / "flwr" / "config.toml").read_text())["superlink"]["tickets"]
    assert connection["insecure"] is False and connection["root-certificates"] == str(server / "ca.pem")


def test_the_servers_own_data_do_not_go_into_the_app(server):
    run = tomllib.loads((server / "app" / "run.toml").read_text())
    assert run["data"]["text"] == "message" and "mine.csv" not in json.dumps(run)


def test_the_sites_settings_are_read_back(site, tmp_path):
    settings = read_site_settings(site / "node.toml")
    assert (settings.name, settings.tell_scores) == ("berlin", False)
    assert settings.data == {"source": str(tmp_path / "berlin.csv")}
    assert settings.folder == site / "kept"


def test_what_left_a_site_is_shown_run_by_run(site):
    folder = site / "kept"
    assert call("flower", "log", site).exit_code == 0
    sent = Reply({"loss": 0.5}, {"upload": b"12345678"})
    for run, number in (("a-1", 1), ("b-2", 7)):
        request = Request("train", {"run": run, "round": number})
        record_release(folder, request, sent, {"upload": ["head.weight"]}, 1.25)
    record_release(folder, Request("gradient", {"run": "b-2"}), Reply(error="not_asked_for"), {}, None)
    table = call("flower", "log", site).output
    assert all(word in table for word in ("a-1", "b-2", "upload", "1.25", "not_asked_for", "16 bytes"))
    lines = call("flower", "log", site, "--run", "b", "--json").output.splitlines()
    assert [json.loads(line)["round"] for line in lines] == [7, 0]
    assert json.loads(lines[0])["parts"] == {"upload": {"bytes": 8, "tensors": ["head.weight"]}}


def test_a_site_leaves_for_good(site, tmp_path):
    told = call("flower", "withdraw", site)
    assert told.exit_code == 0 and "berlin leaves" in told.output
    assert (site / "kept" / LEFT).is_file()
    assert "berlin has left already" in refused(RunError, "withdraw", site)
    assert "no site's folder" in refused(RunError, "withdraw", tmp_path)
    assert "no run here" in refused(RunError, "withdraw", tmp_path, "--client", "berlin")


def refused(kind, *words):
    told = call("flower", *words)
    assert isinstance(told.exception, kind), told.output
    return str(told.exception)


def test_what_cannot_work_is_refused_and_nothing_is_left(server, site, tmp_path):
    init = ["init", tmp_path / "new", "--host", "x"]
    (tmp_path / "bad.toml").write_text("rounds = 0\n")
    assert "rounds" in refused(ConfigError, *init, "--run", tmp_path / "bad.toml")
    (tmp_path / "bad.toml").write_text("rounds = 1\n")
    assert "data.labels: " in refused(ConfigError, *init, "--run", tmp_path / "bad.toml")
    taken = refused(RunError, "init", server, "--host", "x", "--run", tmp_path / "run.toml")
    assert "something is there already" in taken
    join = ["join", tmp_path / "new", "--name", "b", "--ca", server / "ca.pem", "--data", tmp_path / "berlin.csv"]
    assert "expected HOST:PORT" in refused(RunError, *join, "--superlink", "fed.example.org")
    reached = ["--superlink", "fed.example.org:1"]
    renamed = [*join[:3], "a b", *join[4:], *reached]
    assert "name: got 'a b'" in refused(ConfigError, *renamed)
    join[5] = tmp_path / "berlin.csv"
    assert "ca.pem" in refused(RunError, *join, *reached)
    join[-1] = tmp_path / "none.csv"
    assert "expected this site's data" in refused(RunError, *join, "--superlink", "fed.example.org:1")
    assert not (tmp_path / "new").exists()


def test_without_flower(monkeypatch, tmp_path):
    monkeypatch.setattr("trifed.cli.flower.find_spec", lambda name: None)
    told = refused(RunError, "init", tmp_path / "new", "--host", "x", "--run", tmp_path / "run.toml")
    assert "pip install 'trifed[flower]'" in told


FAKE = """#!/bin/sh
echo started >> "$TOLD"
[ "$(wc -l < "$TOLD")" -ge "$ENOUGH" ] || exit 1
exec sleep "$SECONDS_UP"
"""


@pytest.mark.parametrize(("enough", "seconds", "code", "starts"), [(3, 0, 0, 3), (9, 0, 1, 1)])
def test_a_node_that_cannot_start_is_tried_again_for_a_while(site, tmp_path, enough, seconds, code, starts):
    """Twice it fails, then it is there; or, where no time is left, it has failed."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "flower-supernode").write_text(FAKE)
    (tmp_path / "bin" / "flower-supernode").chmod(0o755)
    env = {
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "TOLD": str(tmp_path / "told"), "ENOUGH": str(enough),
        "SECONDS_UP": str(seconds), "RETRY_EVERY": "0", "RETRY_SECONDS": "60" if code == 0 else "0",
    }  # fmt: skip
    done = subprocess.run([site / "start.sh"], env=env, capture_output=True, timeout=30, check=False)
    assert done.returncode == code, done.stderr
    assert len((tmp_path / "told").read_text().splitlines()) == starts


def test_a_node_that_is_ended_is_not_started_again(site, tmp_path):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "flower-supernode").write_text(FAKE)
    (tmp_path / "bin" / "flower-supernode").chmod(0o755)
    for enough, seconds in ((1, 60), (9, 60)):  # while it runs; while the next try is waited for
        told = tmp_path / f"told-{enough}"
        env = {
            "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "TOLD": str(told), "ENOUGH": str(enough),
            "SECONDS_UP": str(seconds), "RETRY_EVERY": "2", "RETRY_SECONDS": "60",
        }  # fmt: skip
        process = subprocess.Popen([site / "start.sh"], env=env)
        while not told.is_file():
            time.sleep(0.05)
        time.sleep(0.3)
        process.terminate()
        process.wait(30)
        assert len(told.read_text().splitlines()) == 1
