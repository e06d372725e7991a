"""Points from events: which, when a round is over, and that they are the numbers of the run's own summary."""

from __future__ import annotations

import pytest

from trifed.methods import METHODS
from trifed.reports.tracking.scalars import Point, Scalars, scalars


def started(*clients, evaluated_model="trained"):
    return {"event": "started", "method": "x", "scored": evaluated_model, "clients": list(clients)}


def trained(number, client, loss, up=10, down=0):
    facts = {"loss": loss, "up": {"w": up}, "down": {"w": down} if down else {}}
    return {"event": "trained", "round": number, "client": client, **facts}


def scores(number, client, accuracy, stage="trained", examples=10):
    test = {"loss": 1.0, "accuracy": accuracy, "examples": examples}
    return {"event": "scores", "round": number, "stage": stage, "client": client, "valid": test, "test": test}


LOG = [
    started("a", "b"),
    scores(0, "a", 0.25, "start"),
    scores(0, "b", 0.5, "start"),
    {"event": "summary", "client": "a", "up": {"means": 3}},
    trained(1, "a", 2.0),
    trained(1, "b", 1.0),
    trained(2, "a", 1.5, down=7),
    trained(2, "b", None, down=7),
    scores(2, "a", 0.75),
    scores(2, "b", None),
    scores(2, "a", 0.0, "received"),
    {"event": "delivered", "round": 3, "client": "a", "down": {"w": 5}},
    {"event": "finished", "round": 2},
]


def test_every_point_of_a_small_log():
    start, first, second = scalars(LOG)
    assert set(start) == {
        Point("accuracy/mean", 0, 0.375),
        Point("accuracy/worst", 0, 0.25),
        Point("accuracy/best", 0, 0.5),
        Point("client accuracy/a", 0, 0.25),
        Point("client accuracy/b", 0, 0.5),
        Point("bytes/up", 0, 3),
        Point("bytes/down", 0, 0),
    }
    assert set(first) == {
        Point("training loss/mean", 1, 1.5),
        Point("client training loss/a", 1, 2.0),
        Point("client training loss/b", 1, 1.0),
        Point("bytes/up", 1, 23),
        Point("bytes/down", 1, 0),
    }
    assert set(second) == {
        Point("training loss/mean", 2, 1.5),
        Point("client training loss/a", 2, 1.5),
        Point("accuracy/mean", 2, 0.75),
        Point("accuracy/worst", 2, 0.75),
        Point("accuracy/best", 2, 0.75),
        Point("client accuracy/a", 2, 0.75),
        Point("bytes/up", 2, 43),
        Point("bytes/down", 2, 19),
    }


def test_a_round_comes_out_only_when_it_is_over():
    reader = Scalars()
    out = [len(reader.read(event)) > 0 for event in LOG]
    assert [LOG[place]["event"] for place, some in enumerate(out) if some] == ["trained", "trained", "finished"]
    assert out.index(True) == 4  # the first event of round 1 ends round 0


def test_a_log_that_was_broken_off_ends_with_its_last_round():
    *_, last = scalars(LOG[:8])
    assert {point.step for point in last} == {2}
    assert Point("bytes/down", 2, 14) in last


def test_going_on_does_not_end_the_round_that_is_whole():
    resumed = {**LOG[0], "event": "resumed", "round": 1}
    assert list(scalars([*LOG[:6], resumed, *LOG[6:]])) == list(scalars(LOG))


def test_nothing_comes_of_nothing():
    assert list(scalars([])) == []


@pytest.mark.parametrize("method", sorted(set(METHODS) - {"ce-lora-authors", "feddpa"}))
def test_the_points_of_a_run_are_its_summarys_numbers(method, finished):
    run = finished(method)
    points = {(p.tag, p.step): p.value for batch in scalars(run.events) for p in batch}
    for row in run.summary["curve"]:
        for name in ("mean", "worst", "best"):
            assert points["accuracy/" + name, row["round"]] == row[name]
        if row["round"]:
            assert points["training loss/mean", row["round"]] == pytest.approx(row["training_loss"], rel=1e-12)
    for client in run.summary["clients"]:
        assert points["client accuracy/" + client["name"], 3] == client["now"]["accuracy"]
    assert points["bytes/up", 3] == run.summary["bytes"]["up"]
    assert points["bytes/down", 3] == run.summary["bytes"]["down"]
