"""What a site answers in each phase of a run, and that its errors' words stay with it."""

from __future__ import annotations

import json
import logging
from typing import get_args

import pytest

from trifed import make_config
from trifed.common.errors import ConfigError, DataError, MessageError, ModelError, RunError
from trifed.deployment.greeting import greeting, settings_to_send
from trifed.deployment.protocol import REASONS, RefusalCode, Reply, Request, read_code, rejected_for
from trifed.federation.client import Client
from trifed.federation.training import device_placement
from trifed.methods import METHODS, code_hash
from trifed.privacy.ledger import FILE

SITES = ["amber", "basil", "coral"]
PRIVACY = {"summary": {"epsilon": 4.0}, "update": {"epsilon": 8.0}}
NOT, WRONG, CHANGED = "not_asked_for", "wrong_phase", "data_changed"
PHASES = ["greeted", "opened", "trained", "finished"]


class Session:
    """One site and what a server would ask it, at `phase` of a run of two rounds."""

    def __init__(self, federation, method, phase, privacy=None):
        self.make = lambda: federation.node("amber")
        coordinator, _ = federation(method, privacy=privacy or {})
        self.config = coordinator.config
        self.about = {"run": "run-1", "place": 0}
        self.node, self.mark = self.make(), "none"
        self.asked("hello", **greeting("run-1", self.config).facts)
        steps = {"opened": ["open"], "trained": ["open", "train"], "finished": ["open", "train", "finish"]}
        for kind in steps.get(phase, []):
            reply = self.asked(kind, **self.facts(kind))
            assert reply.error is None and not reply.lost, reply
            self.mark = reply.facts.get("data", self.mark)

    def facts(self, kind, number=None, counts=None):
        if kind not in ("train", "finish"):
            return {}
        number, counts = (number or 1, counts or 0) if kind == "train" else (3, 1)
        return {"round": number, "counts": counts, "asked": 3, "data": self.mark}

    def asked(self, kind, parts=None, **facts):
        return self.node.answer(Request(kind, {**self.about, **facts}, parts or {}))

    def kept(self):
        return {path.name: path.read_bytes() for path in self.node.run.store.folder.rglob("*") if path.is_file()}


def refused(session, kind, code, **facts):
    """It is refused with this code and nothing else, and nothing on the site's disk changes; restarted too."""
    for node in (session.node, session.make()):
        session.node = node
        node.resume("run-1")
        before = session.kept()
        reply = session.asked(kind, **{**session.facts(kind), **facts})
        assert (reply.error, reply.parts) == (code, {}) and set(reply.facts) <= {"changed"}
        assert session.kept() == before


@pytest.mark.parametrize("privacy", [None, PRIVACY], ids=["plain", "privacy"])
@pytest.mark.parametrize("phase", PHASES)
def test_a_run_without_frames_asks_for_no_gradient_and_everything_has_its_phase(federation, phase, privacy):
    session = Session(federation, "own-prior", phase, privacy)
    wrong = [("gradient", NOT, {}), ("frames", NOT, {}), ("frames", NOT, {"layout": "[]"})]
    if phase == "greeted":
        wrong += [("train", CHANGED, {}), ("finish", WRONG, {})]
    if phase in ("opened", "trained"):
        far = {"round": 3, "counts": 0}
        wrong += [("train", WRONG, far), ("train", WRONG, {"round": 0}), ("train", WRONG, {"counts": 1})]
        wrong += [("finish", WRONG, {"round": 2}), ("finish", WRONG, {"round": 4})]
    if phase in ("trained", "finished"):
        wrong += [("open", WRONG, {}), ("open", WRONG, {"start": 1})]
    if phase == "finished":
        wrong += [("open", WRONG, {"again": 1}), ("train", WRONG, {}), ("train", WRONG, {"round": 2, "counts": 1})]
    for kind, code, facts in wrong:
        refused(session, kind, code, **facts)
    if privacy and phase in ("greeted", "opened"):
        book = session.node.run.store.folder / "privacy" / FILE
        written = [entry["what"] for entry in json.loads(book.read_text())["entries"]] if book.exists() else []
        assert written == ([] if phase == "greeted" else ["summary"])


def test_a_round_that_counts_is_not_trained_again(federation):
    session = Session(federation, "own-prior", "trained")
    first = session.asked("train", **session.facts("train"))  # its answer was lost
    assert first.error is None and first.parts
    again = session.asked("train", **session.facts("train", 2, 1))
    assert again.error is None
    refused(session, "train", "no_going_back")
    assert session.asked("train", **session.facts("train", 2, 1)).error is None


def test_a_finished_run_is_undone_only_where_the_site_allows_it(federation):
    session = Session(federation, "own-prior", "finished")
    refused(session, "train", WRONG)
    session.make = lambda: federation.node("amber", may_go_back=True)
    session.node = session.make()
    assert session.asked("train", **session.facts("train")).error is None
    assert not session.node.run.store.finished()


def test_the_gradient_is_asked_for_in_the_opening_alone(federation):
    session = Session(federation, "fed-sb", "greeted")
    refused(session, "gradient", WRONG)
    refused(session, "frames", WRONG)
    session = Session(federation, "fed-sb", "opened")
    assert session.asked("gradient").parts["gradient"]
    session.node.run.config = session.config.model_copy(
        update={"privacy": make_config({**VALUES, "privacy": PRIVACY}).privacy}
    )  # as no run is configured
    assert session.asked("gradient") == Reply(error=NOT)


VALUES = {"method": {"name": "own-prior"}, "data": {"source": "x.csv"}}


def test_frames_are_sent_again_but_no_gradient_after_them(federation):
    shared_projections, replies = [], []

    def note(reply, request):
        shared_projections.append(request)
        return reply

    coordinator, channel = federation("fed-sb", {("frames", 0, "amber"): note})
    nodes = dict(channel.clients)

    def asks(reply, request):
        node = next(node for node in nodes.values() if node.settings.name == "amber")
        about = {"run": request.facts["run"], "place": request.facts["place"]}
        replies.append(node.answer(Request("gradient", about)))
        kept = node.run.store.shared_projections()
        replies.append(node.answer(shared_projections[0]))
        changed = bytearray(shared_projections[0].parts["frames"])
        changed[-1] ^= 1
        replies.append(node.answer(Request("frames", shared_projections[0].facts, {"frames": bytes(changed)})))
        assert node.run.store.shared_projections().keys() == kept.keys()
        return reply

    channel.faults["train", 1, "amber"] = asks
    coordinator.run()
    assert [reply.error for reply in replies] == [WRONG, None, WRONG]
    assert not any(reply.parts for reply in replies)


@pytest.mark.parametrize("change", [{"method": {"name": "fed-sb"}}, {"privacy": {}}, {"rounds": 900}])
def test_a_run_keeps_the_settings_that_say_what_may_be_asked(federation, change):
    session = Session(federation, "own-prior", "trained", PRIVACY)
    values = {**json.loads(settings_to_send(session.config)), **change}
    method_code = code_hash(METHODS[values["method"]["name"]])
    refused(session, "hello", "wrong_run", config=json.dumps(values), method_code=method_code)


SECRET = "kryptonite"


@pytest.mark.parametrize("privacy", [None, PRIVACY], ids=["plain", "privacy"])
@pytest.mark.parametrize(
    ("raised", "code"),
    [
        (DataError(f"labels that data.labels does not name: {SECRET}"), "data_unusable"),
        (ModelError(f"/home/{SECRET}: no model"), "model_unusable"),
        (ConfigError([f"data.source: got /home/{SECRET}"]), "settings_unusable"),
        (RunError(f"/home/{SECRET}: damaged"), "other"),
        (MessageError(f"got {SECRET}"), "bad_request"),
        (PermissionError(13, "Permission denied", f"/home/{SECRET}"), "storage"),
        (ZeroDivisionError(SECRET), "other"),
    ],
)
def test_an_errors_words_stay_at_the_site(federation, monkeypatch, caplog, raised, code, privacy):
    session = Session(federation, "own-prior", "greeted", privacy)

    def fails(*args, **more):
        raise raised

    monkeypatch.setattr("trifed.deployment.site_run.make_client", fails)
    with caplog.at_level(logging.WARNING):
        reply = session.asked("open")
    assert reply == Reply(error=code)
    sent = json.dumps([dict(reply.facts), reply.error]).encode() + b"".join(reply.parts.values())
    assert SECRET.encode() not in sent
    assert SECRET in caplog.text
    assert SECRET not in rejected_for(reply.error).reason


def test_real_data_and_folders_say_nothing_either(federation, site_tables, events, caplog):
    (site_tables / "amber.csv").write_text(f"text,label,site\nhello,{SECRET},amber\n")
    (site_tables / "basil.csv").unlink()
    coordinator, _ = federation(deployment={"clients": 1, "quorum": 1})
    with caplog.at_level(logging.WARNING):
        coordinator.run()
    assert [e["code"] for e in events(coordinator, "left out")] == ["data_unusable"] * 2
    log = (coordinator.folder.path / "events.jsonl").read_text()
    assert SECRET not in log and str(site_tables) not in log
    assert SECRET in caplog.text and "basil.csv" in caplog.text


def test_every_code_has_the_servers_words_and_an_unknown_one_is_other():
    assert set(REASONS) == set(get_args(RefusalCode))
    assert read_code("") is None and read_code("guard") == "guard"
    assert read_code("made up") is read_code(7) == "other"


def test_a_fault_of_the_package_is_a_code_too_and_the_site_goes_on(federation, monkeypatch, events, caplog):
    """Any other exception ended the site's process, and with it the model in memory."""
    train, failed = Client.round, []

    def fails_once(self, number, *rest, **more):
        done = train(self, number, *rest, **more)
        if self.dataset.name == "amber" and number == 1 and not failed:
            failed.append(number)
            raise KeyError(SECRET)
        return done

    monkeypatch.setattr(Client, "round", fails_once)
    coordinator, _ = federation("own-prior")
    coordinator.run()
    assert [(e["client"], e["round"], e["code"]) for e in events(coordinator, "left out")] == [
        ("amber", 1, "other")
    ]
    assert [e["round"] for e in events(coordinator, "trained") if e["client"] == "amber"] == [2]
    assert SECRET in caplog.text


def test_a_site_whose_processor_emulates_bfloat16_says_so_in_its_log(federation, caplog, monkeypatch):
    monkeypatch.setattr(device_placement, "_cpu_has_bf16", lambda: False)
    coordinator, _ = federation("fedavg-lora", training={"precision": "bf16"}, deployment={"clients": 3})
    with caplog.at_level(logging.WARNING):
        coordinator.client_manager.gather()
    assert [record.message.partition(":")[0] for record in caplog.records] == ["training.precision"] * 3
