"""Texts of the files that `trifed flower init` and `join` write, as for `str.format`."""

from __future__ import annotations

QUIET = (
    "export FLWR_TELEMETRY_ENABLED=0 FLWR_DISABLE_UPDATE_CHECK=1 FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION=1"
)
"""Flower sends no usage data, looks for no update, and installs nothing during a run."""
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
    + """# Begin the run, or continue it after its last complete round. To go back to the end of round 3 and
# continue from there: ./run.sh --run-config from-round=3
folder=runs/{name}
for word in "$@"; do
    case "$word" in *folder=*) folder="" ;; esac # the results go elsewhere, where nothing is looked for
done
flwr run app {name} --stream "$@" || exit
# flwr ends with 0 also after a run that failed; a finished run has a summary.
[ -z "$folder" ] || [ -f "$folder/summary.json" ] || {{
    echo "$PWD/$folder: no summary.json, so the run has not ended well; the lines above say why." >&2
    echo "./run.sh continues it after its last complete round." >&2
    exit 1
}}
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

    ./start.sh             start the SuperLink at {host}:{port}; leave it running
    ./register.sh          admit the sites whose public keys are in keys/
    trifed flower sites .  for a sealed run: write sites.pub, the list of these keys, for every site
    ./run.sh               begin the run, or continue it; with --run-config from-round=3: go back to round 3 first
    ./simulate.sh SITES    run it with folders of sites on this machine, by Flower's simulation

Give `ca.pem` to every site. If `sealing.on` is true in app/run.toml, also give `sites.pub` to every site before
run.sh: each stores it by `trifed flower trust`, after the sites have compared its SHA-256 by telephone. `ca.key`
signs servers of this federation and is needed again only for a new certificate: keep it on another machine.
Nothing else of this folder leaves this machine. The results of the run are in runs/{name}.
"""
NODE = """# Settings of this site alone. The server gets only the name, and the scores if tell_scores is true.
name = "{name}"
folder = "kept"          # Adapters and state of every run. It holds this site's model: protect it.
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
# sealed_only = false    # true: take part only in sealed runs, in which the server sees only sums of uploads.
# sites = "sites.pub"    # List of the sites' public keys for sealed runs; `trifed flower trust` stores it.
# key = "{name}.key"     # This site's private key. It signs the site's new public key in each sealed round.
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
# few_tokens = "warn"    # Uploads that depend on few tokens: "refuse" (the default), "warn" or "allow".
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
    case "$code" in 0 | 2) exit "$code" ;; esac # 2 is a mistake, such as a port that is in use
    [ "$code" -gt 128 ] && exit "$code"
    if [ "$(date +%s)" -ge "$until" ]; then
        echo "this node cannot connect to "{superlink}": the server does not run or cannot be reached, or its" \\
            "operator did not register "{name}".pub (register.sh); trifed doctor \\"$PWD\\" checks this folder" >&2
        exit "$code"
    fi
    sleep "${{RETRY_EVERY:-5}}"
done
"""
)
