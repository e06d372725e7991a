"""Whole sealed runs on a tiny model: sums, bytes, rounds without a sum, clients that do not send, and resuming."""

from __future__ import annotations

import json

import numpy as np
import pytest

from trifed import make_config, run
from trifed.deployment.greeting import settings_to_send
from trifed.experiments.dry_run import dry_run
from trifed.experiments.runner import run_or_resume
from trifed.federation.client import Client
from trifed.federation.messages import Rejected
from trifed.federation.plain_lora import plain_lora_traffic
from trifed.federation.round import FederatedRun
from trifed.federation.run_folder import RunFolder
from trifed.federation.sealed.round import TERMS
from trifed.federation.sealed.server import INCOMPLETE
from trifed.federation.sealed.upload import SealedUploads
from trifed.federation.simulation import Simulation
from trifed.federation.upload import RECEIVED, RESIDUAL

METHODS_TRIED = ["own-prior", "fedavg-lora"]


def sealed(toy_values, method, at_least=3, **changes):
    return make_config(toy_values(method=method, sealing={"on": True, "at_least": at_least}, **changes))


@pytest.fixture(scope="module")
def five(tmp_path_factory, toy_rows):
    """Settings for data of five clients."""
    folder = tmp_path_factory.mktemp("five")
    first, second = (toy_rows(folder / f"{seed}.csv", 40, seed).read_text() for seed in (0, 1))
    for site, other in (("amber", "dill"), ("basil", "elder")):
        first += "".join(
            line.replace(f",{site}", f",{other}") for line in second.splitlines(True) if f",{site}" in line
        )
    (folder / "five.csv").write_text(first)
    return {"data": {"source": str(folder / "five.csv")}}


def events_of(folder, *names):
    return [event for event in RunFolder.open(folder).events() if event["event"] in names]


def models(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.glob("clients/**/*.safetensors"))}


@pytest.mark.parametrize("method", METHODS_TRIED)
def test_a_sealed_run_opens_one_sum_a_round_and_counts_its_bytes(method, toy_values, tmp_path):
    config = sealed(toy_values, method)
    found = run(config, tmp_path / "run")
    sums = [(e["round"], len(e["clients"]), e["bits"]) for e in events_of(found.path, "sum")]
    assert sums == [*([(0, 3, 3)] if method == "own-prior" else []), *((n, 3, 3) for n in (1, 2, 3))]
    assert events_of(found.path, "left out", "no sum", "summary") == []
    assert found.summary["bytes"]["per_upload"] == dry_run(config).bytes_up
    trained, bytes_of = events_of(found.path, "trained"), found.summary["bytes"]
    assert len(trained) == 9 and all(event["down"][TERMS] > 3 * (32 + 64) for event in trained)
    for event in trained:
        up = {name: size for name, size in event["up"].items() if name != "(envelope)"}
        if method == "fedavg-lora":
            shapes = {"head.weight": 3 * 32, "head.bias": 3}
            assert up["head.weight"] in range(
                3 * shapes["head.weight"] // 8 + 2, 3 * shapes["head.weight"] // 8 + 4
            )
        assert 0 < event["up"]["(envelope)"] < 400 and all(up.values())
    opening = events_of(found.path, "opening")
    assert len(opening) == (3 if method == "own-prior" else 0)
    delivered = events_of(found.path, "delivered")
    for way in ("up", "down"):
        assert bytes_of[way] == sum(sum(e.get(way, {}).values()) for e in (*trained, *opening, *delivered))
    assert found.summary["sealing"] == {"at_least": 3, "fewest": 3, "rounds_without": 0}
    # Plain LoRA is sealed as well: beside itself it sends as much, but for headers and two bytes a tensor.
    assert bytes_of["times_fewer"] == bytes_of["fedavg_lora_would_send"] / bytes_of["total"]
    if method == "fedavg-lora":
        assert bytes_of["times_fewer"] == pytest.approx(1, rel=0.02)
    # In round 1 everybody has the common start; then a change of few bits, or float32 where the wire has it.
    down = [sum(event["down"].values()) - event["down"][TERMS] for event in trained]
    assert down[:3] == [0, 0, 0] and len(set(down[3:])) == 1


def test_plain_loras_bytes_are_those_of_the_sums_that_a_run_had():
    """4,000 numbers at 1 bit: 500 bytes and 16 blocks of two; in sums of 3 or 2 they take 3 bits: 1,500 bytes."""
    events = [
        {"event": "sum", "round": 0, "clients": ["a", "b", "c"], "bits": 3}
    ]  # of label holders: no plain LoRA
    for number, clients in ((1, ["a", "b", "c"]), (2, ["a", "b"])):
        events.append({"event": "sum", "round": number, "clients": clients, "bits": 3})
        events += [{"event": "trained", "round": number, "client": client} for client in ("a", "b", "c")]
    assert plain_lora_traffic(events[2:3], 4000, 1, 100) == 2 * (532 + 100)  # an open run: up and down
    down, up = 6 * (532 + 100), 5 * (1500 + 32 + 100)
    terms = plain_lora_traffic(events, 4000, 1, 100) - down - up
    least = sum(n * (32 + n * (32 + 64 + 4)) for n in (3, 2))  # steps; keys, signatures and indices of the sum
    assert least < terms < least + 5 * 1000  # and their headers
    noised = plain_lora_traffic(events, 4000, 1, 100, noised_sums=True)
    assert 0 <= down + up + terms - noised - 5 * 2 * 32 < 5 * 16  # neither magnitudes nor steps, but for alignment
    assert plain_lora_traffic(events, 0, 1, 100) == 0


def test_the_final_models_are_near_those_of_the_open_run(toy_values, tmp_path):
    """Equal clients and weights: a sealed mean differs from an open one by what rounding still owes."""
    changes = {
        "training": {"learning_rate": 0.01},
        "rounds": 6,
        "aggregation": {"groups": "all", "weights": "equal"},
    }
    open_run = run(make_config(toy_values(method="fedavg-lora", **changes)), tmp_path / "open")
    for levels, most in ((1, 0.02), (7, 0.01)):
        config = make_config(toy_values(method="fedavg-lora", sealing={"on": True, "levels": levels}, **changes))
        found = run(config, tmp_path / f"sealed{levels}")
        means = [r.summary["curve"][-1]["training_loss"] for r in (open_run, found)]
        assert abs(means[0] - means[1]) < most


@pytest.mark.parametrize("method", METHODS_TRIED)
def test_a_sealed_run_resumes_to_the_same_bits(method, toy_values, tmp_path, monkeypatch, five):
    config = sealed(toy_values, method, participation=0.6, training={"clients_at_once": 1}, **five)
    whole = run(config, tmp_path / "whole").path
    begin = Client.begin_round

    def stops(self, number, *rest, **more):
        if number == 3:
            raise KeyboardInterrupt
        return begin(self, number, *rest, **more)

    with monkeypatch.context() as patch:
        patch.setattr(Client, "begin_round", stops)
        with pytest.raises(KeyboardInterrupt):
            run(config, tmp_path / "stopped")
    resumed = run_or_resume(config, tmp_path / "stopped").path
    assert models(resumed) == models(whole) and len(models(whole)) > 1
    logs = [events_of(folder, "sum", "trained", "scores") for folder in (whole, resumed)]
    for log in logs:
        for event in log:
            event.pop("seconds", None)
    assert logs[0] == logs[1]
    assert {len(e["clients"]) for e in events_of(whole, "sum") if e["round"]} == {3}


def test_too_few_clients_have_no_sum_and_the_run_says_so(toy_values, tmp_path):
    heard = []
    config = sealed(toy_values, "own-prior", at_least=4, rounds=2)
    found = run(config, tmp_path / "run", heard.append)
    said = [e["text"] for e in heard if e["event"] == "trouble"]
    assert any(text.startswith("sealing.at_least: ") for text in said)
    assert [e["round"] for e in events_of(found.path, "no sum")] == [0, 1, 2] and events_of(
        found.path, "sum"
    ) == []
    # Each client trains on, and has at the end what it trained alone: the open run of nobody with anybody.
    assert events_of(found.path, "left out", "delivered") == [] and len(events_of(found.path, "trained")) == 6
    alone = run(config.with_method("alone"), tmp_path / "alone")
    mine, theirs = models(found.path), models(alone.path)
    assert mine == theirs and len(mine) > 2
    assert found.summary["sealing"] == {"at_least": 4, "fewest": None, "rounds_without": 2}


@pytest.mark.parametrize("where", ["absent", "silent"])
def test_a_list_with_a_part_missing_is_not_opened_and_its_clients_go_back(
    where, toy_values, tmp_path, monkeypatch
):
    """A round whose sum is not opened leaves everything as if it had not been, what is owed included."""
    config = sealed(toy_values, "own-prior", rounds=3, training={"clients_at_once": 1})
    send = Client.send

    def sends(self, number, *rest, **more):
        part = send(self, number, *rest, **more)
        return b"" if (number, self.dataset.index) == (2, 1) else part

    monkeypatch.setattr(Client, "send", sends)
    begin, before = Client.begin_round, {}

    def begins(self, number, *rest, **more):
        before[number, self.dataset.index] = self.state
        return begin(self, number, *rest, **more)

    monkeypatch.setattr(Client, "begin_round", begins)
    found = run(config, tmp_path / "run").path
    out = {(e["round"], e["client"], e["code"]) for e in events_of(found, "left out")}
    names = [client["name"] for client in json.loads((found / "summary.json").read_text())["clients"]]
    assert out == {(2, names[1], "bad_reply"), (2, names[0], INCOMPLETE), (2, names[2], INCOMPLETE)}
    assert [e["round"] for e in events_of(found, "sum")] == [0, 1, 3]
    assert [e["round"] for e in events_of(found, "no sum")] == [2]
    for client in range(3):
        assert before[3, client] is before[2, client]
        assert np.abs(before[3, client].memory[RESIDUAL]).sum() > 0
    downs = [sum(e["down"].values()) for e in events_of(found, "trained") if e["round"] == 3]
    assert len(set(downs)) == 1  # the same change once more, in few bits


def test_clients_in_no_list_train_on_their_own(toy_values, tmp_path, five):
    names = ["amber", "basil", "dill"]
    given = {"groups": "given", "members": [names]}
    config = sealed(toy_values, "fedavg-lora", rounds=2, aggregation=given, **five)
    found = run(config, tmp_path / "run").path
    assert {tuple(e["clients"]) for e in events_of(found, "sum")} == {tuple(names)}
    alone = [e for e in events_of(found, "trained") if e["client"] == "coral"]
    assert [(e["up"], e["down"]) for e in alone] == [({}, {})] * 2
    assert events_of(found, "left out") == []


def test_groups_follow_noised_summaries_and_no_exact_ones(toy_values, tmp_path):
    changes = {"aggregation": {"groups": "agreement"}, "rounds": 1}
    open_run = sealed(toy_values, "own-prior", **changes)
    assert events_of(run(open_run, tmp_path / "none").path, "summary") == []
    noised = sealed(toy_values, "own-prior", privacy={"summary": {"epsilon": 50}}, **changes)
    found = run(noised, tmp_path / "noised").path
    assert len(events_of(found, "summary")) == 3 and [e["round"] for e in events_of(found, "sum")] == [0, 1]


def test_no_message_of_a_client_has_an_exact_count(toy_values, tmp_path, monkeypatch):
    seen, take = [], FederatedRun._open_sums
    monkeypatch.setattr(
        FederatedRun,
        "_open_sums",
        lambda self, *rest: seen.append([r.examples for r in self.transport.records]) or take(self, *rest),
    )
    run(sealed(toy_values, "own-prior", rounds=1), tmp_path / "run")
    assert seen == [[1, 1, 1]] * 2


def test_sites_of_open_runs_are_sent_the_settings_they_had(toy_values):
    values = make_config(toy_values())
    assert "sealing" not in json.loads(settings_to_send(values))
    assert json.loads(settings_to_send(sealed(toy_values, "own-prior")))["sealing"]["on"]


@pytest.mark.parametrize("missing", ["holders", "send"])
def test_who_misses_the_sum_of_holders_stays_in_the_run(missing, toy_values, tmp_path, monkeypatch):
    """Without that sum no row of the head is shared, which is all that it costs."""
    config, ask, heard = sealed(toy_values, "own-prior", rounds=2), Simulation.ask, []

    def asks(self, kind, number, *rest):
        for client, reply in ask(self, kind, number, *rest):
            late = (kind, number, client) == (missing, 0, 1)
            yield client, Rejected("no_answer", "too late") if late else reply

    monkeypatch.setattr(Simulation, "ask", asks)
    found = run(config, tmp_path / "run", heard.append).path
    assert events_of(found, "left out") == [] and [e["round"] for e in events_of(found, "sum")] == [1, 2]
    assert any(e["event"] == "trouble" and e["text"].startswith("basil: ") for e in heard)
    assert [e["round"] for e in events_of(found, "no sum")] == [0]


def test_a_client_whose_training_diverges_is_not_ready_and_owes_what_it_owed(toy_values, tmp_path, monkeypatch):
    config = sealed(toy_values, "fedavg-lora", training={"clients_at_once": 1})
    encode, states, begin = SealedUploads.encode, {}, Client.begin_round

    def encodes(self, header, values, *rest):
        bad = (header.round, header.client) == (2, 1)
        return encode(self, header, values * np.float32(np.nan) if bad else values, *rest)

    def begins(self, number, *rest, **more):
        states[number, self.dataset.index] = self.state
        return begin(self, number, *rest, **more)

    monkeypatch.setattr(SealedUploads, "encode", encodes)
    monkeypatch.setattr(Client, "begin_round", begins)
    found = run(config, tmp_path / "run").path
    assert [(e["round"], e["client"]) for e in events_of(found, "left out")] == [(2, "basil")]
    assert states[3, 1] is states[2, 1] and [e["round"] for e in events_of(found, "sum")] == [1, 3]
    # The others had too few for a sum in round 2. They trained on, and their next part has both rounds' change.
    assert all(states[3, client].steps > states[2, client].steps for client in (0, 2))
    downs = {e["client"]: e["down"] for e in events_of(found, "trained") if e["round"] == 3}
    assert set(downs["amber"]) == {TERMS} and set(downs["basil"]) > {TERMS}


def test_who_has_no_sum_has_the_reference_of_the_server_all_the_same(toy_values, tmp_path, monkeypatch):
    """Client and server agree on what a change in few bits is a change of, after rounds with and without a sum."""
    config = sealed(toy_values, "own-prior", rounds=5, wire={"bits": 1}, training={"clients_at_once": 1})
    ask, take, start, taken = Simulation.ask, Client.take, FederatedRun.begin, []

    def asks(self, kind, number, *rest):
        for client, reply in ask(self, kind, number, *rest):
            late = kind == "train" and number in (2, 3) and client == 2
            yield client, Rejected("no_answer", "too late") if late else reply

    def takes(self, number, *rest):
        values = take(self, number, *rest)
        taken.append((number, self.dataset.index))
        group = self.server_of_test.state["now"][0].astype(np.float32)
        np.testing.assert_array_equal(self.state.memory[RECEIVED], group)
        return values

    monkeypatch.setattr(Simulation, "ask", asks)
    monkeypatch.setattr(Client, "take", takes)

    def begins(self):
        number = start(self)
        for client in self.transport.clients:
            client.server_of_test = self.server
        return number

    monkeypatch.setattr(FederatedRun, "begin", begins)
    found = run(config, tmp_path / "run").path
    assert [e["round"] for e in events_of(found, "no sum")] == [2, 3]
    rounds = {client: [number for number, each in taken if each == client] for client in range(3)}
    assert rounds == {0: [2, 5, 6], 1: [2, 5, 6], 2: [2, 3, 4, 5, 6]}
