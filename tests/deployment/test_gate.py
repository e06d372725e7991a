"""A client that fails before round 1 is dismissed by name, and the others' run is as without it."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import load
from safetensors.torch import load_file

from trifed.common.errors import MessageError, RunError, one_line
from trifed.deployment.protocol import (
    MOST_AXES,
    MOST_NAME,
    MOST_TENSORS,
    REASONS,
    Reply,
    Request,
    read_layout,
)
from trifed.federation.messages import Header, Rejected, encode_summary
from trifed.similarity import Summary

SITES = ["amber", "basil", "coral"]


def nan_values(payload):
    """The same message with NaN as its first float32 values."""
    size = int.from_bytes(payload[:8], "little")
    return payload[: 8 + size] + b"\xff" * (len(payload) - 8 - size)


def with_part(name, change):
    return lambda reply, request: replace(reply, parts={**reply.parts, name: change(reply.parts[name])})


def with_facts(**facts):
    return lambda reply, request: replace(reply, facts={**reply.facts, **facts})


def without(name):
    return lambda reply, request: replace(reply, parts={n: p for n, p in reply.parts.items() if n != name})


def no_examples(reply, request):
    """The reply of a client without examples."""
    header = Header("summary", request.facts["run"], fingerprint_of(reply.parts["summary"]), 0, 0)
    parts = {**reply.parts, "summary": encode_summary(header, Summary.empty(64))}
    return replace(reply, facts={**reply.facts, "examples": 0}, parts=parts)


def fingerprint_of(payload):
    return json.loads(payload[8 : 8 + int.from_bytes(payload[:8], "little")])["__metadata__"]["base"]


OPENINGS = {
    "no summary": without("summary"),
    "a NaN summary": with_part("summary", nan_values),
    "a broken summary": with_part("summary", lambda payload: payload[:50]),
    "an error": lambda reply, request: Reply(error="data_unusable"),
    "no answer": "deaf",
    "examples in words": with_facts(examples="many"),
    "a true number of examples": with_facts(examples=True),
    "2^31 examples": with_facts(examples=2**31),
    "a long mark": with_facts(data="x" * 10**6),
    "other layers": with_facts(layers='[["other", [3, 4]]]'),
    "deep layers": with_facts(layers="[" * 100_000),
    "another start": lambda reply, request: replace(reply, facts={**reply.facts, "layout": "[]"}),
}


def end_of(coordinator, site_tables):
    """The server's state, and the honest clients' models."""
    state = {name: array.copy() for name, array in coordinator.server.state.items()}
    for site in SITES[1:]:
        folder = site_tables / "nodes" / site / coordinator.name / "model"
        state |= {f"{site}/{n}": t.numpy() for n, t in load_file(folder / "adapter_model.safetensors").items()}
    return state


def assert_same(one, other):
    assert set(one) == set(other)
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


@pytest.mark.parametrize("method", ["own-prior", "ce-lora"])
def test_a_bad_opening_dismisses_one_client_and_changes_nothing_for_the_others(
    method, federation, events, site_tables
):
    coordinator, _ = federation(method, faults={("open", 0, "amber"): no_examples}, rounds=1)
    coordinator.run()
    ends = [end_of(coordinator, site_tables)]
    for number, (name, fault) in enumerate(OPENINGS.items()):
        coordinator, channel = federation(
            method, folder=f"server-{number}", faults={("open", 0, "amber"): fault}, rounds=1
        )
        coordinator.run()
        [left_out] = events(coordinator, "left out")
        assert (left_out["client"], left_out["round"]) == ("amber", 0), name
        assert left_out["code"] in REASONS, name
        assert len(left_out["reason"]) <= 500, name
        assert not [key for key in channel.asked if key[2] == "amber" and key[0] in ("train", "finish")], name
        ends.append(end_of(coordinator, site_tables))
        assert_same(ends[0], ends[-1])


GRADIENTS = {
    "an error": lambda reply, request: Reply(error="gradients_off"),
    "no gradient": without("gradient"),
    "NaN": with_part("gradient", nan_values),
    "half of it": with_part("gradient", lambda payload: payload[: len(payload) // 2]),
    "other examples": with_part("gradient", lambda payload: payload.replace(b'"examples":"', b'"examples":"9', 1)),
}


def test_a_bad_gradient_dismisses_one_client_and_changes_nothing_for_the_others(federation, events, site_tables):
    coordinator, _ = federation("fed-sb", faults={("open", 0, "amber"): with_facts(examples=0)}, rounds=1)
    coordinator.run()
    ends = [end_of(coordinator, site_tables)]
    for number, (name, fault) in enumerate(GRADIENTS.items()):
        faults = {("gradient", 0, "amber"): fault}
        coordinator, _ = federation("fed-sb", folder=f"server-{number}", faults=faults, rounds=1)
        coordinator.run()
        [left_out] = events(coordinator, "left out")
        assert (left_out["client"], left_out["round"]) == ("amber", 0), name
        ends.append(end_of(coordinator, site_tables))
        assert_same(ends[0], ends[-1])


@pytest.mark.parametrize("kind", ["open", "gradient"])
def test_the_start_needs_the_quorum(kind, federation, events):
    faults = {(kind, 0, site): lambda reply, request: Reply(error="storage") for site in SITES[1:]}
    coordinator, _ = federation("fed-sb", faults=faults)
    with pytest.raises(RunError, match=r"^coral .* 1 clients remain"):
        coordinator.run()
    assert [e["client"] for e in events(coordinator, "left out")] == SITES[1:]


# -- numbers and texts


@pytest.mark.parametrize(
    "value", [-1, 2**31, 10**400, True, 1.0, float("nan"), "1", None, [1], b"1"], ids=lambda value: str(value)[:9]
)
def test_a_wrong_number_is_a_message_error(value):
    with pytest.raises(MessageError, match="'round'"):
        Request("train", {"round": value}).number("round")


@pytest.mark.parametrize("value", [10**400, float("inf"), float("nan"), 1e19, True, "1", None, [1]])
def test_a_wrong_real_is_a_message_error(value):
    with pytest.raises(MessageError, match="'loss'"):
        Reply({"loss": value}).real("loss")


def test_nan_is_a_number_where_it_is_allowed():
    assert np.isnan(Reply({"loss": float("nan")}).real("loss", finite=False))
    with pytest.raises(MessageError):
        Reply({"loss": float("inf")}).real("loss", finite=False)


@pytest.mark.parametrize("value", ["x" * 201, 1, None, ["x"]])
def test_a_wrong_text_is_a_message_error(value):
    with pytest.raises(MessageError, match="'data'") as raised:
        Reply({"data": value}).text("data")
    assert len(str(raised.value)) < 200


@pytest.mark.parametrize(
    "text",
    [
        "", "3", "null", '"x"', "{}x", "[" * 100_000, '[["a", [1, 0]]]', '[["a", [1.5]]]', '[["a", [true]]]',
        '[["a", [1e400]]]', f'[["a", [{10**400}]]]', '[["a", [-1]]]', '[[1, [1]]]', '[["a", [1]], ["a", [1]]]',
        json.dumps([["a", [1] * (MOST_AXES + 1)]]), json.dumps([["a", [2**20, 2**20]]]),
        json.dumps([["x" * (MOST_NAME + 1), [1]]]), json.dumps([[f"t{n}", [1]] for n in range(MOST_TENSORS + 1)]),
    ],
    ids=lambda text: text[:20],
)  # fmt: skip
def test_a_text_that_is_no_layout_is_refused(text):
    with pytest.raises(MessageError):
        read_layout(text)


def test_a_rejection_is_one_short_line():
    reason = Rejected("bad_reply", "one\ntwo\x1b[31m" + "x" * 10**6).reason
    assert len(reason) == 500 and reason.isprintable() and reason.startswith("one two [31mx")
    assert one_line("ä" * 500) == "ä" * 500


# -- requests to a site


@pytest.mark.parametrize(
    "config",
    ["3", "[]", '"x"', "null", "[" * 100_000, '{"a":' * 100_000, "1e400", "9" * 5000, "{", "x" * 5_000_000],
)
def test_settings_that_are_no_table_are_refused(config, federation):
    reply = federation.node("amber").answer(Request("hello", {"run": "a-1", "config": config}))
    assert reply.error == "bad_request"


# -- the end of a run


@pytest.mark.parametrize(
    "facts",
    [
        {"test_accuracy": float("inf")}, {"test_accuracy": 1.5}, {"test_accuracy": 10**400}, {"valid_loss": "low"},
        {"test_examples": -1}, {"test_examples": 0}, {"test_examples": 2**31}, {"test_loss": float("inf")},
    ],
    ids=str,
)  # fmt: skip
def test_bad_scores_leave_one_client_out(facts, federation, events):
    nodes = {place: federation.node(site, tell_scores=True) for place, site in enumerate(SITES)}
    coordinator, _ = federation(nodes=nodes, rounds=1, faults={("finish", 2, "basil"): with_facts(**facts)})
    coordinator.run()
    assert [(e["client"], e["code"]) for e in events(coordinator, "left out")] == [("basil", "bad_reply")]
    assert {e["client"] for e in events(coordinator, "scores")} == {"amber", "coral"}
    assert coordinator.folder.read_json("summary.json")["finished"]


@pytest.mark.parametrize(
    "facts", [{"seconds": float("inf")}, {"seconds": float("nan")}, {"loss": 10**400}, {"steps": -1}]
)
def test_bad_facts_of_an_upload_leave_one_client_out(facts, federation, events):
    coordinator, _ = federation(rounds=1, faults={("train", 1, "basil"): with_facts(**facts)})
    coordinator.run()
    assert [(e["client"], e["code"]) for e in events(coordinator, "left out")] == [("basil", "bad_reply")]
    assert load((coordinator.folder.path / "checkpoint.safetensors").read_bytes())
