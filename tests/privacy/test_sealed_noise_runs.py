"""Noise in sealed sums: its settings, and simulated runs with it."""

from __future__ import annotations

import pytest

from trifed import make_config, resume, run
from trifed.common.errors import ConfigError
from trifed.config.sealing import sealing_notes
from trifed.experiments.dry_run import dry_run
from trifed.federation.client import Client
from trifed.federation.privacy_report import accounts_in, noise_to_signal, promise
from trifed.federation.run_folder import RunFolder
from trifed.privacy import (
    noise_multiplier,
    read_ledger,
)
from trifed.reports.privacy import remarks

DELTA = 1e-5
UPDATE = {"update": {"epsilon": 8.0, "clip": 0.2}}


def values(toy_values, method="own-prior", privacy=UPDATE, at_least=3, **changes):
    return toy_values(method=method, privacy=privacy, sealing={"on": True, "at_least": at_least}, **changes)


def entries(path, client="amber"):
    return read_ledger(path / "privacy" / client / "ledger.json").entries


def events_of(path, *names):
    return [event for event in RunFolder.open(path).events() if event["event"] in names]


@pytest.mark.parametrize("method", ["own-prior", "fedavg-lora"])
def test_a_run_enters_each_sum_once_and_resumes_to_the_same_bits(method, toy_values, tmp_path, monkeypatch):
    config = make_config(values(toy_values, method))
    whole = run(config, tmp_path / "whole")
    z = noise_multiplier(8.0, DELTA, 3, in_sums=True)
    for client in ("amber", "basil", "coral"):
        found = entries(whole.path, client)
        assert [(e.what, e.round, e.multiplier, e.clients) for e in found] == [
            ("update", n, z, 2) for n in (1, 2, 3)
        ]
    sums = [(e["round"], e["clients"], e["bits"]) for e in events_of(whole.path, "sum")]
    assert [number for number, *_ in sums] == [1, 2, 3] and {bits for *_, bits in sums} == {sums[0][2]}
    assert events_of(whole.path, "left out", "no sum", "opening") == []
    assert whole.summary["bytes"]["per_upload"] == dry_run(config).bytes_up
    of_client = whole.summary["privacy"]["spent"][-1]
    assert of_client["releases"] == 3 and 7.99 < of_client["epsilon"] <= 8
    planned = promise(config)[-1]
    assert (planned.releases, planned.epsilon) == (3, pytest.approx(of_client["epsilon"], rel=1e-9))

    send = Client.send

    def stops(self, number, *rest, **more):
        part = send(self, number, *rest, **more)
        if (number, self.dataset.name) == (2, "basil"):
            raise KeyboardInterrupt  # amber's and basil's parts are entered, and the sum is not opened
        return part

    with monkeypatch.context() as patch:
        patch.setattr(Client, "send", stops)
        with pytest.raises(KeyboardInterrupt):
            run(config, tmp_path / "stopped")
    assert len(entries(tmp_path / "stopped")) == 2 and len(entries(tmp_path / "stopped", "coral")) == 1
    resumed = resume(tmp_path / "stopped")
    assert resumed.summary["accuracy"] == whole.summary["accuracy"]
    assert [entries(resumed.path, c) for c in ("amber", "coral")] == [
        entries(whole.path, c) for c in ("amber", "coral")
    ]


def test_plain_loras_bytes_are_those_of_noised_sums(toy_values, tmp_path):
    sent = run(make_config(values(toy_values, "fedavg-lora", rounds=2)), tmp_path / "run").summary["bytes"]
    assert sent["times_fewer"] == pytest.approx(1, rel=0.02)


def test_a_round_without_a_sum_costs_nothing(toy_values, tmp_path):
    found = run(make_config(values(toy_values, at_least=4, rounds=2)), tmp_path / "run")
    assert [e["round"] for e in events_of(found.path, "no sum")] == [1, 2]
    assert not (found.path / "privacy" / "amber" / "ledger.json").exists()


def test_noise_of_sums_is_announced_before_the_start_and_explained_in_the_report(toy_values, tmp_path):
    heard = []
    found = run(make_config(values(toy_values, rounds=1)), tmp_path / "run", heard.append)
    kinds, texts = [e["event"] for e in heard], [e.get("text", "") for e in heard]
    for start in (
        "privacy.update: the noise on a mean of 3",
        "privacy.update: each client",
        "aggregation.weights",
    ):
        place = next(n for n, text in enumerate(texts) if text.startswith(start))
        assert place < kinds.index("started")
    said = list(remarks(found.path, accounts_in(found.path)))
    assert any("sealed sums" in text and " 2 " in text for text in said)


@pytest.mark.parametrize(("at_least", "shared_by"), [(3, 2), (10, 9)])
def test_the_noise_to_signal_ratio_is_that_of_the_sum(at_least, shared_by, toy_values):
    config = make_config(values(toy_values, at_least=at_least))
    (text,) = noise_to_signal(config, 10_000, 10_000, [40] * 10)
    z = noise_multiplier(8.0, DELTA, config.rounds, in_sums=True)
    assert f"a mean of 10 clients is about {z * (10_000 / 10 / shared_by) ** 0.5:.0f} times" in text
    assert ("at_least" in text) == (shared_by < 9)
    notes = list(sealing_notes(config, 10))
    assert any(f"while at least {shared_by} clients" in note for note in notes)


@pytest.mark.parametrize("update", [None, {"epsilon": 8.0}])
def test_noised_training_is_sealed_without_a_sum_of_holders(update, toy_values, tmp_path):
    privacy = {"summary": {"epsilon": 4.0}, "training": {"epsilon": 6.0, "rate": 0.3}}
    privacy |= {"update": update} if update else {}
    config = make_config(values(toy_values, privacy=privacy, rounds=2, training={"steps": 2}))
    found = run(config, tmp_path / "run")
    assert [e["round"] for e in events_of(found.path, "sum")] == [1, 2] and not events_of(found.path, "opening")
    whats = [(e.what, e.round, e.clients) for e in entries(found.path)]
    shared = 2 if update else 1
    of_rounds = [entry for n in (1, 2) for entry in (("training", n, 1), ("update", n, shared))]
    assert whats == [("summary", 0, 1), *of_rounds]
    alone, both, client = found.summary["privacy"]["spent"]
    assert alone["epsilon"] < both["epsilon"] < 12
    assert (client["epsilon"] is None) == (update is None)


def test_noised_training_that_starts_from_label_counts_needs_their_noise(toy_values):
    privacy = {"training": {"epsilon": 6.0, "rate": 0.3}}
    with pytest.raises(ConfigError) as refused:
        make_config(values(toy_values, privacy=privacy, training={"steps": 2}))
    [problem] = refused.value.problems
    assert problem.startswith("privacy.training: 'own-prior'") and "privacy.summary" in problem
    make_config(values(toy_values, "fedavg-lora", privacy=privacy, training={"steps": 2}))


def test_update_noise_needs_no_summary_because_no_count_leaves(toy_values):
    config = make_config(values(toy_values))
    assert config.composed_method().summarise is None
    with pytest.raises(ConfigError) as refused:
        make_config(toy_values(method="own-prior", privacy=UPDATE))
    assert refused.value.problems[0].startswith("privacy.summary")
