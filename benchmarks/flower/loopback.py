"""A SuperLink and SuperNodes on this machine, with TLS and keys, as `trifed flower` writes them."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from trifed import make_config
from trifed.config.run import to_toml
from trifed.data import demo_corpus_path
from trifed.deployment.folders import write_server_folder, write_site_folder
from trifed.deployment.site_keys import collect_site_keys

Json = dict[str, Any]
ROWS = 100
"""Examples a site."""


def environment() -> Json:
    return {
        **{name: version(name) for name in ("trifed", "flwr", "torch", "grpcio", "cryptography")},
        "python": platform.python_version(),
        "cpus": os.cpu_count(),
    }


def corpus() -> list[Json]:
    """The demo's rows."""
    with demo_corpus_path().open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def deployment(
    folder: Path,
    values: Json,
    sites: list[str],
    through: Callable[[int], int] = lambda port: port,
    prepare: Callable[[Path], None] = lambda server: None,
    commands: dict[str, str] | None = None,
) -> Iterator[Path]:
    """A run under way; its folder at the server.

    `through`: the port that a site connects to, given the server's; `prepare`: changes the server's folder first;
    `commands`: Python that takes the place of an installed command, by the command's name.
    """
    rows = corpus()
    (folder / "run.toml").write_text(to_toml(make_config(values)))
    port, server = free_port(), folder / "server"
    write_server_folder(server, folder / "run.toml", "127.0.0.1", port)
    prepare(server)
    for name, source in (commands or {}).items():
        script = folder / "commands" / name
        script.parent.mkdir(exist_ok=True)
        script.write_text(f"#!{sys.executable}\n{source}")
        script.chmod(0o755)
    path = os.pathsep.join([str(folder / "commands"), str(Path(sys.executable).parent), os.environ["PATH"]])
    env = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    started = []

    def start(script: Path) -> None:
        with (folder / f"{script.parent.name}-{script.stem}.log").open("wb") as log:
            started.append(subprocess.Popen([script], env=env, stdout=log, stderr=log, start_new_session=True))

    try:
        start(server / "start.sh")
        while not _listens(port):
            time.sleep(0.2)
        for place, site in enumerate(sites):
            data = folder / f"{site}.jsonl"
            data.write_text("\n".join(json.dumps(row) for row in rows[place * ROWS : place * ROWS + ROWS]))
            where = f"127.0.0.1:{through(port)}"
            write_site_folder(folder / site, site, where, server / "ca.pem", data, free_port())
            (server / "keys" / f"{site}.pub").write_bytes((folder / site / f"{site}.pub").read_bytes())
        subprocess.run([server / "register.sh"], env=env, check=True, stdout=subprocess.DEVNULL)
        if values.get("sealing", {}).get("on"):
            listed = collect_site_keys(server)
            for site in sites:
                listed.write(folder / site / "sites.pub")
        for site in sites:
            start(folder / site / "start.sh")
        start(server / "run.sh")
        yield server / "runs" / values["name"]
    finally:
        for process in started:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        subprocess.run(["pkill", "-9", "-f", f"trifed.deployment.worker {folder}"], check=False)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
