"""`trifed doctor` on a server's and a site's folder, as `trifed flower init` and `join` write them."""

from __future__ import annotations

import shutil
import socket
from pathlib import Path

import pytest
from safetensors.torch import save_file
from test_doctor import content, cut_off, edited, mend, states, wrong
from typer.testing import CliRunner

from trifed.cli.app import app
from trifed.deployment import certificates
from trifed.deployment.protocol import Reply, Request
from trifed.deployment.release_log import record_release
from trifed.deployment.site_store import SiteStore
from trifed.reports.doctor import diagnose

pytest.importorskip("flwr", reason="the flower extra is not installed")

RUN = 'name = "tickets"\nrounds = 2\n[data]\nlabels = ["a", "b"]\n'


def flower(*words):
    told = CliRunner().invoke(app, ["flower", *map(str, words)])
    assert told.exit_code == 0, told.output


@pytest.fixture
def free():
    """A port that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]


@pytest.fixture
def server(tmp_path, free):
    (tmp_path / "run.toml").write_text(RUN)
    flower("init", tmp_path / "server", "--run", tmp_path / "run.toml", "--host", "localhost", "--port", free)
    return tmp_path / "server"


@pytest.fixture
def site(server, tmp_path, free):
    (tmp_path / "berlin.csv").write_text("message,label\nhello,a\n")
    flower(
        "join", tmp_path / "site", "--name", "berlin", "--superlink", f"localhost:{free}", "--port", free,
        "--ca", server / "ca.pem", "--data", tmp_path / "berlin.csv",
    )  # fmt: skip
    return tmp_path / "site"


# -- the server's folder


def test_a_new_servers_folder_has_no_problem(server):
    before = content(server)
    assert wrong(server) == {}
    assert content(server) == before
    assert {"settings", "ca.pem", "server.pem", "signature", "server.key", "ca.key", "paths", "port"} <= set(
        states(diagnose(server))
    )


def another(server, name):
    """A key or certificate of another authority."""
    other = server.parent / "other"
    other.mkdir()
    certificates.write_authority(other, "other")
    certificates.write_server(other, "other", ["localhost"])
    shutil.copy(other / name, server / name)


SERVER_FAULTS = {
    "an open key": (lambda s: (s / "server.key").chmod(0o640), {"server.key": "problem"}),
    "an authority's open key": (lambda s: (s / "ca.key").chmod(0o644), {"ca.key": "problem"}),
    "an authority's key kept elsewhere": (lambda s: (s / "ca.key").unlink(), {}),
    "no key": (lambda s: (s / "server.key").unlink(), {"server.key": "problem"}),
    "no key in the file": (lambda s: (s / "server.key").write_text("secret"), {"server.key": "problem"}),
    "another key": (lambda s: another(s, "server.key"), {"server.key": "problem"}),
    "no certificate": (lambda s: (s / "server.pem").unlink(), {"server.pem": "problem"}),
    "no certificate in the file": (lambda s: (s / "ca.pem").write_text("no"), {"ca.pem": "problem"}),
    "another authority": (lambda s: another(s, "ca.pem"), {"signature": "problem", "ca.key": "problem"}),
    "bad settings": (lambda s: edited(s / "app/run.toml", "rounds = 2", "rounds = 0"), {"settings": "problem"}),
    "no connection": (lambda s: (s / "flwr/config.toml").unlink(), {"paths": "problem"}),
    "a temporary folder": (lambda s: (s / f".runs.{'0a' * 8}.partial").mkdir(), {"temporary files": "warning"}),
}


@pytest.mark.parametrize("name", SERVER_FAULTS)
def test_a_fault_of_a_servers_folder_is_found(server, name):
    fault, expected = SERVER_FAULTS[name]
    fault(server)
    assert wrong(server) == expected


@pytest.mark.parametrize(("days", "state"), [(0, "problem"), (29, "warning"), (31, "ok")])
def test_a_certificate_that_expires_is_found(tmp_path, monkeypatch, free, days, state):
    monkeypatch.setattr(certificates, "DAYS", days)
    (tmp_path / "run.toml").write_text(RUN)
    flower("init", tmp_path / "server", "--run", tmp_path / "run.toml", "--host", "localhost", "--port", free)
    assert states(diagnose(tmp_path / "server"))["server.pem"] == state


def test_a_folder_that_was_moved_is_found(server):
    server.rename(server.with_name("moved"))
    assert wrong(server.with_name("moved")) == {"paths": "problem"}


def test_a_port_in_use_is_found(server, free):
    with socket.socket() as other:
        other.bind(("", free))
        other.listen()
        assert wrong(server) == {"port": "warning"}


def test_every_run_of_a_server_is_checked(server, kept_runs):
    shutil.copytree(kept_runs / "sites-finished" / "server", server / "runs" / "kept")
    assert wrong(server) == {}
    (server / "runs/kept/events.jsonl").unlink()
    assert wrong(server) == {"runs/kept: checkpoint": "problem"}
    cut_off(server / "runs/kept/checkpoint.safetensors")
    assert wrong(server) == {"files": "problem"}


def test_no_result_holds_a_secret(server, site):
    for folder, key in ((server, "server.key"), (site, "berlin.key")):
        secret = (folder / key).read_text().splitlines()[1]
        (folder / key).write_text("secret " + secret)
        told = str(diagnose(folder))
        assert secret not in told and "private key" in told


# -- a site's folder

NEW = {"server": "warning", "sites": "warning"}
"""What a new site's folder lacks: its server, and the list of the sites' keys."""


def test_a_new_sites_folder_lacks_its_server_and_the_list_of_keys(site, free):
    before = content(site)
    assert wrong(site) == NEW
    assert content(site) == before
    with socket.socket() as listening:
        listening.bind(("localhost", free))
        listening.listen()
        assert states(diagnose(site))["server"] == "ok"


SITE_FAULTS = {
    "an open key": (lambda s: (s / "berlin.key").chmod(0o644), {"berlin.key": "problem"}),
    "no key": (lambda s: (s / "berlin.key").unlink(), {"berlin.key": "problem"}),
    "another key": (
        lambda s: (certificates.write_node_keys(s, "other"), (s / "other.key").rename(s / "berlin.key")),
        {"berlin.key": "problem"},
    ),
    "no public key": (lambda s: (s / "berlin.pub").unlink(), {}),
    "a damaged public key": (lambda s: (s / "berlin.pub").write_text("no"), {"berlin.key": "problem"}),
    "no authority": (lambda s: (s / "ca.pem").unlink(), {"ca.pem": "problem"}),
    "bad settings": (lambda s: edited(s / "node.toml", "tell_scores =", "tell_all ="), {"settings": "problem"}),
    "no data": (lambda s: (s.parent / "berlin.csv").unlink(), {"data": "problem"}),
    "damaged data": (lambda s: (s.parent / "berlin.csv").write_text("a,b\n1\n"), {"data": "problem"}),
    "no source": (lambda s: edited(s / "node.toml", "\nsource =", "\ntext ="), {"data": "problem"}),
    "a file in the place of the folder": (lambda s: (s / "kept").touch(), {"kept runs": "problem"}),
    "the server's app is run": (
        lambda s: (s / "start.sh").write_text((s / "start.sh").read_text().replace("trifed-clientapp", "x")),
        {"app": "problem"},
    ),
    "it has left": (lambda s: flower("withdraw", s), {"withdrawal": "warning"}),
    "sealed runs alone, and no list": (
        lambda s: edited(s / "node.toml", "# sealed_only = false", "sealed_only = true"),
        {"sites": "problem"},
    ),
    "a list without it": (lambda s: trusting(s, "paris"), {"sites": "problem"}),
    "a list with another key of it": (lambda s: trusting(s, "berlin"), {"sites": "problem"}),
    "no list in the file": (lambda s: (s / "sites.pub").write_text("no"), {"sites": "problem"}),
}


def trusting(site, name, own=False):
    """Write a list with a new key of another site, and with the site's own."""
    certificates.write_node_keys(site.parent, name)
    lines = (site.parent / f"{name}.pub").read_text() + (site / "berlin.pub").read_text() * own
    (site / "sites.pub").write_text(lines)


def greeted(site, run, error=None, sealed=False):
    """Write down that a run greeted the site, as its process does."""
    folder = site / "kept"
    record_release(folder, Request("hello", {"run": run}), Reply(error=error), {}, None)
    if error is None:
        SiteStore.at(folder / run, {"sealing": {"on": sealed}})


def test_a_site_without_a_list_says_what_to_do_unless_its_run_is_open(site):
    """Without a list a sealed run is refused, and nobody may look at a check that was skipped."""
    said = mend(site, "sites")
    assert f"trifed flower trust {site} sites.pub" in said and "not sealed" in said
    greeted(site, "open-1")
    assert states(diagnose(site))["sites"] == "skipped"
    greeted(site, "sealed-1", "no_site_keys")
    assert states(diagnose(site))["sites"] == "problem" and "trifed flower trust" in mend(site, "sites")
    greeted(site, "sealed-2", sealed=True)  # the list was there, and is not any more
    assert states(diagnose(site))["sites"] == "warning"
    greeted(site, "another-1", "method_not_allowed")
    assert states(diagnose(site))["sites"] == "warning"


def test_the_sites_of_sealed_sums_are_named(site):
    trusting(site, "paris", own=True)
    (found,) = (check for check in diagnose(site) if check.name == "sites")
    assert found.state == "ok" and "2 sites: berlin, paris." in found.found


@pytest.mark.parametrize("name", SITE_FAULTS)
def test_a_fault_of_a_sites_folder_is_found(site, name):
    fault, expected = SITE_FAULTS[name]
    fault(site)
    assert wrong(site) == ({"server": "warning"} if "settings" in expected else NEW) | expected


def test_data_in_a_folder_are_read_when_a_run_begins(site):
    (site.parent / "tables").mkdir()
    edited(site / "node.toml", "berlin.csv", "tables")
    assert wrong(site) == NEW


@pytest.fixture
def keeping(site, kept_runs):
    """A site's folder with kept runs: one that is finished, one with a ledger."""
    (site / "kept").mkdir(0o700)
    for name in ("sites-finished", "sites-private"):
        shutil.copytree(kept_runs / name / "sites" / "clinic", site / "kept", dirs_exist_ok=True)
    (site / "kept").chmod(0o700)
    return site


def test_every_run_of_a_site_is_checked(keeping):
    assert wrong(keeping) == NEW
    checks = states(diagnose(keeping))
    for name in ("state", "model", "ledger"):
        assert any(check.endswith(f": {name}") for check in checks), name


KEPT_FAULTS = {
    "half a state": ("*/state.safetensors", cut_off, "files"),
    "no settings": ("*/run.json", lambda path: path.write_text("{"), "files"),
    "half a model": ("*/model/adapter_model.safetensors", cut_off, "files"),
    "another state": ("*/state.safetensors", lambda path: save_file({}, path), "state"),
    "no head": ("*/model/head.safetensors", Path.unlink, "model"),
    "no ledger": ("*/privacy/ledger.json", lambda path: path.write_text("{}"), "ledger"),
}


@pytest.mark.parametrize("name", KEPT_FAULTS)
def test_a_fault_of_a_kept_run_is_found(keeping, name):
    pattern, fault, check = KEPT_FAULTS[name]
    path = next((keeping / "kept").glob(pattern))
    fault(path)
    run = path.relative_to(keeping / "kept").parts[0]
    name = check if check == "files" else f"{run}: {check}"
    assert wrong(keeping) == {**NEW, name: "problem"}
    assert mend(keeping, name)


def test_the_workers_lock(keeping):
    (keeping / "kept" / "lock").touch()
    assert states(diagnose(keeping))["lock"] == "ok"


@pytest.mark.parametrize(
    ("before", "after", "named"),
    [
        ("quorum = 1", "quorum = 3", "deployment.quorum"),
        ("[sealing]\non = false", "[sealing]\non = true", "sealing.at_least"),
    ],
)
def test_a_run_that_no_round_can_have_enough_sites_for_is_found_until_it_has_begun(server, before, after, named):
    """`deployment.clients` is 2."""
    edited(server / "app/run.toml", before, after)
    [check] = [each for each in diagnose(server) if each.name == "sites of a round"]
    assert check.state == "problem" and check.found.startswith(f"{named}: got 3, expected at most 2")
    (server / "runs/tickets").mkdir(parents=True)
    (server / "runs/tickets/federation.json").write_text("{}")
    assert "sites of a round" not in states(diagnose(server))


# -- the list of the sites of a sealed run


@pytest.fixture
def sealed_server(tmp_path, free):
    (tmp_path / "run.toml").write_text(f"{RUN}[deployment]\nclients = 3\n")
    flower("init", tmp_path / "server", "--run", tmp_path / "run.toml", "--host", "localhost", "--port", free)
    return tmp_path / "server"


def keys_of(server, *names):
    for name in names:
        certificates.write_node_keys(server.parent, name)
        shutil.copy(server.parent / f"{name}.pub", server / "keys")


def of_the_list(server):
    return [(check.state, check.found) for check in diagnose(server) if check.name == "sites"]


def test_a_server_says_whether_its_run_is_sealed_and_whether_its_list_is_right(sealed_server):
    [(state, found)] = of_the_list(sealed_server)
    assert state == "warning" and "sites.pub" in found
    keys_of(sealed_server, "berlin", "oslo")
    flower("sites", sealed_server)
    [(state, found)] = of_the_list(sealed_server)
    assert state == "warning" and "waits for 3 sites, and the list has 2: berlin, oslo." in found
    keys_of(sealed_server, "paris")
    [(state, found)] = of_the_list(sealed_server)
    assert state == "warning" and found.endswith("keys/registered/: paris (new).")
    flower("sites", sealed_server)
    [(state, found)] = of_the_list(sealed_server)
    assert state == "ok" and "3 sites: berlin, oslo, paris." in found
    (sealed_server / "sites.pub").write_text("no")
    assert of_the_list(sealed_server)[0][0] == "problem"


def test_of_an_open_run_a_server_says_that_it_is_not_sealed(server):
    [(state, found)] = of_the_list(server)
    assert state == "skipped" and "not sealed" in found
