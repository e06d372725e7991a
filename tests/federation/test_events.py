"""Events are serialised to the names and fields that logs and listeners have always had."""

from __future__ import annotations

import inspect
import json

import pytest

from trifed.federation import events
from trifed.federation.run_folder import EventLog, RunFolder

NAMES = {
    "loading", "split", "trouble", "closing", "started", "resumed", "opening", "summary", "scores", "warned",
    "trained", "kept its own", "left out", "delivered", "round", "finished", "joined", "refused", "came late",
    "opened again", "withdrawn", "bounded",
}  # fmt: skip


KINDS = [
    function
    for name, function in inspect.getmembers(events, inspect.isfunction)
    if function.__module__ == events.__name__ and name not in ("_event", "line_of", "logged_stage")
]


def logged(kind):
    """The event of a kind whose facts are all 1."""
    return kind(**dict.fromkeys(inspect.signature(kind).parameters, 1))


def test_every_event_has_its_own_known_name():
    assert sorted(logged(kind)["event"] for kind in KINDS) == sorted(NAMES)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_an_event_is_logged_with_its_fields(kind):
    today = {"number": "round", "evaluated_model": "scored"}
    fields = {today.get(name, name) for name in inspect.signature(kind).parameters}
    assert logged(kind).keys() == {"event", *fields}


def test_a_missing_fact_is_not_logged():
    assert set(events.opening_exchange("a", up={"C": 4})) == {"event", "client", "up"}
    assert "examples" not in events.started("local", "trained", ["a"])


def test_log_and_listener_receive_the_same(tmp_path):
    heard = []
    log = EventLog(RunFolder(tmp_path), heard.append)
    log(events.left_out(2, "a", "no_answer", "too late"))
    [line] = (tmp_path / "events.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)] == heard
    assert heard[0] == {"event": "left out", "round": 2, "client": "a", "code": "no_answer", "reason": "too late"}
