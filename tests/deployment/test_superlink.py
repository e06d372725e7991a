"""Flower for real: a SuperLink and three SuperNodes on this machine, with TLS and keys, lead two runs."""

from __future__ import annotations

import subprocess
import time

import numpy as np
import pytest
from safetensors.torch import load_file
from superlink import Federation, events_of, has, trifed

from trifed import make_config, run
from trifed.common.dict_merge import deep_merge
from trifed.config.run import to_toml
from trifed.deployment.release_log import read_releases
from trifed.federation.run_folder import RunFolder
from trifed.privacy import promised, read_ledger, spent

pytest.importorskip("flwr")
from trifed.deployment import worker

pytestmark = pytest.mark.slow

SITES = ["amber", "basil", "coral"]
LABELS = ["billing", "delivery", "login"]


def run_values(toy_values, seconds, quorum, **changes):
    values = toy_values(method="own-prior", name="tickets", data={"labels": LABELS}, **changes)
    values["deployment"] = {"clients": 3, "join_seconds": 900, "round_seconds": seconds, "quorum": quorum}
    return values


@pytest.fixture(scope="module")
def honest_values(toy_values):
    return run_values(toy_values, seconds=900, quorum=3, rounds=2)


@pytest.fixture(scope="module")
def federation(honest_values, write_site_tables, tmp_path_factory):
    """The SuperLink and a node at each of `SITES`; `short_round`: enough seconds for any answer on this machine.

    `dill` and `elm` have no node yet. The key of `dill` is not registered; `elm` trusts another authority.
    """
    federation = Federation(write_site_tables(tmp_path_factory.mktemp("federation")))
    joins = {site: (site, "server") for site in SITES} | {"dill": ("amber", "server"), "elm": ("amber", "other")}
    federation.set_up(honest_values, joins)
    try:
        federation.start_link()
        federation.let_in([*SITES, "elm"])
        began = time.monotonic()
        for site in SITES:
            federation.start_node(site)
        federation.processes.wait_for(lambda: all(map(federation.connections, SITES)), *federation.nodes.values())
        federation.short_round = max(30, round(8 * (time.monotonic() - began)))
        yield federation
    finally:
        federation.processes.end()


def test_a_run_between_sites_survives_its_server_and_agrees_with_the_simulator(
    federation, honest_values, tmp_path
):
    server, processes = federation.server, federation.processes
    sent = server / "app" / "tickets" / "client.py"  # code of the server's, for the sites
    sent.write_text(f"open({str(tmp_path / 'pwned')!r}, 'w')\n" + sent.read_text())
    nodes = [federation.nodes[site] for site in SITES]
    refused = [federation.start_node(name, "--max-retries", "1", RETRY_SECONDS="0") for name in ("dill", "elm")]
    plain = federation.start_node_without_tls()

    folder = server / "runs" / "tickets"
    leading = federation.run_in(folder)
    processes.wait_for(lambda: all(node.poll() is not None for node in refused), federation.link, leading, *nodes)
    assert all(node.returncode != 0 for node in refused)
    processes.wait_for(lambda: has(folder, "round"), federation.link, leading, *nodes)
    processes.kill(federation.link)  # in the second round
    processes.kill(leading)
    assert not has(folder, "finished")

    federation.start_link()
    leading = federation.run_in(folder)
    processes.wait_for(lambda: has(folder, "finished"), federation.link, leading, *nodes)
    processes.kill(plain)

    events = events_of(folder)
    assert [e["event"] for e in events].count("resumed") == 1
    assert {e["client"] for e in events if e["event"] == "joined"} == set(SITES)
    assert not [e for e in events if e["event"] in ("left out", "refused")]
    assert not (tmp_path / "pwned").exists()
    simulated = run(
        make_config(deep_merge(honest_values, {"training": {"clients_at_once": 1}})), tmp_path / "other"
    )
    name = RunFolder.open(folder).read_json("federation.json")["run"]
    for site in SITES:
        own = load_file(federation.folder / site / "kept" / name / "model" / "adapter_model.safetensors")
        theirs = load_file(simulated.path / "clients" / site / "adapter_model.safetensors")
        for tensor in theirs:
            np.testing.assert_allclose(own[tensor].numpy(), theirs[tensor].numpy(), atol=1e-6, err_msg=site)
    # One process with the model at each site, however many messages came.
    for site in SITES:
        pattern = f"{worker.__name__} {federation.folder / site}"
        found = subprocess.run(["pgrep", "-f", pattern], capture_output=True, text=True, check=False)
        assert len(found.stdout.split()) == 1


def test_a_sealed_run_between_sites_agrees_with_the_simulator(federation, toy_values, tmp_path):
    """Real processes, keys and signatures: the masks cancel, and the server's sums are those of the simulator."""
    values = run_values(toy_values, seconds=900, quorum=3, rounds=2, sealing={"on": True})
    (federation.server / "app" / "run.toml").write_text(to_toml(make_config(values)))
    trifed("flower", "sites", federation.server)
    for site in SITES:
        trifed("flower", "trust", federation.folder / site, federation.server / "sites.pub", "--yes")
    folder = federation.server / "runs" / "sealed"
    leading = federation.run_in(folder)
    nodes = [federation.nodes[site] for site in SITES]
    federation.processes.wait_for(lambda: has(folder, "finished"), federation.link, leading, *nodes)

    events = events_of(folder)
    assert not [e for e in events if e["event"] in ("left out", "refused")]
    assert {e["round"]: e["clients"] for e in events if e["event"] == "sum"} == dict.fromkeys(range(3), SITES)
    simulated = run(make_config(deep_merge(values, {"training": {"clients_at_once": 1}})), tmp_path / "other")
    summary = RunFolder.open(folder).read_json("summary.json")
    assert summary["sealing"] == simulated.summary["sealing"] == {"at_least": 3, "fewest": 3, "rounds_without": 0}
    name = RunFolder.open(folder).read_json("federation.json")["run"]
    for site in SITES:
        own = load_file(federation.folder / site / "kept" / name / "model" / "adapter_model.safetensors")
        theirs = load_file(simulated.path / "clients" / site / "adapter_model.safetensors")
        for tensor in theirs:
            np.testing.assert_allclose(own[tensor].numpy(), theirs[tensor].numpy(), atol=1e-6, err_msg=site)
        sent = [r for r in read_releases(federation.folder / site / "kept") if r.run == name and r.parts]
        assert [(r.kind, *r.parts) for r in sent if r.round] == [("train", "ready"), ("send", "sum")] * 2


ROUNDS = 6
FAULTY = '''"""Answers for a site, wrongly in some rounds."""

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
    if request.kind != "train":
        return ask_worker(path, request)
    if (site, number) == ("basil", 3):
        (path.parent / "asked").touch()
        time.sleep(900)  # it is killed meanwhile
    if site == "amber" and number in (4, 5):  # until basil is connected again
        until = time.monotonic() + 0.8 * float(request.facts["seconds"])
        while not (path.parent / "go on").is_file() and time.monotonic() < until:
            time.sleep(0.2)
    reply = ask_worker(path, request)
    match site, number:
        case "coral", 1:
            raise OSError("the disk is full")
        case "basil", 1:
            return instead(reply, [0.0] * 64, run="another-1")
        case "coral", 2:
            return instead(reply, [np.nan] * 64)
        case "amber", 2:
            return instead(reply, [0.0] * 3)
        case "coral", 3:
            (path.parent / "slow").touch()
            time.sleep(float(request.facts["seconds"]) + 2)
    return reply


run_installed_app(answer)
'''


def test_whatever_goes_wrong_at_a_site_the_others_go_on(federation, toy_values):
    """An error, NaN, a wrong shape, another run's message, too slow, killed; one comes late, and one leaves.

    All with noise: each site's ledger has what left it, whether or not it arrived.
    """
    privacy = {"summary": {"epsilon": 4.0}, "update": {"epsilon": 8.0, "clip": 0.5}}
    values = run_values(
        toy_values, federation.short_round, quorum=1, rounds=ROUNDS, wire={"bits": 32}, privacy=privacy
    )
    tmp_path, processes = federation.folder, federation.processes
    (federation.server / "app" / "run.toml").write_text(to_toml(make_config(values)))
    processes.install_app(FAULTY, SITES)
    folder = federation.server / "runs" / "faulty"
    leading = federation.run_in(folder)
    needed = [federation.link, leading, federation.nodes["amber"], federation.nodes["coral"]]
    processes.wait_for(lambda: has(folder, "round"), *needed)
    federation.let_in(["dill"])
    federation.start_node("dill")
    held_up = tmp_path / "basil" / "asked", tmp_path / "coral" / "slow"  # both in round 3
    processes.wait_for(lambda: all(path.is_file() for path in held_up), *needed)
    processes.kill(federation.nodes["basil"])
    trifed("flower", "withdraw", tmp_path / "coral")  # its answer to round 3 is made; the next it refuses
    before = federation.connections("basil")
    federation.start_node("basil")
    # Flower counts a killed node as connected for up to a minute, and lets its new process in only after that.
    processes.wait_for(lambda: federation.connections("basil") > before, *needed)
    (tmp_path / "amber" / "go on").touch()
    processes.wait_for(lambda: has(folder, "finished"), *needed)

    events = events_of(folder)
    out = {(e["client"], e["round"]): e["code"] for e in events if e["event"] == "left out"}
    codes = {("coral", 1): "storage", ("basil", 1): "bad_reply", ("coral", 2): "bad_reply",
             ("amber", 2): "bad_reply", ("coral", 3): "no_answer", ("coral", 4): "left"}  # fmt: skip
    assert {key: out[key] for key in codes} == codes
    assert out["basil", 3]
    trained = {name: [e["round"] for e in events if e["event"] == "trained" and e["client"] == name]
               for name in [*SITES, "dill"]}  # fmt: skip
    assert trained["amber"] == [1, *range(3, ROUNDS + 1)]
    assert trained["coral"] == []
    assert trained["basil"][0] == 2 and 3 not in trained["basil"], out
    assert trained["basil"][-1] == ROUNDS, out
    [late] = [e for e in events if e["event"] == "came late"]
    assert trained["dill"] == list(range(late["round"], ROUNDS + 1)) and 2 <= late["round"] <= 4
    assert [(e["client"], e["round"]) for e in events if e["event"] == "withdrawn"] == [("coral", 5)]

    def noised(name):
        [ledger] = (tmp_path / name / "kept").rglob("ledger.json")
        book = read_ledger(ledger)
        assert all(entry.multiplier and entry.multiplier > 1 for entry in book.entries)
        most = promised(book.budget, ROUNDS, values["training"].get("steps"), summarises=True, uploads=True)
        for found, limit in zip(spent(book.entries, book.budget), most, strict=True):
            assert 0 < found.epsilon <= limit.epsilon * (1 + 1e-9)
        return [(entry.what, entry.round) for entry in book.entries]

    assert noised("amber") == [("summary", 0), *(("update", number) for number in range(1, ROUNDS + 1))]
    assert noised("coral") == [("summary", 0), *(("update", number) for number in range(1, 4))]  # none arrived
    assert noised("dill") == [("summary", 0), *(("update", number) for number in trained["dill"])]
