"""Flower for real: a SuperLink and three SuperNodes on this machine, with TLS and keys."""

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

import numpy as np
import pytest
from safetensors.torch import load_file
from typer.testing import CliRunner

from trifed import make_config, run
from trifed.cli.app import app
from trifed.config.run import to_toml
from trifed.federation.run_folder import RunFolder
from trifed.privacy import promised, read_ledger, spent

pytest.importorskip("flwr")
from flwr.app import Context, Error, Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.supercore.task_identity import TaskIdentity

from trifed.common.errors import DataError
from trifed.deployment import worker
from trifed.deployment.flower import FlowerChannel, client_app, reply_of, settings_of, write
from trifed.deployment.protocol import REASONS, Reply, Request

SITES = ["amber", "basil", "coral"]
LABELS = ["billing", "delivery", "login"]
NO_PROGRESS, GUARD = 300, 1500
"""Seconds without any change, and seconds in all, after which a test that waits has failed."""
PATH = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def trifed(*words):
    told = CliRunner().invoke(app, [str(word) for word in words])
    assert told.exit_code == 0, told.output


class Processes:
    """Everything that a test has started; it ends with the test."""

    def __init__(self, folder):
        self.env = {**os.environ, "PATH": PATH, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        self.folder = folder
        self.running = []

    def start(self, script, *words):
        log = script.parent.with_name(f"{script.parent.name}-{script.stem}.log").open("ab")
        with log:
            process = subprocess.Popen(
                [script, *words], env=self.env, stdout=log, stderr=log, start_new_session=True
            )
        self.running.append(process)
        return process

    def install_app(self, source):
        """Put a script in the place of the ClientApp that is installed at the sites."""
        script = self.folder / "bin" / "trifed-clientapp"
        script.parent.mkdir()
        script.write_text(f"#!{sys.executable}\n{source}")
        script.chmod(0o755)
        self.env["PATH"] = f"{script.parent}{os.pathsep}{self.env['PATH']}"

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
        began = changed = time.monotonic()
        before = self.sizes()
        while not true():
            time.sleep(0.2)
            now, sizes = time.monotonic(), self.sizes()
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


@pytest.fixture
def processes(tmp_path):
    started = Processes(tmp_path)
    yield started
    started.end()


@pytest.fixture(scope="module")
def short_round():
    """Seconds that are enough for any answer on this machine, as busy as it is now."""
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", "import torch, transformers, flwr"], check=True)
    return max(30, round(8 * (time.monotonic() - began)))


def listens(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def set_up(tmp_path, site_tables, values, joins):
    """The two commands of docs/deployment.md, at the server and at each site; the server's folder."""
    (tmp_path / "run.toml").write_text(to_toml(make_config(values)))
    port, server = free_port(), tmp_path / "server"
    trifed("flower", "init", server, "--run", tmp_path / "run.toml", "--host", "127.0.0.1", "--port", port)
    trifed("flower", "init", tmp_path / "other", "--run", tmp_path / "run.toml", "--host", "127.0.0.1")
    for name, (data, authority) in joins.items():
        trifed(
            "flower", "join", tmp_path / name, "--name", name, "--superlink", f"127.0.0.1:{port}", "--ca",
            tmp_path / authority / "ca.pem", "--data", site_tables / f"{data}.csv", "--port", free_port(),
        )  # fmt: skip
    return server, port


def connections(log):
    """How many times a site's node has connected to the SuperLink."""
    return log.read_text(errors="replace").count("SuperNode ID")


def let_in(processes, server, names):
    for name in names:
        (server / "keys" / f"{name}.pub").write_bytes((server.parent / name / f"{name}.pub").read_bytes())
    told = subprocess.run([server / "register.sh"], env=processes.env, capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stdout + told.stderr


def events_of(folder):
    return RunFolder.open(folder).events() if (folder / "events.jsonl").is_file() else []


def has(folder, kind):
    return any(event["event"] == kind for event in events_of(folder))


def refused_nodes(processes, tmp_path, port):
    """Start a node without a registered key, one of another authority, and one without TLS."""
    processes.env["RETRY_SECONDS"] = "0"
    nodes = [processes.start(tmp_path / name / "start.sh", "--max-retries", "1") for name in ("dill", "elm")]
    plain = tmp_path / "plain" / "start.sh"  # if it got in, it would be greeted, and refused without settings
    plain.parent.mkdir()
    command = f"flower-supernode --insecure --superlink 127.0.0.1:{port} --port {free_port()}"
    plain.write_text(f"#!/bin/sh\nexec {command}\n")
    plain.chmod(0o755)
    processes.start(plain)
    return nodes


@pytest.mark.slow
def test_a_run_between_sites_survives_its_server_and_agrees_with_the_simulator(
    site_tables, toy_values, processes, tmp_path
):
    values = toy_values(method="own-prior", rounds=2, name="tickets", data={"labels": LABELS})
    values["deployment"] = {"clients": 3, "join_seconds": 900, "round_seconds": 900, "quorum": 3}
    joins = {site: (site, "server") for site in SITES} | {"dill": ("amber", "server"), "elm": ("amber", "other")}
    server, port = set_up(tmp_path, site_tables, values, joins)
    sent = server / "app" / "tickets" / "client.py"  # code of the server's, for the sites
    sent.write_text(f"open({str(tmp_path / 'pwned')!r}, 'w')\n" + sent.read_text())
    link = processes.start(server / "start.sh")
    processes.wait_for(lambda: listens(port), link)
    let_in(processes, server, [*SITES, "elm"])
    nodes = [processes.start(tmp_path / site / "start.sh") for site in SITES]
    unknown, other_authority = refused_nodes(processes, tmp_path, port)
    processes.wait_for(lambda: None not in (unknown.poll(), other_authority.poll()), *nodes)
    assert unknown.returncode != 0 and other_authority.returncode != 0

    folder = server / "runs" / "tickets"
    leading = processes.start(server / "run.sh")
    processes.wait_for(lambda: has(folder, "round"), link, leading, *nodes)
    processes.kill(link)  # in the second round
    processes.kill(leading)
    assert not has(folder, "finished")

    link = processes.start(server / "start.sh")
    processes.wait_for(lambda: listens(port), link)
    leading = processes.start(server / "run.sh")
    processes.wait_for(lambda: has(folder, "finished"), link, leading, *nodes)

    events = RunFolder.open(folder).events()
    assert [e["event"] for e in events].count("resumed") == 1
    assert {e["client"] for e in events if e["event"] == "joined"} == set(SITES)
    assert not [e for e in events if e["event"] in ("left out", "refused")]
    assert not (tmp_path / "pwned").exists()
    simulated = run(make_config(values), tmp_path / "simulated")
    name = RunFolder.open(folder).read_json("federation.json")["run"]
    for site in SITES:
        own = load_file(tmp_path / site / "kept" / name / "model" / "adapter_model.safetensors")
        theirs = load_file(simulated.path / "clients" / site / "adapter_model.safetensors")
        for tensor in theirs:
            np.testing.assert_allclose(own[tensor].numpy(), theirs[tensor].numpy(), atol=1e-6, err_msg=site)
    # One process with the model at each site, however many messages came.
    for site in SITES:
        pattern = f"{worker.__name__} {tmp_path / site}"
        found = subprocess.run(["pgrep", "-f", pattern], capture_output=True, text=True, check=False)
        assert len(found.stdout.split()) == 1


def test_a_simulated_node_finds_its_settings_by_its_number(tmp_path):
    """As in `simulate.sh`; what a node was started with comes before what the server says."""
    for name in ("berlin", "paris"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "node.toml").touch()

    def named(node_config, sites=str(tmp_path)):
        return settings_of(Context(1, 2, node_config, RecordDict(), {"sites": sites}))

    simulated = [named({"partition-id": place, "num-partitions": 3}) for place in range(3)]
    assert simulated == [tmp_path / "berlin" / "node.toml", tmp_path / "paris" / "node.toml", None]
    assert named({"node": "/etc/node.toml", "partition-id": 0}) == Path("/etc/node.toml")
    assert named({}) is None and named({"partition-id": 0}, sites="") is None


class Grid:
    """Answers each message at once, with an error."""

    def __init__(self, code):
        self.code = code

    def push_messages(self, messages):
        for place, message in enumerate(messages):
            message.metadata.__dict__["_message_id"] = str(place)
        self.sent = messages
        return [str(place) for place in range(len(messages))]

    def pull_messages(self, numbers):
        return [Message(Error(self.code, "why"), reply_to=self.sent[int(number)]) for number in numbers]


@pytest.mark.parametrize(
    ("code", "answered"),
    [
        (ErrorCode.MESSAGE_UNAVAILABLE, False),
        (ErrorCode.REPLY_MESSAGE_UNAVAILABLE, False),
        (ErrorCode.NODE_UNAVAILABLE, True),
        (ErrorCode.CLIENT_APP_RAISED_EXCEPTION, True),
    ],
)
def test_a_message_that_expired_is_no_answer_and_other_errors_are_one(code, answered, monkeypatch):
    """Whichever clock is ahead at the end of a round, Flower's or the server's, the reason is the same."""
    for name in ("_run_id", "_node_id", "_task_id"):  # a message asks who sends it
        monkeypatch.setattr(TaskIdentity, name, 1)
    found = FlowerChannel(Grid(code)).ask({7: Request("train", {}, {})}, 5)
    assert list(found) == ([7] if answered else [])
    known = {ErrorCode.NODE_UNAVAILABLE: "not_connected"}
    assert all(reply == Reply(error=known.get(code, "other")) for reply in found.values())


@pytest.mark.parametrize("raised", [DataError, OSError, AttributeError])
def test_an_exception_at_a_site_travels_as_a_code(raised, monkeypatch, caplog):
    for name in ("_run_id", "_node_id", "_task_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)

    def answer(path, request):
        raise raised("kryptonite in /home/basil")

    context = Context(1, 2, {"node": "/home/basil/node.toml"}, RecordDict(), {})
    for app_, content in ((answer, write("open", {"run": "a-1"}, {})), (answer, RecordDict())):
        message = Message(content, 7, "query.open")
        reply = client_app(app_)(message, context)
        assert not reply.has_error() and "basil" not in str(reply.content)
        assert reply_of(reply).error in REASONS and not reply_of(reply).parts
    assert "kryptonite" in caplog.text
    assert reply_of(client_app(answer)(message, Context(1, 2, {}, RecordDict(), {}))).error == "no_settings"


@pytest.mark.parametrize(
    ("error", "code"), [("", None), ("guard", "guard"), ("label 'x' of /data", "other"), (3, "other")]
)
def test_an_error_that_the_server_does_not_know_is_not_repeated(error, code, monkeypatch):
    for name in ("_run_id", "_node_id", "_task_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)
    told = Message(write("reply", {"error": error, "lost": 0}, {}), 7, "query.open")
    assert reply_of(told).error == code


ROUNDS = 8
FAULTY = '''"""Answers for one site, wrongly in some rounds."""

import dataclasses
import json
import time

import numpy as np

from trifed.deployment.flower import run_installed_app
from trifed.deployment.worker import ask_worker
from trifed.federation.messages import encode_values, Header


def instead(reply, values, run=None):
    upload = reply.parts["upload"]
    facts = json.loads(upload[8 : 8 + int.from_bytes(upload[:8], "little")])["__metadata__"]
    numbers = {name: int(facts[name]) for name in ("round", "client", "examples")}
    header = Header(facts["kind"], run or facts["run"], facts["base"], **numbers)
    return dataclasses.replace(reply, parts={"upload": encode_values(header, np.asarray(values, np.float32))})


def answer(path, request):
    site, number = path.parent.name, int(request.facts.get("round", 0))
    if (request.kind, site, number) == ("train", "basil", 5):
        (path.parent / "asked").touch()
        time.sleep(900)  # it is killed meanwhile
    if request.kind == "train" and site == "amber" and number in (6, 7):  # until basil is connected again
        until = time.monotonic() + 0.8 * float(request.facts["seconds"])
        while not (path.parent / "go on").is_file() and time.monotonic() < until:
            time.sleep(0.2)
    reply = ask_worker(path, request)
    if request.kind != "train" or site != "coral":
        return reply
    if number == 1:
        raise OSError("the disk is full")
    if number == 2:
        return instead(reply, [np.nan] * 64)
    if number == 3:
        return instead(reply, [0.0] * 3)
    if number == 4:
        return instead(reply, [0.0] * 64, run="another-1")
    if number == 5:
        (path.parent / "slow").touch()
        time.sleep(float(request.facts["seconds"]) + 2)
    return reply


run_installed_app(answer)
'''


@pytest.mark.slow
def test_whatever_goes_wrong_at_a_site_the_others_go_on(site_tables, toy_values, processes, tmp_path, short_round):
    """An error, NaN, a wrong shape, another run's message, too slow, killed; one comes late, and one leaves.

    All with noise: each site's ledger has what left it, whether or not it arrived.
    """
    privacy = {"summary": {"epsilon": 4.0}, "update": {"epsilon": 8.0, "clip": 0.5}}
    values = toy_values(
        method="own-prior", rounds=ROUNDS, name="tickets", data={"labels": LABELS}, wire={"bits": 32},
        privacy=privacy,
    )  # fmt: skip
    values["deployment"] = {"clients": 3, "join_seconds": 900, "round_seconds": short_round, "quorum": 1}
    server, port = set_up(
        tmp_path, site_tables, values, {name: (name, "server") for name in SITES} | {"dill": ("amber", "server")}
    )
    processes.install_app(FAULTY)
    link = processes.start(server / "start.sh")
    processes.wait_for(lambda: listens(port), link)
    let_in(processes, server, SITES)
    nodes = {site: processes.start(tmp_path / site / "start.sh") for site in SITES}
    folder = server / "runs" / "tickets"
    leading = processes.start(server / "run.sh")
    needed = [link, leading, nodes["amber"], nodes["coral"]]
    processes.wait_for(lambda: has(folder, "round"), *needed)
    let_in(processes, server, ["dill"])
    processes.start(tmp_path / "dill" / "start.sh")
    held_up = tmp_path / "basil" / "asked", tmp_path / "coral" / "slow"  # both in round 5
    processes.wait_for(lambda: all(path.is_file() for path in held_up), *needed)
    processes.kill(nodes["basil"])
    trifed("flower", "withdraw", tmp_path / "coral")  # its answer to round 5 is made; the next it refuses
    processes.start(tmp_path / "basil" / "start.sh")
    # Flower counts a killed node as connected for up to a minute, and lets its new process in only after that.
    processes.wait_for(lambda: connections(tmp_path / "basil-start.log") == 2, *needed)
    (tmp_path / "amber" / "go on").touch()
    processes.wait_for(lambda: has(folder, "finished"), *needed)

    events = events_of(folder)
    out = {(e["client"], e["round"]): e["code"] for e in events if e["event"] == "left out"}
    codes = {1: "storage", 2: "bad_reply", 3: "bad_reply", 4: "bad_reply", 5: "no_answer", 6: "left"}
    assert {number: out["coral", number] for number in codes} == codes
    assert out["basil", 5]
    trained = {name: [e["round"] for e in events if e["event"] == "trained" and e["client"] == name]
               for name in [*SITES, "dill"]}  # fmt: skip
    assert trained["amber"] == list(range(1, ROUNDS + 1))
    assert trained["coral"] == []
    assert trained["basil"][:4] == [1, 2, 3, 4] and 5 not in trained["basil"], out
    assert trained["basil"][-1] == ROUNDS, out
    [late] = [e for e in events if e["event"] == "came late"]
    assert trained["dill"] == list(range(late["round"], ROUNDS + 1)) and 2 <= late["round"] <= 6
    assert [(e["client"], e["round"]) for e in events if e["event"] == "withdrawn"] == [("coral", 7)]

    def noised(name):
        [ledger] = (tmp_path / name / "kept").rglob("ledger.json")
        book = read_ledger(ledger)
        assert all(entry.multiplier and entry.multiplier > 1 for entry in book.entries)
        most = promised(book.budget, ROUNDS, values["training"].get("steps"), summarises=True, uploads=True)
        for found, limit in zip(spent(book.entries, book.budget), most, strict=True):
            assert 0 < found.epsilon <= limit.epsilon * (1 + 1e-9)
        return [(entry.what, entry.round) for entry in book.entries]

    assert noised("amber") == [("summary", 0), *(("update", number) for number in range(1, ROUNDS + 1))]
    assert noised("coral") == [("summary", 0), *(("update", number) for number in range(1, 6))]  # none arrived
    assert noised("dill") == [("summary", 0), *(("update", number) for number in trained["dill"])]
