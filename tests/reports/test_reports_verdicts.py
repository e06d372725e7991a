"""The sentences: whoever wins, and what does not follow."""

from __future__ import annotations

from pathlib import Path

import pytest
from studies import make_comparison

from trifed.reports.comparison.cautions import cautions
from trifed.reports.comparison.verdict import (
    bytes_sentence,
    controls_sentence,
    headline,
    level_with_first,
    verdict,
)
from trifed.reports.format import points
from trifed.reports.results import Details, Source, Study


def study(*partitions, **means):
    names = {name.replace("_", "-"): mean for name, mean in means.items()} or None
    return Study.model_validate(make_comparison(partitions or ("intents",), names))


def first(found):
    return found.results["intents"]


def say_cautions(found, details=None):
    return "\n".join(cautions(Source(Path("x"), "comparison", found, details or {})))


def test_a_rival_that_wins_is_named_first_with_its_interval():
    line = headline(study(ce_lora=0.74, fedavg_lora=0.85))
    assert line == (
        "fedavg-lora is ahead with 85.0 % mean test accuracy over 5 clients "
        "(fedavg-lora less ce-lora: +11.0 points, 95 % +8.0 to +14.0)."
    )
    assert headline(study(ce_lora=0.9, fedavg_lora=0.8)).startswith("ce-lora is ahead with 90.0 %")


def test_methods_within_the_interval_are_not_ranked():
    found = study(local=0.74, ce_lora=0.75, fedavg_lora=0.5)
    assert level_with_first(first(found)) == ["ce-lora", "local"]
    line = headline(found)
    assert line.startswith("No clear winner: ce-lora 75.0 % and local 74.0 %")
    assert "+1.0 points, 95 % −2.0 to +4.0" in line
    assert line.endswith("fedavg-lora is behind.")


def test_a_sentence_names_a_few():
    found = study(a=0.80, b=0.80, c=0.80, d=0.80, e=0.80, f=0.5, g=0.5, h=0.5, i=0.5, j=0.5)
    assert "a 80.0 %, b 80.0 %, c 80.0 % and 2 others mean test accuracy" in headline(found)
    assert headline(found).endswith("f, g, h and 2 others are behind.")


def test_an_interval_that_touches_zero_is_no_lead():
    found = study(local=0.70, ce_lora=0.73)
    assert first(found).difference("ce-lora", "local").interval[0] == 0
    assert level_with_first(first(found)) == ["ce-lora", "local"]


def test_without_intervals_the_order_is_not_certain():
    for ahead, says in ((0.80, "There is no interval"), (0.7002, "end alike, at 70.0 %")):
        values = make_comparison(
            means={"local": 0.70, "ce-lora": ahead}, clients=2
        )  # too few for one of their own
        values["results"]["intents-0.5"]["differences"] = {}
        assert says in headline(Study.model_validate(values))


def test_one_method_and_none():
    assert verdict(first(study(ce_lora=0.66))).startswith(
        "ce-lora reaches 66.0 % mean test accuracy over 5 clients"
    )
    nothing = first(study(ce_lora=0.66)).model_copy(update={"methods": {}})
    assert verdict(nothing) == "There is no accuracy to show yet."


def test_several_partitions_are_counted():
    found = study("a", "b", ce_lora=0.74, fedavg_lora=0.85)
    assert headline(found) == "Of 2 partitions, fedavg-lora is clearly ahead on 2."
    level = study("a", "b", ce_lora=0.84, fedavg_lora=0.85, local=0.5)
    assert headline(level) == (
        "On none of 2 partitions is one method clearly ahead; fedavg-lora and ce-lora are among the best on each."
    )
    mixed = found.model_copy(update={"results": {"a": found.results["a"], "b": level.results["b"]}})
    assert headline(mixed) == "Of 2 partitions, fedavg-lora is clearly ahead on 1 and no method is on 1."
    assert headline(mixed.model_copy(update={"finished": False})).startswith("Not finished. Of 2")


def test_who_sends_how_much():
    assert bytes_sentence(first(study(local=0.7, ce_lora=0.7, fedavg_lora=0.8))) == (
        "Each client uploads a round: local nothing, ce-lora 3.3 KB and fedavg-lora 313.6 KB, 96 times the "
        "smallest upload."
    )
    assert bytes_sentence(first(study(local=0.7))) == "Nothing is sent."
    many = bytes_sentence(first(study(local=0.7, ce_lora=0.7, a=0.7, b=0.7, fedavg_lora=0.8)))
    assert "local nothing, 3 others between and fedavg-lora 313.6 KB" in many


def test_a_control_that_does_better_is_said_so():
    assert "more than every method here" in controls_sentence(first(study(ce_lora=0.80)))
    assert "reaches as much, 85.0 %" in controls_sentence(first(study(ce_lora=0.85)))
    assert controls_sentence(first(study(ce_lora=0.95))).startswith("The best control")


def test_cautions_follow_from_the_numbers():
    said = say_cautions(study(ce_lora=0.74, fedavg_lora=0.85))
    assert "Still rising over the last quarter of the rounds: fedavg-lora (+1.3 points)" in said
    assert "right after a client's own training: fedavg-lora 85.0 %, then 87.0 %" in said
    assert "2 seeds are few" in said
    assert "no protection by themselves" in said
    calm = say_cautions(study(ce_lora=0.74, local=0.85))
    assert "Still rising" not in calm
    assert "Scored as" not in calm


def test_of_several_partitions_the_one_is_told_where_scoring_matters_most():
    found = study("easy", "hard", local=0.74, fedavg_lora=0.85)
    hard = found.results["hard"].methods
    hard["fedavg-lora"] = hard["fedavg-lora"].model_copy(update={"mean": 0.6, "mean_trained": 0.7})
    said = say_cautions(found)
    assert "training (where it differs most): fedavg-lora 60.0 %, then 70.0 % on hard." in said


def test_one_seed_is_said_to_be_one():
    one = Study.model_validate(make_comparison(seeds=(0,)))
    assert "One seed" in say_cautions(one)
    assert "One seed" not in say_cautions(Study.model_validate(make_comparison(seeds=(0, 1, 2))))


@pytest.mark.parametrize(("tests", "told"), [(42, True), (400, False)])
def test_few_test_examples_are_told(tests, told):
    split = {"clients": [{"name": "a", "test": tests}, {"name": "b", "test": 500}]}
    assert (
        "42 test examples: one more right is 2.4 points" in say_cautions(study(), {"intents": Details(split)})
    ) == told


def test_an_untuned_or_borrowed_learning_rate_is_told():
    assert "were set, not searched" in say_cautions(study().model_copy(update={"tuning": {}}))
    borrowed = say_cautions(study("a", "b"))
    assert "searched on another partition for b (from a)" in borrowed


def test_an_easy_majority_is_told():
    assert "most frequent label does as well" in say_cautions(study(ce_lora=0.11))
    assert "most frequent label does as well" not in say_cautions(study(ce_lora=0.5))


@pytest.mark.parametrize(("value", "shown"), [(0.0004, "0.0"), (-0.0004, "0.0"), (-0.012, "−1.2"), (0.1, "+10.0")])
def test_a_difference_of_nothing_has_no_sign(value, shown):
    assert points(value) == shown
