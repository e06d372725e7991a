"""Events as lines."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from trifed.cli.app import app
from trifed.federation.events import LINES, line_of


@pytest.mark.parametrize(
    ("event", "line"),
    [
        ({"event": "started", "method": "local", "clients": ["a", "b"]}, "local: 2 clients"),
        (
            {"event": "trained", "round": 3, "client": "a", "loss": 0.25, "up": {"C": 1500, "(envelope)": 200}},
            "round 3  a: loss 0.250, 1.7 KB up",
        ),
        (
            {"event": "trained", "round": 3, "client": "a", "loss": None, "up": {}},
            "round 3  a: 0.0 KB up",
        ),
        ({"event": "left out", "round": 1, "client": "a", "reason": "gone"}, "round 1  a is left out: gone"),
        (
            {"event": "scores", "round": 2, "client": "a", "stage": "received", "test": {"accuracy": 0.5}},
            "round 2  a: 50.0 % on its test data (received)",
        ),
        ({"event": "scores", "round": 2, "client": "a", "stage": "received", "test": {"accuracy": None}}, ""),
        ({"event": "delivered", "round": 2, "client": "a"}, ""),
    ],
)
def test_a_line_for_an_event(event, line):
    assert line_of(event) == line


def test_a_finished_run_is_watched_to_its_end(finished):
    done = finished("ce-lora")
    told = CliRunner().invoke(app, ["watch", str(done.path)])
    assert told.exit_code == 0, told.output
    lines = told.stdout.splitlines()
    assert lines[0] == "ce-lora: 3 clients" and lines[-1] == "finished"
    assert sum("KB up" in line for line in lines) == 9
    assert set(LINES) >= {event["event"] for event in done.events} - {"delivered"}
