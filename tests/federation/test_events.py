"""Events are serialised to the names and fields that logs and listeners have always had."""

from __future__ import annotations

import json
from dataclasses import fields

import pytest

from trifed.federation import events
from trifed.federation.run_folder import EventLog, RunFolder

NAMES = {
    "loading", "split", "trouble", "closing", "started", "resumed", "opening", "summary", "scores", "warned",
    "trained", "kept its own", "left out", "delivered", "round", "finished", "joined", "refused", "came late",
    "opened again", "withdrawn", "bounded", "sum", "no sum", "diverged", "best so far", "ended early",
    "kept round", "generating", "waiting",
}  # fmt: skip


def kinds(base=events.RunEvent):
    for kind in base.__subclasses__():
        yield kind
        yield from kinds(kind)


def test_every_event_has_its_own_known_name():
    names = [kind.name for kind in kinds() if kind is not events.ClientEvent]
    assert sorted(names) == sorted(NAMES)


@pytest.mark.parametrize("kind", sorted(kinds(), key=lambda kind: kind.name))
def test_an_event_is_logged_with_its_fields(kind):
    values = {field.name: 1 for field in fields(kind)}
    assert kind(**values).to_dict() == {"event": kind.name, **values}


def test_a_missing_fact_is_not_logged():
    assert set(events.OpeningExchange("a", up={"C": 4}).to_dict()) == {"event", "client", "up"}
    assert "examples" not in events.Started("local", "trained", ["a"]).to_dict()


def test_log_and_listener_receive_the_same(tmp_path):
    heard = []
    log = EventLog(RunFolder(tmp_path), heard.append)
    log(events.LeftOut(2, "a", "no_answer", "too late"))
    [line] = (tmp_path / "events.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)] == heard
    assert heard[0] == {"event": "left out", "round": 2, "client": "a", "code": "no_answer", "reason": "too late"}


@pytest.mark.parametrize("kind", [events.CameLate, events.OpenedAgain])
def test_a_number_of_examples_that_a_site_does_not_tell_is_not_shown(kind):
    """The server counts it as one example."""
    told, untold = (events.line_of(kind(3, "dill", examples).to_dict()) for examples in (30, 1))
    assert "30 examples" in told and "example" not in untold and "dill" in untold
