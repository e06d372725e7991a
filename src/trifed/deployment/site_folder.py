"""A client's folder: its key, the server's authority, its settings, and a script that starts its node."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from trifed.common.errors import RunError
from trifed.common.files import is_free, whole_folder
from trifed.deployment.certificates import fingerprint, write_node_keys
from trifed.deployment.server_folder import QUIET
from trifed.deployment.site_settings import site_settings


def write_site_folder(folder: Path, name: str, superlink: str, authority: Path, data: Path, port: int) -> None:
    """Write a new site's folder. `superlink`: HOST:PORT; `authority`: the server's ca.pem; `port`: a local one.

    Raises:
        ConfigError: a name that cannot be used.
        RunError: something is there already, another argument that cannot be used, or nothing can be written.
    """
    if not is_free(folder):
        raise RunError(f"{folder}: something is there already; give another folder, or remove it first")
    for path, what in ((authority, "the server's ca.pem"), (data, "this site's data")):
        if not path.exists():
            raise RunError(f"{path}: no such file; expected {what}")
    host, _, number = superlink.rpartition(":")
    if not host or not number.isdigit():
        raise RunError(f"--superlink: got '{superlink}', expected HOST:PORT")
    fingerprint(authority)  # before anything is written: is it a certificate?
    settings = site_settings({"name": name, "data": {"source": str(data.absolute())}}, "--name")
    try:
        with whole_folder(folder) as partial:
            partial.chmod(0o700)
            shutil.copyfile(authority, partial / "ca.pem")
            write_node_keys(partial, name)
            (partial / "node.toml").write_text(
                NODE.format(name=name, source=json.dumps(settings.data["source"])), encoding="utf-8"
            )
            script = partial / "start.sh"
            script.write_text(
                START.format(quiet=QUIET, superlink=superlink, name=name, port=port), encoding="utf-8"
            )
            script.chmod(0o755)
    except OSError as error:
        raise RunError(f"{folder}: cannot be written ({error.strerror or error}); give another folder") from error


NODE = """# What only this site knows. Nothing of it is sent but the name and, if tell_scores is true, scores.
name = "{name}"
folder = "kept"          # adapters and state of every run; whoever reads it has this site's model
# model = "/models/base" # where the base model lies here, if elsewhere than the run says
# device = "cuda:1"
tell_scores = false      # accuracy and loss on held-out data go to the server
# at_least = 3           # takes no part in a round of fewer sites, this one too
# others_at_most = 0.5   # the largest share that others get in what this site goes on from, 0 to 1
# base = "…"             # sha256 of the base model's weights: a run with another is refused
# worse_by = 0.5         # keep this site's own where what it receives is worse by that much validation loss

[data]
source = {source}
# text = "message"       # columns, where they are called otherwise than in the run
# label = "queue"

# [privacy]              # what this site lets out; the run does not say it
# few_tokens = "warn"    # uploads that stand on few tokens: refuse (unless said otherwise), warn, allow
"""
START = """#!/bin/sh
cd "$(dirname "$0")" || exit 1
export FLWR_HOME="$PWD/flwr"
{quiet}
# A node that was killed counts as connected for up to a minute, and cannot start before: so it is tried again.
until=$(($(date +%s) + ${{RETRY_SECONDS:-120}}))
trap 'stop=1; kill -TERM "$node" 2>/dev/null' INT TERM
while [ -z "$stop" ]; do
    # TLS: the server has to show a certificate that ca.pem has signed. And it knows this node by its key.
    flower-supernode --root-certificates ca.pem --superlink {superlink} \\
        --auth-supernode-private-key {name}.key --port {port} --node-config "node=\\"$PWD/node.toml\\"" "$@" &
    node=$!
    wait "$node"
    code=$?
    wait "$node" 2>/dev/null # where a signal has ended the first wait: until the node has ended too
    if [ "$code" -eq 0 ] || [ "$code" -gt 128 ] || [ "$(date +%s)" -ge "$until" ]; then exit "$code"; fi
    sleep "${{RETRY_EVERY:-5}}"
done
"""
