"""New folders for runs between sites by Flower: the server's, and a site's.

The server's folder has Flower's app with the run, TLS certificates, and scripts that start, register and run. A
site's folder has its key, the server's authority, the site's settings, and a script that starts its node.
"""

from __future__ import annotations

import ipaddress
import re
import shlex
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import tomli_w

from trifed.common.dict_merge import deep_merge
from trifed.common.errors import ConfigError, RunError
from trifed.common.files import is_free, whole_folder
from trifed.config.run import RunConfig, make_config, to_toml
from trifed.config.settings import NAMED_LABELS
from trifed.config.toml_files import read_toml
from trifed.deployment.certificates import fingerprint, write_authority, write_node_keys, write_server
from trifed.deployment.protocol import AT_THE_CLIENTS, LEFT_AT_HOME
from trifed.deployment.site_settings import site_settings

HERE = ("localhost", "127.0.0.1")
"""Hosts at which the server's own processes reach it."""
HOST_NAME = re.compile(
    r"(?=.{1,253}\Z)[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?(\.[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?)*"
)
FLOWERS_NAMES = ("default", "simulation")
"""Names that have another meaning among Flower's connections."""
QUIET = (
    "export FLWR_TELEMETRY_ENABLED=0 FLWR_DISABLE_UPDATE_CHECK=1 FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION=1"
)
"""Flower sends no usage data, looks for no update, and installs nothing during a run."""


def read_run(path: Path) -> RunConfig:
    """Return a run's settings for sites that bring their own data.

    Raises:
        ConfigError: There are mistakes, no labels although the task learns labels, or settings of single clients.
    """
    values = read_toml(path)
    if isinstance(values.get("data"), dict):  # a simulated run's data are not what the sites have
        values["data"] = {name: value for name, value in values["data"].items() if name not in LEFT_AT_HOME}
    config = make_config(
        deep_merge(values, {"data": {"source": AT_THE_CLIENTS, "clients": {"split": "files"}}}), str(path)
    )
    if config.adapter.start is not None:
        raise ConfigError(
            [f"adapter.start: got '{config.adapter.start}', but sites have no files of the server; leave it out"],
            str(path),
        )
    if config.task in NAMED_LABELS and not config.data.labels:
        raise ConfigError(
            ['data.labels: missing; name all labels, as labels = ["no", "yes"]: no site sees those of the others'],
            str(path),
        )
    if config.client_settings:
        raise ConfigError(
            ["client_settings: leave them out; a site has its own in the table [training] of its node.toml"],
            str(path),
        )
    return config


@contextmanager
def _new_folder(folder: Path) -> Iterator[Path]:
    """Yield a private folder, which becomes `folder` at the end of the block.

    Raises:
        RunError: Something is there already, Flower cannot read the path, or nothing can be written.
    """
    if not is_free(folder):
        raise RunError(f"{folder}: something is there already; give another folder, or remove it first")
    wrong = sorted({letter for letter in str(folder.absolute()) if letter in "'\x7f" or letter < " "})
    if wrong:
        raise RunError(
            f"{str(folder)!r}: the path has {', '.join(map(ascii, wrong))} in it, which Flower cannot read; "
            f"give a folder without it"
        )
    try:
        with whole_folder(folder) as partial:
            partial.chmod(0o700)
            yield partial
    except OSError as error:
        raise RunError(f"{folder}: cannot be written ({error.strerror or error}); give another folder") from error


def _check_host(host: str, flag: str) -> None:
    """Raise `RunError` for what is neither a host name nor an IP address; it is written into scripts."""
    try:
        ipaddress.ip_address(host if "%" not in host else "")  # any text may follow a %
    except ValueError:
        if not HOST_NAME.fullmatch(host):
            raise RunError(
                f"{flag}: got {host!r}, expected a host name of letters, digits, '-' and '.', or an IP address"
            ) from None


def write_server_folder(folder: Path, run: Path, host: str, port: int) -> str:
    """Write a new server's folder; return the fingerprint of its authority.

    Raises:
        ConfigError: See `read_run`; or a name that Flower uses itself.
        RunError: The host or the folder cannot be used, or nothing can be written.
    """
    config, final = read_run(run), folder.absolute()
    _check_host(host, "--host")
    if config.name in FLOWERS_NAMES:
        raise ConfigError([f"name: got '{config.name}', which Flower uses itself; give another"], str(run))
    connection = {
        "address": f"127.0.0.1:{port}", "root-certificates": str(final / "ca.pem"), "insecure": False,
    }  # fmt: skip
    links = {"default": config.name, config.name: connection, "simulation": {"address": ":local:"}}
    with _new_folder(folder) as partial:
        write_authority(partial, config.name)
        write_server(partial, config.name, [host, *HERE])
        _write_app(partial / "app", config, final / "runs" / config.name)
        _write(partial / "flwr/config.toml", "{text}", text=tomli_w.dumps({"superlink": links}))
        for script, text in SCRIPTS.items():
            _write(partial / script, text, quiet=QUIET, check=PLAIN_PATH, name=shlex.quote(config.name), port=port)
        _write(partial / "README.md", README, name=config.name, host=host, port=port)
        (partial / "keys").mkdir()
    return fingerprint(folder / "ca.pem")


def _write_app(folder: Path, config: RunConfig, kept: Path) -> None:
    package = re.sub(r"\W", "_", config.name.lower())
    package = f"run_{package}" if not package[0].isalpha() else package
    _write(
        folder / "pyproject.toml",
        PROJECT,
        name=package.replace("_", "-"),
        package=package,
        folder=_toml("folder", kept),
    )
    _write(folder / "run.toml", "{run}", run=to_toml(config))
    _write(folder / package / "__init__.py", '"""A run between sites."""\n')
    _write(folder / package / "server.py", SERVER)
    _write(folder / package / "client.py", CLIENT)


def write_site_folder(folder: Path, name: str, superlink: str, authority: Path, data: Path, port: int) -> None:
    """Write a new site's folder. `superlink`: HOST:PORT; `authority`: the server's ca.pem; `port`: a local one.

    Raises:
        ConfigError: The name cannot be used.
        RunError: Something is there already, another argument cannot be used, or nothing can be written.
    """
    for path, what in ((authority, "the server's ca.pem"), (data, "this site's data")):
        if not path.exists():
            raise RunError(f"{path}: no such file; expected {what}")
    host, _, number = superlink.rpartition(":")
    if not (re.fullmatch("[1-9][0-9]{0,4}", number) and int(number) < 2**16):
        raise RunError(f"--superlink: got {superlink!r}, expected HOST:PORT, with a port from 1 to 65535")
    _check_host(host[1:-1] if host.startswith("[") and host.endswith("]") else host, "--superlink")
    fingerprint(authority)  # before anything is written: is it a certificate?
    source = str(data.absolute())
    site_settings({"name": name, "data": {"source": source}}, "--name")
    with _new_folder(folder) as partial:
        shutil.copyfile(authority, partial / "ca.pem")
        write_node_keys(partial, name)
        _write(partial / "node.toml", NODE, name=name, source=_toml("source", source))
        quoted = {"superlink": shlex.quote(superlink), "name": shlex.quote(name)}
        _write(partial / "start.sh", SITE_START, quiet=QUIET, check=PLAIN_PATH, port=port, **quoted)


def _toml(key: str, value: object) -> str:
    """Return `key = "value"` as TOML."""
    return tomli_w.dumps({key: str(value)}).strip()


def _write(path: Path, template: str, **values: object) -> None:
    """Write a file from a template, into a folder that is made if needed; a script can be executed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(template.format(**values), encoding="utf-8")
    if path.suffix == ".sh":
        path.chmod(0o755)


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
{folder}
sites = ""  # for simulate.sh alone: a folder with a folder for every site
from-round = ""  # given to run.sh: the round to whose end an unfinished run goes back
"""
SERVER = '''"""Lead the run of `run.toml`."""

from pathlib import Path

from trifed.deployment.flower import server_app

app = server_app(Path(__file__).parents[1] / "run.toml")
'''
CLIENT = '''"""Answer for one site; its node is started with the path of the site's settings."""

from trifed.deployment.flower import client_app

app = client_app()
'''
HEAD = """#!/bin/sh
cd "$(dirname "$0")" || exit 1
export FLWR_HOME="$PWD/flwr"
{quiet}
"""
PLAIN_PATH = """\
case "$PWD" in *"'"*) echo "$PWD: Flower cannot read a path with ' in it; move this folder" >&2; exit 2 ;; esac"""
"""For scripts that give Flower a path between single quotes, where TOML interprets nothing but them."""
SCRIPTS = {
    "start.sh": HEAD
    + """# The server uses TLS, and accepts only nodes whose keys were registered.
# trifed-superlink is Flower's command with connections that stay open.
superlink="$(command -v trifed-superlink || echo flower-superlink)"
exec "$superlink" --ssl-ca-certfile ca.pem --ssl-certfile server.pem --ssl-keyfile server.key \\
    --enable-supernode-auth --disable-runtime-dependency-installation --database superlink.db \\
    --host 0.0.0.0 --port {port} "$@"
""",
    "register.sh": HEAD
    + """# Register every key in keys/ that a site has sent. Each key is registered once.
for key in keys/*.pub; do
    [ -e "$key" ] || {{ echo "keys/: no keys there yet; put the sites' .pub files there" >&2; exit 2; }}
    flwr supernode register "$key" {name} || exit 1
    mkdir -p keys/registered && mv "$key" keys/registered/
done
""",
    "run.sh": HEAD
    + """# Begin the run, or continue it after its last whole round. To go back to the end of round 3 and continue
# from there: ./run.sh --run-config from-round=3
exec flwr run app {name} --stream "$@"
""",
    "simulate.sh": HEAD
    + """# Run the same app with the sites of one folder, all on this machine, by Flower's simulation.
# Needs pip install 'flwr[simulation]'.
{check}
case "$1" in /*) sites="$1" ;; *) sites="$OLDPWD/$1" ;; esac
case "$sites" in *"'"*) echo "$sites: Flower cannot read a path with ' in it" >&2; exit 2 ;; esac
ls "$sites"/*/node.toml > /dev/null 2>&1 || {{
    echo "usage: ./simulate.sh SITES; in it a folder with a node.toml for every site" >&2
    exit 2
}}
count=$(ls -d "$sites"/*/node.toml | wc -l)
exec flwr run app simulation --stream --federation-config "num-supernodes=$count" \\
    --run-config "sites='$sites' folder='$PWD/runs/{name}-simulated'"
""",
}
"""The server's scripts."""
README = """# {name}: the server

    ./start.sh          start the SuperLink at {host}:{port}; leave it running
    ./register.sh       admit the sites whose public keys are in keys/
    ./run.sh            begin the run, or continue it; with --run-config from-round=3: go back to round 3 first
    ./simulate.sh SITES run it with folders of sites on this machine, by Flower's simulation

Give `ca.pem` to every site. `ca.key` signs servers of this federation and is needed again only for a new
certificate: keep it on another machine. Nothing else of this folder leaves this machine. The results of the run
are in runs/{name}.
"""
NODE = """# Settings of this site alone. The server gets only the name, and the scores if tell_scores is true.
name = "{name}"
folder = "kept"          # Adapters and state of every run. Whoever can read this folder has this site's model.
# model = "/models/base" # Folder of the base model at this site, if it differs from the run's.
# device = "cuda:1"      # Device to train on.
tell_scores = false      # true: report accuracy and loss on held-out data to the server.
# columns = ["message", "queue"]  # Columns that a run may read. Otherwise: those that the first run reads.
# labels = ["fault", "login"]     # Labels that a run has to name. Otherwise: those that the first run names.
# gradients = false      # true: send an exact gradient of the data before round 1 if the run's method asks for
#                        # it. Single examples can be reconstructed from a gradient.
# raw_summaries = false  # true: send means of the data's features as they are if the run's method asks for them,
#                        # as ce-lora-authors does, in place of features projected to 64 dimensions.
# tell_examples = true   # false: do not report the number of examples. This site then weighs as one example in
#                        # every average, and methods that send label counts without noise are refused.
# at_least = 3           # Take part only in rounds with at least so many sites, this one included.
# others_at_most = 0.5   # Largest share, 0 to 1, of received values in the tensors that training starts from.
# base = "…"             # SHA-256 of the base model's weights. Any other base model is refused.
# may_go_back = false    # true: go back to an earlier round if the server's operator does, for example to leave a
#                        # poisoned one. With [privacy] repeated rounds count in the ledger again.
# keep_rounds = 3        # Number of rounds before the last one whose states are kept, so that it can go back.
# worse_by = 0.5         # Reject received values if the validation loss is higher by more than this (nats).

[data]
{source}
# text = "message"       # Names of the columns, if they differ from the run's.
# label = "queue"

# [training]             # This site's own training settings, where they differ from the run's: learning_rate,
# batch_size = 8         # batch_size, epochs or steps, weight_decay, clip_norm.

# [privacy]              # Checks before an upload leaves this site. The run cannot change them.
# few_tokens = "warn"    # Uploads that stand on few tokens: "refuse" (the default), "warn" or "allow".
"""
SITE_START = (
    HEAD
    + """{check}
# The node finds two commands alone, and trifed-clientapp takes the place of Flower's own: it runs the trifed that
# is installed here. The app that the server sends is not run.
for command in flower-supernode flower-superexec trifed-clientapp; do
    command -v "$command" > /dev/null || {{
        echo "PATH: $command is not there; activate the environment that trifed is installed in" >&2
        exit 2
    }}
done
# trifed-supernode is Flower's node with fewer bytes between it and the server, on one connection.
supernode="$(command -v trifed-supernode || command -v flower-supernode)"
export FLWR_PRIVATE_MAX_CONCURRENT_OBJ_PULLS=1 FLWR_PRIVATE_MAX_CONCURRENT_OBJ_PUSHES=1
mkdir -p bin
ln -sf "$(command -v flower-superexec)" bin/flower-superexec
ln -sf "$(command -v trifed-clientapp)" bin/flwr-clientapp
export TRIFED_PATH="$PATH"
# A killed node counts as connected for up to a minute, and cannot start again before: repeat the start.
until=$(($(date +%s) + ${{RETRY_SECONDS:-120}}))
trap 'stop=1; kill -TERM "$node" 2>/dev/null' INT TERM
while [ -z "$stop" ]; do
    # The server must show a certificate that ca.pem has signed, and it recognises this node by its key.
    PATH="$PWD/bin" "$supernode" --root-certificates ca.pem --superlink {superlink} \\
        --auth-supernode-private-key {name}.key --port {port} --node-config "node='$PWD/node.toml'" "$@" &
    node=$!
    wait "$node"
    code=$?
    wait "$node" 2>/dev/null # if a signal has ended the first wait, wait until the node has ended too
    if [ "$code" -eq 0 ] || [ "$code" -gt 128 ] || [ "$(date +%s)" -ge "$until" ]; then exit "$code"; fi
    sleep "${{RETRY_EVERY:-5}}"
done
"""
)
