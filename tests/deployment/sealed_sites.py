"""What the tests of sealed runs between sites share."""

from __future__ import annotations

import numpy as np

SITES = ["amber", "basil", "coral"]
FOUR = [*SITES, "dill"]
LABELS = ["billing", "delivery", "login"]
SENT, INCOMPLETE, FEW = "sum_sent", "sum_incomplete", "too_few_for_a_sum"


def left_out(events, coordinator):
    return {(e["client"], e["round"]): e["code"] for e in events(coordinator, "left out")}


def counted(events, coordinator, name="amber"):
    return [e["round"] for e in events(coordinator, "trained") if e["client"] == name]


def sums(events, coordinator):
    return {e["round"]: e["clients"] for e in events(coordinator, "sum")}


def with_terms(coordinator, change):
    """Let a server change the terms of its sums; the round and the terms are given to `change`."""
    opened = coordinator.open

    def opening():
        done = opened()
        terms = coordinator.server.terms
        coordinator.server.terms = lambda number, clients: change(number, terms(number, clients))
        return done

    coordinator.open = opening


class Heard:
    """Faults that change nothing and note what was asked and answered, by (kind, round, site)."""

    def __init__(self, *kinds, rounds=range(4)):
        self.requests, self.replies = {}, {}
        self.faults = {(kind, number, site): self.note for kind in kinds for number in rounds for site in FOUR}

    def note(self, reply, request):
        key = (request.kind, request.facts.get("round", 0), FOUR[request.facts["place"]])
        self.requests[key], self.replies[key] = request, reply
        return reply


def same(one, other):
    assert one.keys() == other.keys()
    return all(np.array_equal(one[name], other[name]) for name in one)
