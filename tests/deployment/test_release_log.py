"""The record of what leaves a site, written before it leaves, and the kinds of messages that a site can close."""

from __future__ import annotations

import json

import numpy as np
import pytest

from trifed.common.errors import RunError
from trifed.deployment.protocol import Reply, Request
from trifed.deployment.release_log import RELEASES, read_releases, record_release
from trifed.federation.messages import bytes_of_values

PRIVACY = {"summary": {"epsilon": 4.0}, "update": {"epsilon": 8.0, "clip": 0.5}}


def watched(federation, method="own-prior", **changes):
    """Run between three sites; every reply of amber, and amber's record before it was sent."""
    coordinator, channel = federation(method, **changes)
    node = next(n for n in channel.clients.values() if n.settings.name == "amber")
    answer, sent = node.answer, []

    def noted(request):
        reply = answer(request)
        sent.append((request, reply, read_releases(node.settings.folder)))
        return reply

    node.answer = noted
    coordinator.run()
    return node, sent


@pytest.mark.parametrize(
    ("method", "privacy"), [("own-prior", {}), ("own-prior", PRIVACY), ("fed-sb", {}), ("local", {})]
)
def test_every_reply_is_in_the_record_before_it_leaves(federation, method, privacy):
    node, sent = watched(federation, method, privacy=privacy)
    assert {request.kind for request, _, _ in sent} >= {"hello", "open", "train", "finish"}
    for place, (request, reply, record) in enumerate(sent, 1):
        assert len(record) == place
        last = record[-1]
        assert (last.kind, last.run, last.error) == (request.kind, request.facts["run"], reply.error)
        assert {name: part.bytes for name, part in last.parts.items()} == {
            n: len(p) for n, p in reply.parts.items()
        }
        assert last.facts.keys() == reply.facts.keys()
    uploads = [r for r in read_releases(node.settings.folder) if "upload" in r.parts]
    assert [r.round for r in uploads] == ([] if method == "local" else [1, 2])
    assert all(name.endswith((".weight", ".bias")) for r in uploads for name in r.parts["upload"].tensors)
    spent = [r.epsilon for r in uploads]
    assert spent == sorted(spent) and spent[0] > 0 if privacy else spent in ([None, None], [])


def test_the_record_names_what_is_in_an_upload_and_not_all_that_the_method_sends(federation):
    node, sent = watched(federation, "rolora")
    uploads = [reply.parts["upload"] for _, reply, _ in sent if "upload" in reply.parts]
    entries = [release for release in read_releases(node.settings.folder) if "upload" in release.parts]
    assert len(uploads) == len(entries) == 2
    for entry, upload, now, rests in zip(entries, uploads, "BA", "AB", strict=True):
        names = entry.parts["upload"].tensors
        assert any(f".lora_{now}." in name for name in names) and not any(f".lora_{rests}." in n for n in names)
        sizes = {name: int(np.prod(shape)) for name, shape in node.run.shared_model.layout}
        if entry.round == 1:
            whole = bytes_of_values(upload) / sum(sizes[name] for name in names)
        assert bytes_of_values(upload) / sum(sizes[name] for name in names) == pytest.approx(whole, rel=0.05)


def test_a_refusal_is_in_the_record_with_its_code_and_nothing_of_the_data(federation, tmp_path):
    _, channel = federation()
    node = channel.clients[10]
    reply = node.answer(Request("gradient", {"run": "no-such-1", "round": "x" * 5000}))
    [entry] = read_releases(node.settings.folder)
    assert (entry.kind, entry.round, entry.error, entry.parts) == ("gradient", 0, reply.error, {})


def test_what_cannot_be_written_down_does_not_leave(federation, monkeypatch):
    coordinator, channel = federation()
    node = channel.clients[10]
    (node.settings.folder).mkdir(parents=True)
    (node.settings.folder / RELEASES).symlink_to("/dev/full")
    replies = [node.answer(request) for request in [coordinator.client_manager.hello]]
    assert [reply.error for reply in replies] == ["storage"] and not replies[0].parts


def test_a_damaged_record_is_said_with_its_line_and_half_a_line_is_ignored(tmp_path):
    record_release(tmp_path, Request("train", {"run": "a-1", "round": 3}), Reply({"loss": float("nan")}), {}, None)
    path = tmp_path / RELEASES
    assert json.loads(path.read_text())["facts"] == {"loss": "none"}
    path.write_bytes(path.read_bytes() + b'{"half')
    assert [r.round for r in read_releases(tmp_path)] == [3]
    path.write_bytes(path.read_bytes() + b"\n")
    with pytest.raises(RunError, match="line 2"):
        read_releases(tmp_path)


def code(federation, method, privacy=None, folder="server", changes=None, **settings):
    """The code with which all sites reply to a greeting."""
    nodes = {place: federation.node(site, **settings) for place, site in enumerate(("amber", "basil", "coral"))}
    coordinator, _ = federation(method, nodes=nodes, privacy=privacy or {}, folder=folder, **(changes or {}))
    codes = {node.answer(coordinator.client_manager.hello).error for node in nodes.values()}
    assert len(codes) == 1
    return codes.pop()


def test_no_gradient_leaves_unless_the_site_allows_it(federation):
    assert code(federation, "fed-sb", gradients=False) == "gradients_off"
    assert code(federation, "fed-xs", gradients=False) is None


def test_a_site_that_does_not_tell_its_number_weighs_one(federation):
    nodes = {
        place: federation.node(site, tell_examples=site != "basil")
        for place, site in enumerate(("amber", "basil", "coral"))
    }
    coordinator, _ = federation("fedavg-lora", nodes=nodes)
    coordinator.run()
    examples = {record.name: record.examples for record in coordinator.records}
    assert examples["basil"] == 1 and examples["amber"] > 1


def test_label_counts_do_not_leave_a_site_that_tells_no_number(federation):
    assert code(federation, "own-prior", tell_examples=False) == "counts_off"
    assert code(federation, "own-prior", privacy=PRIVACY, tell_examples=False) is None


@pytest.mark.parametrize("limit", [{"worse_by": 1.0}, {"others_at_most": 0.5}])
def test_limits_on_downloads_do_not_go_with_methods_that_need_them_whole(limit, federation):
    assert code(federation, "rolora", **limit) == code(federation, "fedex-lora", **limit) == "limits_unusable"
    assert code(federation, "fedavg-lora", **limit) is None
    assert code(federation, "rolora") is None


def test_a_later_run_names_no_other_labels_than_the_first(federation):
    """A server that named one label after the other learned from refusals which of them a site has."""
    assert code(federation, "own-prior") is None
    for labels in (["billing"], ["billing", "delivery"], ["login", "delivery", "billing"]):
        other = {"data": {"labels": labels}}
        assert code(federation, "local", folder="second", changes=other) == "labels_not_allowed"
    allowed = ["login", "delivery", "billing"]
    assert code(federation, "local", folder="second", changes=other, labels=allowed) is None


def test_a_later_run_reads_no_other_columns_than_the_first(federation):
    """A server that named another column as the label, such as a diagnosis, got a model of it."""
    assert code(federation, "own-prior") is None
    assert code(federation, "local", folder="second") is None
    other = {"data": {"label": "site"}}
    assert code(federation, "local", folder="third", changes=other) == "columns_not_allowed"
    assert code(federation, "local", folder="third", changes=other, columns=["text", "site"]) is None
    assert code(federation, "local", columns=["text"]) == "columns_not_allowed"
