"""The ranking of methods over data sets: means, intervals, wins and losses, and the frontier."""

from __future__ import annotations

from pathlib import Path

import pytest
from studies import SENT, make_comparison

from trifed.reports.comparison.advice import advice_on
from trifed.reports.comparison.first import first_block, outcome
from trifed.reports.comparison.ranking import mean_difference, not_clearly_behind, rank_methods
from trifed.reports.comparison.ranking_tables import ranking_sections, wins_table
from trifed.reports.results import Source, Study

MEANS = {"local": 0.74, "ce-lora": 0.75, "fedavg-lora": 0.85, "fedavg-full": 0.80}


def study(partitions=("a", "b"), **means):
    return Study.model_validate(make_comparison(partitions, means or MEANS))


def test_means_intervals_and_ranks():
    found = rank_methods(study())
    assert [one.method for one in found] == ["fedavg-lora", "fedavg-full", "ce-lora", "local"]
    assert [one.rank for one in found] == [1, 2, 3, 4] and found[0].mean == pytest.approx(0.85)
    half = 0.03 / 2**0.5  # two independent intervals of ±0.03
    assert found[0].interval == pytest.approx((0.85 - half, 0.85 + half))
    gap = mean_difference(study(), "fedavg-lora", "local")
    assert gap.mean == pytest.approx(0.11) and gap.interval == pytest.approx((0.11 - half, 0.11 + half))


def test_wins_and_losses_are_of_intervals_on_one_side_of_0():
    found = {one.method: (one.wins, one.losses, one.pairs) for one in rank_methods(study())}
    assert found == {
        "fedavg-lora": (6, 0, 6), "fedavg-full": (4, 2, 6), "ce-lora": (0, 4, 6), "local": (0, 4, 6),
    }  # fmt: skip
    rows = {row["method"]: row for row in wins_table(study(), rank_methods(study())).rows}
    assert rows["fedavg-lora"]["against local"] == "2 : 0" and rows["local"]["against fedavg-lora"] == "0 : 2"
    assert rows["ce-lora"]["against local"] == "0 : 0" and rows["local"]["against local"] is None


def test_the_frontier_holds_what_nothing_beats_in_accuracy_and_bytes():
    found = {one.method: one.frontier for one in rank_methods(study())}
    assert SENT["fedavg-lora"] > 20_000  # what the made-up fedavg-full sends
    assert found == {"local": True, "ce-lora": True, "fedavg-full": True, "fedavg-lora": True}
    beaten = {**MEANS, "fedavg-full": 0.74, "ce-lora": 0.73}
    found = {one.method: one.frontier for one in rank_methods(study(**beaten))}
    assert found == {"local": True, "ce-lora": False, "fedavg-full": False, "fedavg-lora": True}


def test_of_those_not_clearly_behind_the_lightest_is_recommended():
    level = study(**{"ce-lora": 0.845, "fedavg-lora": 0.85, "local": 0.5})
    assert [one.method for one in not_clearly_behind(level, rank_methods(level))] == ["fedavg-lora", "ce-lora"]
    found = advice_on(Source(Path(), "comparison", level, {}))
    assert found.code == "lightest" and "ce-lora" in found.text
    assert advice_on(Source(Path(), "comparison", study(), {})).code == "best"


def test_the_first_plot_is_accuracy_against_bytes():
    block = first_block(Source(Path(), "comparison", study(), {}))
    assert block.plot is not None and {row["method"] for row in block.table.rows} == set(MEANS)
    assert next(one["method"] for one in outcome(study())["order"]) == "fedavg-lora"


def test_a_data_set_that_lacks_a_method_is_not_in_the_ranking_and_is_named():
    part = study()
    lacking = part.results["b"].model_copy(update={"methods": {"local": part.results["b"].methods["local"]}})
    part = part.model_copy(update={"results": {"a": part.results["a"], "b": lacking}})
    assert rank_methods(part)[0].pairs == 3
    assert any("b" in note.split() or note.endswith("b.") for note in next(iter(ranking_sections(part))).notes)
