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
    assert private.public_key() == public and private.curve.name == "secp256r1"


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
    assert "node.toml" in refused(RunError, "log", site / "kept")
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
    (tmp_path / "bad.toml").write_text(RUN + "[client_settings.berlin]\nsteps = 1\n")
    assert "node.toml" in refused(ConfigError, *init, "--run", tmp_path / "bad.toml")
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
    assert "pip install '.[flower]'" in told


HOSTS = [
    "$(touch pwned)",
    "a;b",
    "a b",
    "`x`",
    "a\nb",
    'a"b',
    "a'b",
    "-a",
    "",
    "fe80::1%$(x)",
    "ä.de",
    "a..b",
    "a" * 254,
]


@pytest.mark.parametrize("host", HOSTS)
def test_a_host_that_is_none_is_refused(server, tmp_path, host):
    assert "--host" in refused(RunError, "init", tmp_path / "new", "--host", host, "--run", tmp_path / "run.toml")
    (tmp_path / "berlin.csv").touch()
    join = ["join", tmp_path / "new", "--name", "b", "--ca", server / "ca.pem", "--data", tmp_path / "berlin.csv"]
    assert "--superlink" in refused(RunError, *join, "--superlink", f"{host}:1")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("superlink", ["x:0", "x:65536", "x:٣", "x:1;a", "x:", "x:000001", "[::1:1"])
def test_a_port_that_is_none_is_refused(server, tmp_path, superlink):
    (tmp_path / "berlin.csv").touch()
    join = ["join", tmp_path / "new", "--name", "b", "--ca", server / "ca.pem", "--data", tmp_path / "berlin.csv"]
    assert "--superlink" in refused(RunError, *join, "--superlink", superlink)


@pytest.mark.parametrize("host", ["localhost", "10.0.0.1", "::1", "fed_1.example.org", "a-b"])
def test_host_names_and_addresses_are_taken(host, tmp_path):
    (tmp_path / "run.toml").write_text(RUN)
    told = call("flower", "init", tmp_path / "new", "--host", host, "--run", tmp_path / "run.toml")
    assert told.exit_code == 0, told.output
    (tmp_path / "berlin.csv").touch()
    superlink = f"[{host}]:1" if ":" in host else f"{host}:1"
    join = ["join", tmp_path / "site", "--name", "b", "--ca", tmp_path / "new" / "ca.pem"]
    told = call("flower", *join, "--data", tmp_path / "berlin.csv", "--superlink", superlink)
    assert told.exit_code == 0, told.output


@pytest.mark.parametrize("name", ["a\nb", "it's", "a\x1b[2Jb"])
def test_a_folder_that_flower_cannot_read_is_refused(tmp_path, name):
    (tmp_path / "run.toml").write_text(RUN)
    new = ["init", tmp_path / name, "--host", "x", "--run", tmp_path / "run.toml"]
    assert "Flower cannot read" in refused(RunError, *new)


@pytest.mark.parametrize("name", ["default", "simulation"])
def test_a_name_that_flower_uses_itself_is_refused(tmp_path, name):
    (tmp_path / "run.toml").write_text(RUN.replace("tickets", name))
    assert "name: " in refused(ConfigError, "init", tmp_path / "a", "--host", "x", "--run", tmp_path / "run.toml")


ECHO = """#!/bin/sh
for word in "$@"; do printf '%s\\n' "$word" >> "$TOLD"; done
"""
HOSTILE = 'a "b" $(touch pwned) `touch pwned` \\n ; 😀'


def test_a_path_is_given_to_flower_as_it_is(tmp_path):
    """Whatever stands in a path: nothing of it is run, and Flower and TOML read the same path."""
    from flwr.common.config import parse_config_args

    home = tmp_path / HOSTILE
    (home / "bin").mkdir(parents=True)
    (home / "run.toml").write_text(RUN.replace("tickets", "a.b"))
    (home / "berlin.csv").write_text("message,label\nhello,a\n")
    told = call("flower", "init", home / "server", "--run", home / "run.toml", "--host", "fed.example.org")
    assert told.exit_code == 0, told.output
    join = ["--ca", home / "server" / "ca.pem", "--data", home / "berlin.csv", "--superlink", "x.org:8443"]
    told = call("flower", "join", home / "sites" / "berlin", "--name", "berlin", *join)
    assert told.exit_code == 0, told.output
    links = tomllib.loads((home / "server" / "flwr" / "config.toml").read_text())["superlink"]
    assert links["a.b"]["root-certificates"] == str(home / "server" / "ca.pem") and links["default"] == "a.b"
    project = tomllib.loads((home / "server" / "app" / "pyproject.toml").read_text())
    kept = project["tool"]["flwr"]["app"]["config"]["folder"]
    assert kept == str(home / "server" / "runs" / "a.b")
    site = home / "sites" / "berlin"
    assert read_site_settings(site / "node.toml").data == {"source": str(home / "berlin.csv")}
    scripts = {
        site / "start.sh": {"node": str(site / "node.toml")},
        home / "server" / "simulate.sh": {"sites": str(home / "sites"), "folder": f"{kept}-simulated"},
    }
    commands(tmp_path, ECHO)
    for script, expected in scripts.items():
        out = tmp_path / f"{script.stem}.txt"
        env = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "TOLD": str(out)}
        sites = [home / "sites"] if script.stem == "simulate" else []
        subprocess.run([script, *sites], env=env, timeout=30, check=True, cwd=tmp_path)
        words = out.read_text().splitlines()
        flag = "--node-config" if script.stem == "start" else "--run-config"
        assert parse_config_args([words[words.index(flag) + 1]]) == expected
    assert not list(tmp_path.rglob("pwned"))


def test_a_site_whose_folder_was_moved_to_where_flower_cannot_read_it_says_so(site, tmp_path):
    moved = site.rename(tmp_path / "it's")
    done = subprocess.run([moved / "start.sh"], capture_output=True, timeout=30, check=False)
    assert done.returncode == 2 and b"move this folder" in done.stderr


def commands(folder, script):
    """Write one script under the names of all commands that start.sh and simulate.sh need."""
    folder.mkdir(exist_ok=True)
    for name in ("flower-supernode", "flower-superexec", "trifed-clientapp", "flwr"):
        (folder / name).write_text(script)
        (folder / name).chmod(0o755)


def test_a_node_finds_no_command_but_flowers_and_the_installed_app(site, tmp_path):
    """So whatever Flower starts for a message, the app of the server is not run."""
    commands(tmp_path / "bin", '#!/bin/sh\necho "$PATH" > "$TOLD"\n')
    env = {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "TOLD": str(tmp_path / "told")}
    subprocess.run([site / "start.sh"], env=env, timeout=30, check=True)
    assert (tmp_path / "told").read_text().strip() == str(site / "bin")
    found = {path.name: path.resolve().name for path in (site / "bin").iterdir()}
    assert found == {"flower-superexec": "flower-superexec", "flwr-clientapp": "trifed-clientapp"}


def test_a_node_that_is_not_admitted_says_what_to_look_at(site, tmp_path):
    """Flower alone says 'Failed to activate SuperNode'."""
    commands(tmp_path / "bin", "#!/bin/sh\nexit 1\n")
    env = {"PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin", "RETRY_SECONDS": "0"}
    done = subprocess.run([site / "start.sh"], env=env, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 1 and "register.sh" in done.stderr and f'trifed doctor "{site}"' in done.stderr


def test_a_node_without_the_installed_app_does_not_start(site, tmp_path):
    commands(tmp_path / "bin", "#!/bin/sh\ntouch started\n")
    (tmp_path / "bin" / "trifed-clientapp").unlink()
    env = {"PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin"}
    done = subprocess.run([site / "start.sh"], env=env, capture_output=True, timeout=30, check=False)
    assert done.returncode == 2 and b"trifed-clientapp" in done.stderr and not (site / "started").exists()


@pytest.mark.parametrize(
    ("script", "words", "code"),
    [
        ("mkdir -p runs/tickets; touch runs/tickets/summary.json", [], 0),
        ("mkdir -p runs/tickets", [], 1),  # flwr ends with 0 although the run failed
        ("exit 3", [], 3),
        ("", ["--run-config", "folder='elsewhere'"], 0),
    ],
)
def test_a_run_that_failed_ends_with_a_code(server, tmp_path, script, words, code):
    commands(tmp_path / "bin", f"#!/bin/sh\n{script}\n")
    env = {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    done = subprocess.run([server / "run.sh", *words], env=env, capture_output=True, timeout=30, check=False)
    assert done.returncode == code and (b"summary.json" in done.stderr) == (code == 1)


FAKE = """#!/bin/sh
PATH="$TRIFED_PATH"
echo started >> "$TOLD"
[ "$(wc -l < "$TOLD")" -ge "$ENOUGH" ] || exit 1
exec sleep "$SECONDS_UP"
"""


@pytest.mark.parametrize(("enough", "seconds", "code", "starts"), [(3, 0, 0, 3), (9, 0, 1, 1)])
def test_a_node_that_cannot_start_is_tried_again_for_a_while(site, tmp_path, enough, seconds, code, starts):
    """Twice it fails, then it is there; or, where no time is left, it has failed."""
    commands(tmp_path / "bin", FAKE)
    env = {
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "TOLD": str(tmp_path / "told"), "ENOUGH": str(enough),
        "SECONDS_UP": str(seconds), "RETRY_EVERY": "0", "RETRY_SECONDS": "60" if code == 0 else "0",
    }  # fmt: skip
    done = subprocess.run([site / "start.sh"], env=env, capture_output=True, timeout=30, check=False)
    assert done.returncode == code, done.stderr
    assert len((tmp_path / "told").read_text().splitlines()) == starts


def test_a_node_that_is_ended_is_not_started_again(site, tmp_path):
    commands(tmp_path / "bin", FAKE)
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
