"""Simulated runs with [privacy]: the same seed, the same numbers; broken off and resumed; what is refused."""

from __future__ import annotations

import json
import math

import pytest

from test_cli_help import call
from trifed import make_config, resume, run
from trifed.common.errors import BudgetError, ConfigError
from trifed.privacy import noise_multiplier, read_ledger

PRIVACY = {"summary": {"epsilon": 4.0}, "update": {"epsilon": 8.0}}


def entries(path, client="amber"):
    return read_ledger(path / "privacy" / client / "ledger.json").entries


class StopError(Exception):
    pass


@pytest.mark.parametrize("method", ["own-prior", "ce-lora", "pfedme-lora"])
def test_a_broken_off_run_goes_on_to_the_same_numbers_and_counts_nothing_twice(
    method, finished, toy_values, tmp_path
):
    def listener(event):  # in the middle of a round: amber and basil have sent theirs, which is done again
        if (event["event"], event.get("round"), event.get("client")) == ("trained", 2, "basil"):
            raise StopError

    whole = finished(method, privacy=PRIVACY)
    config = make_config(toy_values(method=method, privacy=PRIVACY))
    with pytest.raises(StopError):
        run(config, tmp_path / "toy", listener)
    assert [entry.round for entry in entries(tmp_path / "toy")][-1] == 2  # entered before it is told of
    resumed = resume(tmp_path / "toy")
    assert resumed.summary["accuracy"] == whole.summary["accuracy"]
    assert resumed.summary["privacy"] == whole.summary["privacy"]
    assert entries(resumed.path) == entries(whole.path)
    assert [entry.round for entry in entries(whole.path) if entry.what == "update"] == [1, 2, 3]


def test_noise_changes_the_result_and_its_seed_is_the_runs(finished):
    plain, noised = finished("own-prior"), finished("own-prior", privacy=PRIVACY)
    other = finished("own-prior", privacy=PRIVACY, seed=1)
    assert plain.summary["curve"] != noised.summary["curve"]
    assert entries(noised.path)[0].digest != entries(other.path)[0].digest


def test_a_run_over_its_budget_stops_before_the_release(toy_values, tmp_path):
    def listener(event):
        if event.get("round") == 2:
            raise StopError

    path = tmp_path / "toy"
    with pytest.raises(StopError):
        run(make_config(toy_values(privacy=PRIVACY)), path, listener)
    file = path / "privacy" / "basil" / "ledger.json"
    book = json.loads(file.read_text())
    book["entries"] += [{**book["entries"][-1], "round": 3, "digest": "another message of round 3"}]
    file.write_text(json.dumps(book))
    with pytest.raises(BudgetError, match=r"privacy\.update: basil .*\b3 .*ε to 9"):
        resume(path)
    assert [entry.round for entry in entries(path)] == [0, 1, 2, 3]  # amber's went before
    assert [entry.round for entry in entries(path, "basil")] == [0, 1, 3, 2]


def test_what_was_spent_is_in_the_summary_with_what_it_is_between(finished):
    alone, both, client = finished("own-prior", privacy=PRIVACY).summary["privacy"]["spent"]
    assert "training example" in alone["relation"] and "training example" in both["relation"]
    assert "updates" in client["relation"]
    assert alone["epsilon"] == pytest.approx(4.0, rel=1e-4) and client["epsilon"] == pytest.approx(8.0, rel=1e-4)
    # z of three rounds at ε 8; halved for one example, beside the summary's.
    assert 12 < both["epsilon"] < 21


def test_updates_without_noise_cost_all(finished):
    done = finished("own-prior", privacy={"summary": {"epsilon": 4.0}})
    alone, both, client = done.summary["privacy"]["spent"]
    assert alone["epsilon"] == pytest.approx(4.0, rel=1e-4)
    assert both["epsilon"] is None and client["epsilon"] is None


def test_without_privacy_nothing_is_kept_and_nothing_is_said(finished):
    done = finished("own-prior")
    assert "privacy" not in done.summary and not (done.path / "privacy").exists()


def test_only_who_is_drawn_spends_and_noise_is_for_all_rounds(toy_values, tmp_path):
    done = run(
        make_config(toy_values(method="fedavg-lora", privacy=PRIVACY, participation=0.34)), tmp_path / "toy"
    )
    drawn = [entry for name in ("amber", "basil", "coral") for entry in entries_or_none(done.path, name)]
    assert sorted(entry.round for entry in drawn) == [1, 2, 3]
    # Who is drawn is no secret from the server, so that nothing is gained by being drawn seldom.
    assert {entry.multiplier for entry in drawn} == {noise_multiplier(8.0, 1e-5, 3)}


def entries_or_none(path, client):
    file = path / "privacy" / client / "ledger.json"
    return read_ledger(file).entries if file.exists() else ()


# -- what is refused


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"privacy": {"summary": {}}}, ["privacy.summary.epsilon: missing"]),
        (
            {"privacy": {"summary": {"epsilon": 0}, "update": {"epsilon": -1, "delta": 1, "clip": 0}}},
            [
                "privacy.summary.epsilon: got 0, expected more than 0.01",
                "privacy.update.epsilon: got -1, expected more than 0.01",
                "privacy.update.delta: got 1, expected at most 0.1",
                "privacy.update.clip: got 0, expected more than 0",
            ],
        ),
        ({"privacy": {"update": {"epsilon": 8.0}}}, ["privacy.summary: missing, but 'own-prior'"]),
        (
            {"privacy": PRIVACY, "method": "fed-sb"},
            ["privacy: 'fed-sb' sends each client's gradient"],
        ),
        (
            {"privacy": PRIVACY, "baselines": ["fed-sb"], "method": "local"},
            ["privacy: 'fed-sb' sends each client's gradient"],
        ),
        ({"privacy": PRIVACY, "task": "causal-lm"}, ["model.packing"]),
        ({"privacy": {"sumary": {}}}, ["privacy.sumary: unknown setting (did you mean 'summary'?)"]),
    ],
)
def test_what_cannot_hold_is_refused_before_anything_is_computed(changes, words, toy_values):
    with pytest.raises(ConfigError) as told:
        make_config(toy_values(**changes))
    for sentence in words:
        assert sentence in str(told.value)


def test_update_alone_is_enough_where_no_summary_is_told(toy_values):
    make_config(toy_values(method="fedavg-lora", privacy={"update": {"epsilon": 8.0}}))


def test_a_run_keeps_its_identity_where_privacy_is_off(toy_values):
    plain = make_config(toy_values())
    assert make_config(toy_values(privacy={})).run_id() == plain.run_id()
    ids = {make_config(toy_values(privacy={**PRIVACY, "update": {"epsilon": e}})).run_id() for e in (4.0, 8.0)}
    assert len({plain.run_id(), *ids}) == 3


# -- the command


@pytest.fixture
def privacy(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    return lambda *args: call(capsys, monkeypatch, "privacy", *args)


def test_the_table_names_both_relations(privacy, finished):
    said = privacy(finished("own-prior", privacy=PRIVACY).path)
    assert said.code == 0
    rows = [line for line in said.out.splitlines() if "amber" in line]
    assert ["4.00" in rows[0], "20.08" in rows[1], "8.00" in rows[2]] == [True] * 3
    assert "one training example" in rows[0] and "one training example" in rows[1] and "all updates" in rows[2]
    assert "knows the seed" in " ".join(said.out.split())


def test_the_json_has_every_entry(privacy, finished):
    done = finished("own-prior", privacy=PRIVACY)
    found = json.loads(privacy(done.path, "--json").out)
    assert [book["client"] for book in found] == ["amber", "basil", "coral"]
    assert [entry["what"] for entry in found[0]["entries"]] == ["summary", "update", "update", "update"]


def test_no_noise_is_no_small_number(privacy, finished):
    said = privacy(finished("own-prior", privacy={"summary": {"epsilon": 4.0}}).path)
    assert "∞" in said.out and "without noise" in said.out


def test_at_the_server_it_is_what_the_run_costs(privacy, toy_values, tmp_path):
    from trifed.config.run import to_toml

    (tmp_path / "config.toml").write_text(to_toml(make_config(toy_values(privacy=PRIVACY))))
    said = privacy(tmp_path)
    assert "at the sites" in " ".join(said.out.split()) and "20.08" in said.out


def test_where_there_is_nothing_it_says_what_to_give(privacy, finished, tmp_path):
    said = privacy(tmp_path)
    assert (said.code, said.out) == (2, "")
    assert said.err.startswith(f"error: {tmp_path}: no ledger") and said.err.count("\n") == 1
    said = privacy(finished("own-prior").path)
    assert said.code == 2 and "no [privacy]" in said.err


def test_the_report_says_what_was_spent_and_between_what(finished, tmp_path):
    from trifed.reports.comparison.tables import privacy_table
    from trifed.reports.read import read_source

    (partition,) = read_source(finished("own-prior", privacy=PRIVACY).path).study.results.values()
    rows = privacy_table(partition).rows
    assert len(rows) == 3 and all(row["relation"] and row["delta"] for row in rows)
    assert math.isclose(float(rows[0]["epsilon"]), 4.0)
