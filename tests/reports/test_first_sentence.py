"""The first sentence and the recommendation follow from numbers: a gain, a loss, or nothing clear."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from trifed.reports.comparison.advice import advice_on
from trifed.reports.comparison.first import first_block, outcome
from trifed.reports.comparison.verdict import study_verdict
from trifed.reports.comparison.worth import worth_of_sharing
from trifed.reports.results import Deciding, Details, MethodResult, Partition, Source, Spread, Study, Traffic

SENT = Traffic(up_per_round=2_500, once_up=600, total=99_000)


def result(values, sent=None, **more):
    known = [value for value in values if value is not None]
    mean = sum(known) / len(known) if known else None
    ends = {"worst": min(known), "best": max(known)} if known else {}
    return MethodResult(mean=mean, **ends, client_accuracy=values, bytes=sent or Traffic(), **more)


def numbers(values, sent=None, metric="log_loss"):
    spread = Spread(mean=sum(values) / len(values), worst=max(values), best=min(values), client_accuracy=values)
    return MethodResult(
        mean=0.5, client_accuracy=[0.5] * len(values), bytes=sent or Traffic(), metrics={metric: spread}
    )


def source(methods, seeds=(0,), details=None, finished=True, **more):
    count = max((len(found.client_accuracy) for found in methods.values()), default=0)
    clients = [f"site-{number}" for number in range(count)]
    partition = Partition(clients=clients, methods=methods, seeds=list(seeds), **more)
    study = Study(
        name="x", methods=list(methods), seeds=list(seeds), results={"data": partition}, finished=finished
    )
    return Source(Path(), "run", study, {"data": details or Details()})


def read(found):
    """The outcome in numbers, the code of the recommendation, and the sentence."""
    return outcome(found.study), advice_on(found).code, study_verdict(found.study)


SHARED = [0.80, 0.82, 0.78, 0.80]


@pytest.mark.parametrize(
    ("alone", "kind", "code", "gain", "better"),
    [
        ([0.70, 0.71, 0.69, 0.70], "gain", "federate", 0.1, 4),
        ([0.90, 0.91, 0.89, 0.90], "loss", "alone", -0.1, 0),
        ([0.60, 0.95, 0.78, 0.83], "unclear", "undecided", 0.01, 1),
        (SHARED, "unclear", "undecided", 0.0, 0),
    ],
)
def test_a_gain_a_loss_and_nothing_clear(alone, kind, code, gain, better):
    found, advice, sentence = read(source({"own-prior": result(SHARED, SENT), "alone": result(alone)}))
    assert (found["kind"], advice, len(found["better"]), found["sites"]) == (kind, code, better, 4)
    assert found["gain"] == pytest.approx(gain) and found["up_per_round"] == 2_500
    low, high = found["interval"]
    assert (low > 0, high < 0) == (kind == "gain", kind == "loss")
    assert f"{abs(100 * gain):.1f} points" in sentence and "2.5 KB" in sentence and "600 B" in sentence
    assert ("No clear gain" in sentence) == (kind == "unclear") and ("lost" in sentence) == (kind == "loss")


def test_a_loser_of_a_gain_is_named_and_may_stay_alone():
    methods = {"own-prior": result([0.8, 0.9, 0.8, 0.9, 0.6], SENT), "alone": result([0.6, 0.7, 0.6, 0.7, 0.61])}
    found = source(methods)
    numbers, code, _ = read(found)
    assert (numbers["kind"], code, numbers["worse"]) == ("gain", "federate", ["site-4"])
    assert "site-4" in advice_on(found).text


def test_two_sites_have_no_interval_and_so_no_clear_gain():
    found, advice, sentence = read(source({"own-prior": result([0.9, 0.9], SENT), "alone": result([0.5, 0.5])}))
    assert (found["kind"], found["interval"], found["better"]) == ("unclear", None, ["site-0", "site-1"])
    assert advice == "undecided" and "No clear gain" in sentence and "2 sites" in sentence


def test_without_a_baseline_the_gain_is_unknown():
    found, advice, sentence = read(source({"own-prior": result(SHARED, SENT)}))
    assert (found["kind"], advice) == ("one method", "no-baseline")
    assert "80.0 %" in sentence and "unknown" in sentence and "2.5 KB" in sentence
    found, advice, sentence = read(source({"local": result(SHARED)}))
    assert (found["kind"], advice) == ("one method", "nothing-shared") and "nothing left" in sentence


def between_sites(methods, **settings):
    found = source(methods)
    return replace(found, study=found.study.model_copy(update={"between_sites": True, "configuration": settings}))


def test_between_sites_nothing_runs_beside_the_method():
    found = between_sites({"own-prior": result(SHARED, SENT)})
    assert read(found)[1] == "no-baseline" and "again" not in advice_on(found).text


@pytest.mark.parametrize(
    ("settings", "allowed"),
    [
        ({"privacy": {"few_tokens": "allow"}, "sealing": {"on": False}}, True),
        ({"sealing": {"on": True}}, False),
        ({"privacy": {"update": {"epsilon": 4.0}}}, False),
    ],
)
def test_between_sites_only_the_scores_are_missing(settings, allowed):
    """Sites hold rows back; they share scores only if they are allowed to and the run lets them."""
    found = between_sites({}, **settings)
    _, code, sentence = read(found)
    assert code == "no-scores" and "yet" not in sentence and "test_fraction" not in advice_on(found).text
    assert ("tell_scores" in advice_on(found).text) == allowed


RIVAL = [0.95, 0.96, 0.94, 0.95]


@pytest.mark.parametrize(
    ("shared", "rival", "alone", "code"),
    [
        (SHARED, None, [0.70, 0.71, 0.69, 0.70], "federate"),
        ([*[0.90] * 4, 0.60], None, [*[0.50] * 4, 0.61], "federate"),
        (SHARED, None, [0.60, 0.95, 0.78, 0.83], "undecided"),
        (SHARED, None, RIVAL, "alone"),
        (SHARED, RIVAL, [0.70] * 4, "rival"),
        (SHARED, RIVAL, [0.90, 0.99, 0.70, 0.99], "rival"),
        (SHARED, SHARED, None, "lightest"),
        (SHARED, None, None, "no-baseline"),
        ([None] * 4, None, None, "no-tests"),
    ],
)
def test_a_recommendation_has_two_sentences_at_most(shared, rival, alone, code):
    methods = {"own-prior": result(shared, SENT)}
    methods |= {"fedavg-lora": result(rival, SENT)} if rival else {}
    methods |= {"alone": result(alone)} if alone else {}
    found = source(methods, controls={"probe-alone": Spread(mean=0.99)})
    advice = advice_on(found)
    assert advice.code == code
    for sentence in (advice.sentence, advice.second):
        assert len(re.findall(r"[.!?](?:\s|$)", sentence)) == bool(sentence)


def test_without_test_data_nothing_is_claimed():
    found, advice, sentence = read(source({"own-prior": result([None] * 3, SENT), "alone": result([None] * 3)}))
    assert (found, advice) == ({"kind": "none"}, "no-tests") and "%" not in sentence


def test_a_language_model_has_its_perplexity_beside_the_accuracy():
    methods = {
        "fedavg-lora": result([0.4, 0.42, 0.38], SENT, perplexity=12.3),
        "alone": result([0.3, 0.31, 0.29], perplexity=20.5),
    }
    found, _, sentence = read(source(methods, metric="next-token accuracy"))
    assert found["kind"] == "gain" and "next-token accuracy" in sentence
    assert sentence.index("12.3") < sentence.index("20.5")


@pytest.mark.parametrize(
    ("shared", "kind"), [([0.3, 0.31, 0.3], "gain"), ([0.9, 0.91, 0.9], "loss"), ([0.5, 0.7, 0.6], "unclear")]
)
def test_of_a_loss_less_is_better(shared, kind):
    methods = {"fedavg-lora": numbers(shared, SENT), "alone": numbers([0.6, 0.61, 0.6])}
    found, _, sentence = read(source(methods, deciding=Deciding.of("log_loss")))
    assert (found["kind"], found["metric"]) == (kind, "log_loss")
    assert found["gain"] == pytest.approx(0.60333 - sum(shared) / 3, abs=1e-4)
    assert f"{sum(shared) / 3:.4g}" in sentence and "0.6033" in sentence and "points" not in sentence


def test_an_unfinished_run_is_not_to_be_decided_on():
    methods = {"own-prior": result(SHARED, SENT), "alone": result([0.7] * 4)}
    _, advice, sentence = read(source(methods, finished=False))
    assert advice == "finish" and sentence.startswith("Not finished")
    diverged = Details(diverged=("site-1 with own-prior",))
    assert read(source(methods, details=diverged))[1] == "diverged"


def test_a_control_that_needs_no_training_is_named_if_nothing_beats_it():
    methods = {"own-prior": result(SHARED, SENT), "alone": result([0.7, 0.71, 0.69, 0.70])}
    for mean, named in ((0.95, True), (0.5, False)):
        found = source(methods, controls={"probe-alone": Spread(mean=mean)})
        assert ("95.0 %" in advice_on(found).text) == named and advice_on(found).code == "federate"


def test_more_seeds_are_wanted_only_where_there_are_few():
    methods = {"own-prior": result(SHARED, SENT), "alone": result([0.60, 0.95, 0.78, 0.86])}
    few, enough = (advice_on(source(methods, seeds=range(count))).text for count in (1, 3))
    assert "seeds" in few and "seeds" not in enough


def test_the_one_plot_shows_each_site_unless_all_are_equal():
    methods = {"own-prior": result(SHARED, SENT), "alone": result([0.7, 0.9, 0.69, 0.70])}
    block = first_block(source(methods))
    assert block.plot is not None and [row["site"] for row in block.table.rows][-1] == "site-1"
    assert block.table.rows[0]["gain"] == pytest.approx(0.1)
    equal = first_block(source({"own-prior": result(SHARED, SENT), "alone": result(SHARED)}))
    assert equal.plot is None and equal.table.note and len(equal.table.rows) == 4
    assert first_block(source({"own-prior": result([None] * 3, SENT)})) is None


def test_rivals_that_share_leave_the_worth_unknown_without_the_same_method_alone():
    methods = {"own-prior": result(SHARED, SENT), "fedavg-lora": result(SHARED, SENT), "local": result([0.5] * 4)}
    found = source(methods)
    (partition,) = found.study.results.values()
    assert worth_of_sharing(partition) is None
    assert (outcome(found.study)["kind"], advice_on(found).code) == ("ranking", "lightest")
