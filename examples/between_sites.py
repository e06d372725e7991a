"""A real deployment on one machine: a server and three sites that talk over TLS on loopback.

The run is sealed: the server receives only the sum of the sites' uploads. On four machines the commands are the
same, but for --yes: there people compare the list of keys by telephone first. Each `call` below is one line in a
terminal. Needs the extra flower: pip install '.[flower]' in the copy of the repository.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from trifed import load_client
from trifed.data import demo_corpus_path

SITES = ["hotel", "clinic", "transit"]
RUN = """
name = "tickets"
rounds = {rounds}
[model]
name = "{model}"
max_length = 48
[training]
steps = 10
[data]
labels = {labels}
[deployment]
clients = 3
"""
# The virtual environment's commands first; one thread for each of the processes that share this machine.
ENV = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}


def call(*words: object) -> None:
    """Show a command and run it."""
    print("$", *words, flush=True)
    subprocess.run([str(word) for word in words], env=ENV, check=True)


def start(folder: Path) -> subprocess.Popen[bytes]:
    """Start FOLDER/start.sh in the background; its output is in FOLDER.log."""
    print("$", folder / "start.sh", "&", flush=True)
    with folder.with_suffix(".log").open("wb") as log:
        return subprocess.Popen(
            [folder.absolute() / "start.sh"], env=ENV, stdout=log, stderr=log, start_new_session=True
        )


def free_port() -> int:
    """Return a port of this machine that nothing uses."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    """Wait until the server listens; RuntimeError if it ends before."""
    while process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)
    raise RuntimeError("the server did not start; server.log says why")


def write_tables(folder: Path) -> list[str]:
    """Write a table for each site, which only that site reads; return the labels of all."""
    rows = [json.loads(line) for line in demo_corpus_path().read_text(encoding="utf-8").splitlines()]
    for site in SITES:
        own = [json.dumps(row) for row in rows if row["site"] == site]
        (folder / f"{site}.jsonl").write_text("\n".join(own), encoding="utf-8")
    return sorted({row["label"] for row in rows})


def main(folder: str = "between-sites", model: str = "demo", rounds: int = 2) -> dict[str, list[str]]:
    """Set up a server and three sites in a new folder, run, and predict with each site's own model."""
    here, port = Path(folder), free_port()
    here.mkdir(parents=True)
    labels = write_tables(here)
    (here / "run.toml").write_text(RUN.format(rounds=rounds, model=model, labels=json.dumps(labels)), "utf-8")

    # The server's folder; then a folder for each site, with the server's certificate and a key of its own.
    server = here / "server"
    call("trifed", "flower", "init", server, "--run", here / "run.toml", "--host", "127.0.0.1", "--port", port)
    for site in SITES:
        call("trifed", "flower", "join", here / site, "--name", site, "--superlink", f"127.0.0.1:{port}",
             "--ca", server / "ca.pem", "--data", here / f"{site}.jsonl")  # fmt: skip
        (server / "keys" / f"{site}.pub").write_bytes((here / site / f"{site}.pub").read_bytes())
        node = here / site / "node.toml"
        node.write_text("idle_seconds = 60  # the process with the model ends soon\n" + node.read_text("utf-8"))

    processes = [start(server)]
    try:
        wait_for(port, processes[0])
        call(server / "register.sh")  # the keys of the sites that may connect
        call("trifed", "flower", "sites", server)  # the list of these keys, for every site
        for site in SITES:
            call("trifed", "flower", "trust", here / site, server / "sites.pub", "--yes")
        processes += [start(here / site) for site in SITES]
        call(server / "run.sh")  # waits for all sites, runs, and ends
    finally:
        for process in processes:
            with suppress(ProcessLookupError):  # it has ended already
                os.killpg(process.pid, signal.SIGTERM)
        for process in processes:
            process.wait()

    predicted = {}
    call("trifed", "flower", "status", server / "runs" / "tickets")
    for site in SITES:
        call("trifed", "flower", "log", here / site)  # everything that left this site
        [own] = (here / site / "kept").glob("*/model")
        predicted[site] = load_client(own).predict(["I was charged twice", "when are you open?"])
        print(f"{site}: {predicted[site]}")
    return predicted


if __name__ == "__main__":
    main(*sys.argv[1:])
