"""The server says whom it waits for and since when, in the log that the terminal and `trifed watch` show."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import pairwise

import pytest

from trifed.common.errors import RunError
from trifed.deployment.wait_notices import LONGEST, WaitNotices, name_some
from trifed.federation.events import line_of

SITES = ["amber", "basil", "coral"]


def test_notices_come_at_growing_intervals():
    logged, now = [], [0.0]
    since = datetime(2026, 11, 30, 12, 3, tzinfo=UTC)
    notices = WaitNotices(logged.append, clock=lambda: now[0], since=since)
    times = []
    for second in range(4000):
        now[0] = float(second)
        before = len(logged)
        notices.give(lambda: "basil to connect", {"basil"}, 2)
        times += [second] * (len(logged) - before)
    assert times[:5] == [60, 120, 240, 480, 960]
    assert {later - earlier for earlier, later in pairwise(times[4:])} == {int(LONGEST)}
    event = logged[0].to_dict()
    assert (event["event"], event["round"], event["clients"]) == ("waiting", 2, ["basil"])
    assert event["since"] == since.isoformat() and "2026-11-30 12:03:00 UTC" in line_of(event)


def test_the_first_notice_of_a_run_comes_at_once():
    logged = []
    WaitNotices(logged.append, first=0).give(lambda: "2 of 2 clients to connect")
    assert len(logged) == 1


def test_of_many_clients_some_are_named():
    assert name_some(SITES) == "amber, basil, coral"
    assert name_some([str(number) for number in range(1000)]) == "0, 1, 2, 3, 4 and 995 more"


def test_a_run_names_who_is_connected_and_how_many_are_missing(federation, events):
    nodes = {0: federation.node("amber")}
    coordinator, channel = federation(nodes=nodes)
    waits = []

    def connect(seconds):
        waits.append(events(coordinator, "waiting"))
        channel.clients |= {1: federation.node("basil"), 2: federation.node("coral")}

    coordinator.client_manager.sleep = connect
    coordinator.run()
    [[first]] = waits
    assert "2 of 3 clients" in first["text"] and "amber" in first["text"]
    assert events(coordinator, "waiting") == [first]  # nobody is waited for later


def test_a_run_that_continues_names_who_is_missing(federation, events):
    nodes = {place: federation.node(site) for place, site in enumerate(SITES)}
    coordinator, _ = federation(nodes=nodes, faults={("train", 2, site): "deaf" for site in SITES})
    with pytest.raises(RunError, match="0 of 3"):
        coordinator.run()
    again, channel = federation(nodes={0: nodes[0], 2: nodes[2]})
    again.client_manager.sleep = lambda seconds: channel.clients.update({1: nodes[1]})
    again.run()
    assert [event["clients"] for event in events(again, "waiting")] == [["basil"]]


def test_a_round_names_who_has_not_replied(federation, events, monkeypatch):
    monkeypatch.setattr("trifed.deployment.client_manager.WaitNotices", lambda log, first=0: WaitNotices(log, 0))
    coordinator, channel = federation()
    ask = channel.ask

    def slow(requests, seconds, missing):
        if any(request.kind == "train" and request.facts["round"] == 2 for request in requests.values()):
            missing([node for node in requests if channel.clients[node].settings.name == "coral"])
        return ask(requests, seconds)

    channel.ask = slow
    coordinator.run()
    assert [(event["round"], event["clients"]) for event in events(coordinator, "waiting")] == [(2, ["coral"])]
