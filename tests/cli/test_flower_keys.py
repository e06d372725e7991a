"""`trifed flower sites` at the server and `trust` at the sites: the list, what changed in it, what is stored."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from trifed.cli.app import app
from trifed.common.errors import RunError
from trifed.deployment.certificates import write_node_keys
from trifed.deployment.site_keys import key_fingerprint, read_site_keys

pytest.importorskip("flwr", reason="the flower extra is not installed")

NAMES = ("berlin", "paris", "rome")
HEX = r"(?:[0-9a-f]{2}:){31}[0-9a-f]{2}"


def call(*words, answer=None):
    return CliRunner().invoke(app, ["flower", *map(str, words)], input=answer, env={"COLUMNS": "200"})


def refused(*words):
    error = call(*words).exception
    assert isinstance(error, RunError)
    return str(error)


@pytest.fixture
def folder(tmp_path):
    """A server's folder, and three sites' beside it, whose keys it has."""
    (tmp_path / "run.toml").write_text('name = "tickets"\n[data]\nlabels = ["a", "b"]\n')
    (tmp_path / "t.csv").write_text("message,label\nhello,a\n")
    told = call("init", tmp_path / "server", "--run", tmp_path / "run.toml", "--host", "localhost")
    assert told.exit_code == 0, told.output
    for name in NAMES:
        told = call(
            "join", tmp_path / name, "--name", name, "--superlink", "localhost:8443",
            "--ca", tmp_path / "server/ca.pem", "--data", tmp_path / "t.csv",
        )  # fmt: skip
        assert told.exit_code == 0, told.output
        (tmp_path / "server/keys" / f"{name}.pub").write_bytes((tmp_path / name / f"{name}.pub").read_bytes())
    return tmp_path


@pytest.mark.parametrize("sealed", [False, True])
def test_of_an_open_run_the_list_is_said_to_be_of_no_use(folder, sealed):
    path = folder / "server/app/run.toml"
    path.write_text(path.read_text().replace("[sealing]\non = false", f"[sealing]\non = {str(sealed).lower()}"))
    told = call("sites", folder / "server")
    assert told.exit_code == 0 and ("only a sealed run needs the list" in told.output) != sealed


def test_join_says_the_fingerprint_of_its_key(folder):
    told = call(
        "join", folder / "oslo", "--name", "oslo", "--superlink", "localhost:8443",
        "--ca", folder / "server/ca.pem", "--data", folder / "t.csv",
    )  # fmt: skip
    key = read_site_keys(folder / "oslo/oslo.pub").keys["oslo"]
    assert key_fingerprint(key) in told.output and "trifed flower trust" in told.output


def test_all_sides_see_the_same_fingerprints(folder):
    made = call("sites", folder / "server")
    assert made.exit_code == 0, made.output
    listed = folder / "server/sites.pub"
    shown = re.findall(HEX, made.output)
    keys = read_site_keys(listed)
    assert shown == [*map(key_fingerprint, keys.keys.values()), keys.fingerprint] and list(keys.keys) == [*NAMES]
    for name in NAMES:
        told = call("trust", folder / name, listed, answer="y\n")
        assert told.exit_code == 0, told.output
        assert re.findall(HEX, told.output) == shown and "this site" in told.output
        assert (folder / name / "sites.pub").read_bytes() == listed.read_bytes()


def test_the_commands_of_the_page_work_as_they_stand(folder, monkeypatch):
    page = (Path(__file__).resolve().parents[2] / "docs" / "secure-aggregation.md").read_text(encoding="utf-8")
    server, trust = (shlex.split(line)[2:] for line in re.findall("^trifed flower .*$", page, re.MULTILINE))
    monkeypatch.chdir(folder)
    (folder / "berlin").rename("site")
    assert call(*server).exit_code == 0
    (folder / "server/sites.pub").rename("sites.pub")
    assert call(*trust, answer="y\n").exit_code == 0
    assert (folder / "site/sites.pub").is_file()


def test_what_changed_is_shown_and_the_earlier_list_stays_without_consent(folder):
    listed, site = folder / "server/sites.pub", folder / "berlin"
    call("sites", folder / "server")
    assert call("trust", site, listed, "--yes").exit_code == 0
    before = (site / "sites.pub").read_bytes()
    (folder / "server/keys/paris.pub").unlink()
    (folder / "server/keys/rome.pub").unlink()
    for name in ("oslo", "rome"):
        write_node_keys(folder, name)
        (folder / f"{name}.pub").rename(folder / "server/keys" / f"{name}.pub")
    for command in (("sites", folder / "server"), ("trust", site, listed)):
        told = call(*command, answer="n\n").output
        assert re.search(r"oslo .* new ", told) and re.search(r"rome .* other key ", told)
        assert "removed: paris" in told
    assert call("trust", site, listed, answer="\n").exit_code == 1
    assert (site / "sites.pub").read_bytes() == before
    assert "--yes" in refused("trust", site, listed)  # nobody answers
    assert call("trust", site, listed, "--yes").exit_code == 0
    assert (site / "sites.pub").read_bytes() == listed.read_bytes() != before
    assert call("trust", site, listed).exit_code == 0  # the same list: nothing to ask
    (site / "sites.pub").unlink()
    assert "\n  sealed_only = true\n" in call("trust", site, listed, "--yes").output
    (site / "sites.pub").unlink()
    settings = (site / "node.toml").read_text()
    (site / "node.toml").write_text(f"sealed_only = true\n{settings}")
    assert "sealed_only" not in call("trust", site, listed, "--yes").output
    (site / "sites.pub").write_text("damaged")
    assert call("trust", site, listed, "--yes").exit_code == 0
    assert (site / "sites.pub").read_bytes() == listed.read_bytes()


def test_ctrl_c_leaves_the_earlier_list(folder):
    listed, site = folder / "server/sites.pub", folder / "berlin"
    call("sites", folder / "server")
    (site / "sites.pub").write_bytes((site / "berlin.pub").read_bytes())
    command = [sys.executable, "-c", "from trifed.cli.app import main; main()", "flower", "trust", site, listed]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe) as process:
        told = b""
        while b"[y/N]" not in told and (more := os.read(process.stdout.fileno(), 4096)):
            told += more
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
        assert b"Traceback" not in process.stderr.read()
    assert (site / "sites.pub").read_bytes() == (site / "berlin.pub").read_bytes()


def test_mistakes_are_refused(folder):
    server, site, listed = folder / "server", folder / "berlin", folder / "server/sites.pub"
    assert "app/run.toml" in refused("sites", site)
    assert "node.toml" in refused("trust", server, listed)
    assert "cannot be read" in refused("trust", site, listed)
    (server / "keys/berlin.pub").unlink()
    call("sites", server)
    assert "'berlin' is not in the list" in refused("trust", site, listed)
    write_node_keys(folder, "berlin")
    (folder / "berlin.pub").rename(server / "keys/berlin.pub")
    call("sites", server)
    assert "another key" in refused("trust", site, listed)
    assert not (site / "sites.pub").exists()
    for path in (server / "keys").glob("*.pub"):
        path.unlink()
    before = listed.read_bytes()
    assert "no keys" in refused("sites", server)
    assert listed.read_bytes() == before
