"""Verdicts and cautions follow from numbers and intervals, whichever method wins."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from studies import make_comparison

from trifed.reports.comparison.ranking import compared, rank_methods
from trifed.reports.comparison.verdict import better_control, cautions, leaders, study_verdict, verdict
from trifed.reports.comparison.worth import worth_of_sharing
from trifed.reports.format import clock, listing, points
from trifed.reports.results import Details, Point, Source, Study


def study(*partitions, **means):
    names = {name.replace("_", "-"): mean for name, mean in means.items()} or None
    return Study.model_validate(make_comparison(partitions or ("intents",), names))


def first(found):
    return found.results["intents"]


def codes(found, details=None):
    return [caution.code for caution in cautions(Source(Path("x"), "comparison", found, details or {}))]


def test_a_rival_that_wins_is_ahead_with_its_interval():
    found = study(ce_lora=0.74, fedavg_lora=0.85)
    assert leaders(first(found)) == ["fedavg-lora"]
    line = study_verdict(found)
    assert line.startswith("Ahead: fedavg-lora 85.0 %")
    assert re.findall(r"[+−]\d+\.\d", line) == ["+11.0", "+8.0", "+14.0"]
    assert leaders(first(study(ce_lora=0.9, fedavg_lora=0.8))) == ["ce-lora"]


def test_methods_within_the_interval_are_not_ranked():
    found = study(local=0.74, ce_lora=0.75, fedavg_lora=0.5)
    assert leaders(first(found)) == ["ce-lora", "local"]
    assert study_verdict(found).startswith("No clear winner: ce-lora 75.0")
    assert "fedavg-lora" not in study_verdict(found)


def test_a_verdict_names_a_few():
    assert listing(["a", "b", "c", "d", "e"]) == "a, b, c and 2 others"
    assert listing(["a", "b", "c", "d"]) == "a, b, c and d"
    assert (listing(["a"]), listing([])) == ("a", "")


def test_an_interval_that_touches_zero_is_no_lead():
    found = study(local=0.70, ce_lora=0.73)
    assert first(found).difference("ce-lora", "local").interval[0] == 0
    assert leaders(first(found)) == ["ce-lora", "local"]


def test_without_intervals_nobody_is_ahead():
    values = make_comparison(means={"local": 0.70, "ce-lora": 0.80}, clients=2)  # too few for an interval
    values["results"]["intents-0.5"]["differences"] = {}
    found = Study.model_validate(values)
    assert leaders(found.results["intents-0.5"]) == ["ce-lora", "local"]
    assert worth_of_sharing(found.results["intents-0.5"]).interval is None


def test_one_method_and_none():
    assert verdict(first(study(ce_lora=0.66))).startswith("ce-lora reached 66.0 %")
    nothing = first(study(ce_lora=0.66)).model_copy(update={"methods": {}})
    assert leaders(nothing) == []
    assert verdict(nothing).startswith("No test accuracy")


def test_several_partitions_are_counted():
    found = study("a", "b", ce_lora=0.74, fedavg_lora=0.85)
    assert [(one.method, one.wins, one.losses, one.pairs) for one in rank_methods(found)] == [
        ("fedavg-lora", 2, 0, 2), ("ce-lora", 0, 2, 2),
    ]  # fmt: skip
    assert study_verdict(found).startswith("fedavg-lora is first") and "11.0 points" in study_verdict(found)
    level = study("a", "b", ce_lora=0.84, fedavg_lora=0.85, local=0.5)
    assert study_verdict(level).startswith("No clear winner")
    mixed = found.model_copy(update={"results": {"a": found.results["a"], "b": level.results["b"]}})
    assert list(compared(mixed)) == ["b"] and "1 of 2 data sets" in study_verdict(mixed)
    other = study("b", ce_lora=0.84, local=0.85)  # on no data set have all methods a result
    mixed = found.model_copy(update={"results": {"a": found.results["a"], "b": other.results["b"]}})
    assert study_verdict(mixed).endswith("2 partitions: fedavg-lora on 1 and no method on 1.")
    assert study_verdict(mixed.model_copy(update={"finished": False})).startswith("Not finished. ")


@pytest.mark.parametrize(("mean", "better"), [(0.70, True), (0.75, True), (0.80, False)])
def test_a_control_that_does_as_well_is_a_caution(mean, better):
    found = study(ce_lora=mean)  # the best control that a site may use reaches 0.75
    assert better_control(first(found)) == ("class means 75.0 %" if better else "")
    assert ("control-better" in codes(found)) is better


@pytest.mark.parametrize(("mean", "better"), [(0.80, True), (0.85, True), (0.95, False)])
def test_a_control_that_needs_all_data_in_one_place_does_not_say_that_federating_is_not_needed(mean, better):
    found = study(ce_lora=mean)  # that control reaches 0.85
    assert bool(better_control(first(found), pooled=True)) is better
    assert "control-better" not in codes(found) and ("pooled-better" in codes(found)) is better


def test_cautions_follow_from_the_numbers():
    assert codes(study(ce_lora=0.74, fedavg_lora=0.9)) == ["few-seeds", "still-rising"]
    assert codes(study(ce_lora=0.74, local=0.9)) == ["few-seeds"]
    three = Study.model_validate(make_comparison(seeds=(0, 1, 2), means={"ce-lora": 0.9}))
    assert codes(three) == []


@pytest.mark.parametrize(
    ("earlier", "kept", "warned"), [(0.75, None, True), (0.71, None, False), (0.75, 5, False)]
)
def test_separate_training_that_was_better_earlier_is_a_caution(earlier, kept, warned):
    found = study(ce_lora=0.9, local=0.7)
    curve = [Point(round=5, mean=earlier), Point(round=10, mean=0.7)]
    methods = first(found).methods
    methods["local"] = methods["local"].model_copy(update={"curve": curve, "kept_round": kept})
    assert ("separate-better-earlier" in codes(found)) == warned
    if warned:
        text = next(
            c.text for c in cautions(Source(Path("x"), "comparison", found, {})) if "before the last" in c.text
        )
        assert "local had 75.0 % after round 5" in text and "is +15.0 points" in text


def test_there_are_three_cautions_at_most_and_privacy_comes_first():
    details = {"intents": Details({"clients": [{"name": "a", "test": 4}]}, warned=("a with ce-lora (s)",))}
    found = study(ce_lora=0.74, fedavg_lora=0.8).model_copy(update={"tuning": {}})
    assert codes(found, details) == ["few-examples", "few-seeds", "pooled-better"]


@pytest.mark.parametrize(("tests", "expected"), [(42, True), (400, False)])
def test_few_test_examples_are_a_caution(tests, expected):
    split = {"clients": [{"name": "a", "test": tests}, {"name": "b", "test": 500}]}
    assert ("few-tests" in codes(study(local=0.9), {"intents": Details(split)})) == expected


def test_untuned_learning_rates_are_a_caution():
    found = study(ce_lora=0.8, local=0.9)
    assert "not-tuned" not in codes(found)
    assert "not-tuned" in codes(found.model_copy(update={"tuning": {}}))


@pytest.mark.parametrize(("value", "shown"), [(0.0004, "0.0"), (-0.0004, "0.0"), (-0.012, "−1.2"), (0.1, "+10.0")])
def test_a_difference_of_nothing_has_no_sign(value, shown):
    assert points(value) == shown


@pytest.mark.parametrize(("seconds", "shown"), [(7, "0:07"), (187.9, "3:07"), (3787, "1:03:07")])
def test_durations(seconds, shown):
    assert clock(seconds) == shown
