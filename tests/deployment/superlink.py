"""A SuperLink and SuperNodes on this machine, with TLS and keys."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from typer.testing import CliRunner

from trifed import make_config
from trifed.cli.app import app
from trifed.config.run import to_toml
from trifed.federation.run_folder import RunFolder

NO_PROGRESS, GUARD = 300, 1500
"""Seconds without any change, and seconds in all, after which a test that waits has failed."""
PATH = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def listens(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def trifed(*words):
    told = CliRunner().invoke(app, [str(word) for word in words])
    assert told.exit_code == 0, told.output


def events_of(folder):
    return RunFolder.open(folder).events() if (folder / "events.jsonl").is_file() else []


def has(folder, kind):
    return any(event["event"] == kind for event in events_of(folder))


class Processes:
    """Everything that a test has started; it ends with the test."""

    def __init__(self, folder):
        self.env = {**os.environ, "PATH": PATH, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        self.folder = folder
        self.running = []

    def start(self, script, *words, **environment):
        log = script.parent.with_name(f"{script.parent.name}-{script.stem}.log").open("ab")
        with log:
            process = subprocess.Popen(
                [script, *words], env=self.env | environment, stdout=log, stderr=log, start_new_session=True
            )
        self.running.append(process)
        return process

    def install_app(self, source, sites):
        """Put a script in the place of the ClientApp that is installed, at sites whose nodes run too."""
        script = self.folder / "bin" / "trifed-clientapp"
        script.parent.mkdir()
        script.write_text(f"#!{sys.executable}\n{source}")
        script.chmod(0o755)
        self.env["PATH"] = f"{script.parent}{os.pathsep}{self.env['PATH']}"
        for site in sites:
            command = self.folder / site / "bin" / "flwr-clientapp"
            command.unlink()
            command.symlink_to(script)

    def kill(self, process):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def end(self):
        for process in self.running:
            self.kill(process)
        subprocess.run(["pkill", "-9", "-f", str(self.folder)], check=False)

    def wait_for(self, true, *needed):
        """Wait until `true()`, for as long as files change; fail at once if a process in `needed` ends before."""
        began = changed = looked = time.monotonic()
        before = self.sizes()
        while not true():
            time.sleep(0.3)
            now = time.monotonic()
            if now - looked > 10:  # the folder has hundreds of files
                sizes, looked = self.sizes(), now
                changed, before = (now if sizes != before else changed), sizes
            ended = [process.args[0].parent.name for process in needed if process.poll() is not None]
            if (ended and not true()) or now - changed > NO_PROGRESS or now - began > GUARD:
                logs = {p.name: p.read_text(errors="replace")[-2000:] for p in self.folder.glob("*.log")}
                raise AssertionError(f"{ended=}, {now - began:.0f} s: {json.dumps(logs, indent=1)}")

    def sizes(self):
        """Sizes of all logs, events and kept files: whatever changes here is progress."""
        sizes = {}
        for parent, _, names in os.walk(self.folder):
            for path in (Path(parent, name) for name in names):
                if path.suffix in (".log", ".jsonl", ".json", ".safetensors"):
                    with contextlib.suppress(FileNotFoundError):
                        sizes[path] = path.stat().st_size
        return sizes


class Federation:
    """A server and its sites, each in a folder of `folder`, with the tables of the sites beside them."""

    def __init__(self, folder):
        self.folder, self.server = folder, folder / "server"
        self.processes = Processes(folder)
        self.port = free_port()
        self.nodes = {}

    def set_up(self, values, joins):
        """The two commands of docs/deployment.md. `joins`: name → (table, folder of the authority)."""
        run = self.folder / "run.toml"
        run.write_text(to_toml(make_config(values)))
        trifed("flower", "init", self.server, "--run", run, "--host", "127.0.0.1", "--port", self.port)
        trifed("flower", "init", self.folder / "other", "--run", run, "--host", "127.0.0.1")
        for name, (table, authority) in joins.items():
            trifed(
                "flower", "join", self.folder / name, "--name", name, "--superlink", f"127.0.0.1:{self.port}",
                "--ca", self.folder / authority / "ca.pem", "--data", self.folder / f"{table}.csv",
                "--port", free_port(),
            )  # fmt: skip

    def start_link(self):
        self.link = self.processes.start(self.server / "start.sh")
        self.processes.wait_for(lambda: listens(self.port), self.link)

    def let_in(self, names):
        for name in names:
            (self.server / "keys" / f"{name}.pub").write_bytes((self.folder / name / f"{name}.pub").read_bytes())
        told = subprocess.run(
            [self.server / "register.sh"], env=self.processes.env, capture_output=True, text=True, check=False
        )
        assert told.returncode == 0, told.stdout + told.stderr

    def start_node(self, name, *words, **environment):
        self.nodes[name] = self.processes.start(self.folder / name / "start.sh", *words, **environment)
        return self.nodes[name]

    def start_node_without_tls(self):
        """If it got in, it would be greeted, and refused without settings."""
        script = self.folder / "plain" / "start.sh"
        script.parent.mkdir()
        command = f"flower-supernode --insecure --superlink 127.0.0.1:{self.port} --port {free_port()}"
        script.write_text(f"#!/bin/sh\nexec {command}\n")
        script.chmod(0o755)
        return self.start_node("plain")

    def connections(self, name):
        """How many processes of a site's node have connected to the SuperLink."""
        log = self.folder / f"{name}-start.log"
        return log.read_text(errors="replace").count("SuperNode ID") if log.exists() else 0

    def run_in(self, folder):
        """Begin the run of the server's app, or continue it; its folder is given to run.sh."""
        return self.processes.start(self.server / "run.sh", "--run-config", f"folder='{folder}'")
