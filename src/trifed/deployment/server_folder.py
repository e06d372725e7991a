"""The server's folder: Flower's app with the run, TLS, and scripts that start, register and run."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

from trifed.common.dict_merge import deep_merge
from trifed.common.errors import ConfigError, RunError
from trifed.common.files import is_free, whole_folder
from trifed.config.run import RunConfig, make_config, to_toml
from trifed.config.settings import UNLABELLED
from trifed.config.toml_files import read_toml
from trifed.deployment.certificates import fingerprint, write_authority, write_server
from trifed.deployment.protocol import LEFT_AT_HOME

HERE = ("localhost", "127.0.0.1")
"""The server's own processes reach it there."""
AT_THE_CLIENTS = "(each client's own)"
QUIET = (
    "export FLWR_TELEMETRY_ENABLED=0 FLWR_DISABLE_UPDATE_CHECK=1 FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION=1"
)
"""Nothing is told to Flower's makers, asked of them, or installed while a run is under way."""


def read_run(path: Path) -> RunConfig:
    """A run's settings for sites that bring their own data.

    Raises:
        ConfigError: mistakes, or no labels where the task learns labels.
    """
    ours = {"data": {"source": AT_THE_CLIENTS, "clients": {"split": "files"}}}
    given = read_toml(path)
    if isinstance(given.get("data"), dict):  # a simulated run's data are not what the sites have
        given["data"] = {name: value for name, value in given["data"].items() if name not in LEFT_AT_HOME}
    values: dict[str, Any] = deep_merge(given, ours)
    config = make_config(values, str(path))
    if config.task not in UNLABELLED and not config.data.labels:
        problem = (
            'data.labels: missing; name all labels, as labels = ["no", "yes"]: no site sees those of the others'
        )
        raise ConfigError([problem], str(path))
    return config


def write_server_folder(folder: Path, run: Path, host: str, port: int) -> str:
    """Write a new server's folder; returns the fingerprint of its authority.

    Raises:
        ConfigError: see `read_run`.
        RunError: something is there already, or nothing can be written.
    """
    config = read_run(run)
    if not is_free(folder):
        raise RunError(f"{folder}: something is there already; give another folder, or remove it first")
    try:
        with whole_folder(folder) as partial:
            partial.chmod(0o700)
            write_authority(partial, config.name)
            write_server(partial, config.name, [host, *HERE])
            _write_app(partial / "app", config, folder.absolute() / "runs" / config.name)
            _write_scripts(partial, folder.absolute(), config.name, host, port)
    except OSError as error:
        raise RunError(f"{folder}: cannot be written ({error.strerror or error}); give another folder") from error
    return fingerprint(folder / "ca.pem")


def _write_app(folder: Path, config: RunConfig, kept: Path) -> None:
    package = re.sub(r"\W", "_", config.name.lower())
    package = f"run_{package}" if not package[0].isalpha() else package
    (folder / package).mkdir(parents=True)
    _write(folder / "pyproject.toml", PROJECT.format(name=package.replace("_", "-"), package=package, kept=kept))
    _write(folder / "run.toml", to_toml(config))
    _write(folder / package / "__init__.py", '"""A run between sites."""\n')
    _write(folder / package / "server.py", SERVER)
    _write(folder / package / "client.py", CLIENT)


def _write_scripts(folder: Path, final: Path, name: str, host: str, port: int) -> None:
    (folder / "keys").mkdir()
    (folder / "flwr").mkdir()
    _write(folder / "flwr" / "config.toml", CONNECTION.format(name=name, port=port, authority=final / "ca.pem"))
    for script, text in (
        ("start.sh", START),
        ("register.sh", REGISTER),
        ("run.sh", RUN),
        ("simulate.sh", SIMULATE),
    ):
        _write(folder / script, text.format(quiet=QUIET, name=shlex.quote(name), port=port))
        (folder / script).chmod(0o755)
    _write(folder / "README.md", README.format(name=name, host=host, port=port))


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


PROJECT = """[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "{name}"
version = "1.0.0"
description = "A run of trifed between sites"
license = "Apache-2.0"
dependencies = []  # trifed is installed at every site already; nothing is installed while a run is under way

[tool.hatch.build.targets.wheel]
packages = ["."]

[tool.flwr.app]
publisher = "trifed"

[tool.flwr.app.components]
serverapp = "{package}.server:app"
clientapp = "{package}.client:app"

[tool.flwr.app.config]
folder = "{kept}"
sites = ""  # for simulate.sh alone: a folder with a folder for every site
"""
SERVER = '''"""Leads the run of `run.toml`."""

from pathlib import Path

from trifed.deployment.flower import server_app

app = server_app(Path(__file__).parents[1] / "run.toml")
'''
CLIENT = '''"""Answers for one site; its settings are named when its node is started."""

from trifed.deployment.flower import client_app

app = client_app()
'''
CONNECTION = """[superlink]
default = "{name}"

[superlink.{name}]
address = "127.0.0.1:{port}"
root-certificates = "{authority}"
insecure = false

[superlink.simulation]
address = ":local:"
"""
HEAD = """#!/bin/sh
cd "$(dirname "$0")" || exit 1
export FLWR_HOME="$PWD/flwr"
{quiet}
"""
START = (
    HEAD
    + """# TLS; and nobody takes part whose key was not registered.
exec flower-superlink --ssl-ca-certfile ca.pem --ssl-certfile server.pem --ssl-keyfile server.key \\
    --enable-supernode-auth --disable-runtime-dependency-installation --database superlink.db \\
    --host 0.0.0.0 --port {port} "$@"
"""
)
REGISTER = (
    HEAD
    + """# Every key in keys/ that came from a site; once is enough for each.
for key in keys/*.pub; do
    [ -e "$key" ] || {{ echo "keys/: no keys there yet; put the sites' .pub files there" >&2; exit 2; }}
    flwr supernode register "$key" {name} || exit 1
    mkdir -p keys/registered && mv "$key" keys/registered/
done
"""
)
RUN = (
    HEAD
    + """# Begins the run, or goes on with it from its last whole round.
exec flwr run app {name} --stream "$@"
"""
)
SIMULATE = (
    HEAD
    + """# The same app with the sites of one folder, all on this machine, by Flower's simulation.
# Needs pip install 'flwr[simulation]'.
case "$1" in /*) sites="$1" ;; *) sites="$OLDPWD/$1" ;; esac
ls "$sites"/*/node.toml > /dev/null 2>&1 || {{
    echo "usage: ./simulate.sh SITES; in it a folder with a node.toml for every site" >&2
    exit 2
}}
count=$(ls -d "$sites"/*/node.toml | wc -l)
exec flwr run app simulation --stream --federation-config "num-supernodes=$count" \\
    --run-config "sites=\\"$sites\\" folder=\\"$PWD/runs/{name}-simulated\\""
"""
)
README = """# {name}: the server

    ./start.sh          the SuperLink, at {host}:{port}; leave it running
    ./register.sh       let the sites in whose public keys lie in keys/
    ./run.sh            begin the run, or go on with it
    ./simulate.sh SITES the same with folders of sites on this machine, by Flower's simulation

`ca.pem` goes to every site. `ca.key` signs servers of this federation and is needed again only for a new
certificate: keep it elsewhere. Nothing else of this folder leaves the machine. What comes of the run is in
runs/{name}.
"""
