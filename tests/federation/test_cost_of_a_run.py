"""What `trifed cost` counts, beside the bytes in the event log of a real run."""

from __future__ import annotations

import json

import pytest
import torch
from test_cost import of

from many_clients import ALIKE
from trifed import similarity as sim
from trifed.adapters.settings import AdapterSettings
from trifed.federation.cost import estimate_cost
from trifed.federation.messages import ENVELOPE
from trifed.federation.summary_cost import most_components, summary_sizes
from trifed.methods import METHODS
from trifed.methods.plain_lora import plain_lora_settings

COUNTED = set(METHODS) - ALIKE - {"ce-lora-authors"} | {"rolora"}
"""Methods whose runs are counted here; `ce-lora-authors` has a test of its own."""


@pytest.mark.parametrize("method", sorted(COUNTED))
def test_the_numbers_are_those_of_a_runs_event_log(method, finished, costs, tiny_encoder):
    run = finished(method)
    item = of(costs(str(tiny_encoder), labels=3, rank=4), method)
    trained = [event for event in run.events if event["event"] == "trained"]
    uploads = [event["up"] for event in trained]
    downloads = [event["down"] for event in trained if event["round"] > 1]
    assert len(uploads) == 9 and len(downloads) == 6
    for messages, counted in ((uploads, item.bytes_up), (downloads, item.bytes_down)):
        assert {sum(size for name, size in m.items() if name != ENVELOPE) for m in messages} == {counted}
    heads = {sum(size for name, size in up.items() if name.startswith("head.")) for up in uploads}
    if item.bits == 32:
        assert heads == {4 * item.head_values}
    else:  # every bit, and a step size in 16 for each 256 numbers
        (head,) = heads
        assert head == pytest.approx(item.head_values * item.bits / 8 + 2 * -(-item.head_values // 256), abs=1)
    environment = (run.path / "environment.json").read_text(encoding="utf-8")
    assert f'"trained_values": {item.trained_values}' in environment
    assert f'"sent_values": {item.sent_values}' in environment


def test_an_opening_is_that_of_a_runs_event_log(finished, costs, tiny_encoder):
    # 2 blocks x query and value: gradients (32, 32) up; A (4, 32), B (32, 4) and C (4, 4) down.
    methods = [name for name, method in METHODS.items() if method.shared_projections]
    assert methods
    for method in methods:
        (once,) = of(costs(str(tiny_encoder), labels=3, rank=4), method).once
        assert (once.up, once.down) == (4 * 4 * 32 * 32, 4 * 4 * (4 * 32 + 32 * 4 + 4 * 4))
        events = [event for event in finished(method).events if event["event"] == "opening"]
        for way, counted in (("up", once.up), ("down", once.down)):
            sent = [sum(size for name, size in e[way].items() if name != ENVELOPE) for e in events if way in e]
            assert sent == [counted] * 3


@pytest.mark.parametrize("method", sorted(set(METHODS) - ALIKE))
def test_the_rival_is_the_runs_own(method, make_bench, costs, tiny_encoder):
    rank = plain_lora_settings(METHODS[method], AdapterSettings(rank=4)).rank
    assert (
        4 * costs(str(tiny_encoder), labels=3, only=[method], rank=rank).lora_values
        == make_bench(method).lora_bytes
    )


def test_the_envelope_is_about_that_of_a_run(finished, costs, tiny_encoder):
    envelope = costs(str(tiny_encoder), labels=3, rank=4).envelope
    trained = [event for event in finished("ce-lora").events if event["event"] == "trained"]
    assert max(abs(event["up"][ENVELOPE] - envelope) for event in trained) <= 32


SUMMARISED = sorted(
    name for name, method in METHODS.items() if method.summarise and not method.options().raw_summary()
)


@pytest.mark.parametrize("method", SUMMARISED)
def test_the_summary_of_a_run_has_the_counted_size(method, finished, costs, tiny_encoder):
    make = METHODS[method].summarise
    assert make is not None
    sizes = summary_sizes(make, METHODS[method].options())
    events = [event for event in finished(method).events if event["event"] == "summary"]
    assert len(events) == 3
    for event in events:
        up = event["up"]
        components, labels = up["counts"] // 8, up["class_counts"] // 8
        assert sum(size for name, size in up.items() if name != ENVELOPE) == sizes.total(labels, components)
        assert up[ENVELOPE] == pytest.approx(sizes.envelope, abs=32)


@pytest.mark.parametrize("method", SUMMARISED)
def test_a_summary_is_at_most_as_large_as_the_cost_says(method, finished, tiny_encoder, monkeypatch):
    """The limit for a client's labels and examples is at most two components more than a run sends."""
    run = finished(method)
    monkeypatch.setattr("trifed.federation.cost.METHODS", {method: METHODS[method]})
    split = json.loads((run.path / "split.json").read_text(encoding="utf-8"))
    for client in split["clients"]:
        (event,) = [e for e in run.events if e["event"] == "summary" and e["client"] == client["name"]]
        sent = sum(event["up"].values())
        labels = len([count for count in client["train_labels"].values() if count])
        adapter = AdapterSettings(rank=4)
        cost = estimate_cost(str(tiny_encoder), adapter, labels=labels, examples=client["train"])
        (once,) = of(cost, method).once
        assert once.at_most and once.down == 0
        assert sent - 32 <= once.up + once.envelope <= sent + 2 * 528 + 32


def test_few_examples_and_few_labels_limit_the_components_of_a_summary():
    assert [most_components(12, examples, 20) for examples in (19, 40, 170, 10_000)] == [0, 2, 8, 36]
    assert most_components(2, 1000, 20) == 6


def test_the_summarys_sizes_are_those_of_its_arrays():
    make = METHODS["ce-lora"].summarise
    assert make is not None
    sizes = summary_sizes(make, METHODS["ce-lora"].options())
    assert (sizes.fixed, sizes.label, sizes.component) == (8, 16, 528)
    features = torch.randn(200, 40, generator=torch.Generator().manual_seed(0)).numpy()
    labels = torch.arange(200).numpy() % 4
    summary = sim.summarise(sim.project(features, dim=64, seed=0), labels, seed=0)
    assert summary.nbytes == sizes.total(4, len(summary.labels))
