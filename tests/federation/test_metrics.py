"""Metrics by name: their values, and their way through a run to events, summary, report, trackers and tables."""

from __future__ import annotations

import json
from importlib.metadata import EntryPoint

import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from test_cli_help import call
from trifed import make_config, register_metric, run
from trifed.common.errors import ConfigError, RunError
from trifed.config import metrics as registry
from trifed.config.settings import MetricName
from trifed.export.locate import open_run
from trifed.federation.results import facts_of
from trifed.federation.training.class_scores import class_scores
from trifed.federation.training.evaluation import Scores
from trifed.federation.training.metrics import METRICS, best_of, better, compute_metrics, metric_named, spread_of
from trifed.reports.tracking.scalars import scalars

NAMES = list(METRICS)
PLUGIN = """
def cost(labels, predictions, probabilities):
    return float((labels != predictions).sum())


broken = 3
"""


@pytest.fixture(autouse=True)
def as_before():
    known = dict(registry.REGISTERED)
    yield
    registry.REGISTERED.clear()
    registry.REGISTERED.update(known)
    registry.BROKEN.clear()
    registry.FROM_PACKAGES.clear()
    registry.load_metrics_of_packages.cache_clear()


def share_of_first(labels, predictions, probabilities):
    return float((predictions == 0).mean())


def drawn(count=200, labels=4, seed=0):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(count, labels))
    truth = rng.integers(0, labels, count)
    logits[np.arange(count), truth] += 1
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return truth, probabilities.argmax(1), probabilities.astype(np.float32)


def test_the_settings_know_all_names():
    assert list(MetricName.__args__) == NAMES


def test_values_are_scikit_learns():
    truth, predicted, probabilities = drawn()
    found = compute_metrics(NAMES, truth, predicted, probabilities)
    exact = probabilities.astype(np.float64)
    exact /= exact.sum(1, keepdims=True)
    each = np.eye(4)[truth]
    assert found["f1_macro"] == sklearn_metrics.f1_score(truth, predicted, average="macro")
    assert found["f1_weighted"] == sklearn_metrics.f1_score(truth, predicted, average="weighted")
    assert found["balanced_accuracy"] == sklearn_metrics.balanced_accuracy_score(truth, predicted)
    assert found["auroc"] == pytest.approx(sklearn_metrics.roc_auc_score(truth, exact, multi_class="ovr"))
    assert found["average_precision"] == pytest.approx(sklearn_metrics.average_precision_score(each, exact))
    assert found["log_loss"] == pytest.approx(sklearn_metrics.log_loss(truth, exact))


def test_two_labels_have_the_usual_brier_score_and_area():
    truth, predicted, probabilities = drawn(labels=2)
    found = compute_metrics(NAMES, truth, predicted, probabilities)
    assert found["brier"] == pytest.approx(sklearn_metrics.brier_score_loss(truth, probabilities[:, 1]), rel=1e-6)
    assert found["auroc"] == pytest.approx(sklearn_metrics.roc_auc_score(truth, probabilities[:, 1]))


def test_the_calibration_error_of_three_predictions():
    """Confidences 0.9, 0.9 and 0.6, of which the first and the last are right: (|1 - 1.8| + |1 - 0.6|) / 3."""
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6]], np.float32)
    found = compute_metrics(["calibration_error"], np.array([0, 1, 1]), np.array([0, 0, 1]), probabilities)
    assert found["calibration_error"] == pytest.approx((0.8 + 0.4) / 3, rel=1e-6)


def test_labels_that_a_client_lacks_and_no_examples_at_all():
    truth, predicted, probabilities = drawn()
    one = np.full_like(truth, 2)
    found = compute_metrics(NAMES, one, predicted, probabilities)
    assert np.isnan(found["auroc"]) and np.isnan(found["average_precision"])
    assert all(np.isfinite(found[name]) for name in NAMES if name not in ("auroc", "average_precision"))
    diverged = compute_metrics(NAMES, truth, predicted, np.full_like(probabilities, np.nan))
    assert all(np.isnan(value) for value in diverged.values())
    nothing = compute_metrics(NAMES, truth[:0], predicted[:0], probabilities[:0])
    assert all(np.isnan(value) for value in nothing.values())


def test_the_worst_client_has_the_highest_error():
    parts = [{"brier": 0.1, "f1_macro": 0.1}, {"brier": 0.3, "f1_macro": 0.3}, {"brier": None, "f1_macro": 0.2}]
    assert spread_of("brier", parts) == {"mean": pytest.approx(0.2), "worst": 0.3, "best": 0.1}
    assert spread_of("f1_macro", parts)["worst"] == 0.1


def test_more_is_better_but_for_losses_and_no_number_is_the_worst():
    assert better("accuracy", 0.2, 0.1) and not better("loss", 0.2, 0.1)
    assert better("f1_macro", 0.1, None) and not better("f1_macro", float("nan"), None)
    assert not better("accuracy", 0.1, 0.1)
    assert best_of("brier", {"a": 0.3, "b": 0.1, "c": 0.1, "d": None}) == "b"
    assert best_of("accuracy", {"a": None}) is None


def test_a_metric_that_is_not_known_here_has_a_mean_and_no_direction():
    """As in a report of a run whose function is another process's."""
    assert metric_named("mine") is None
    assert spread_of("mine", [{"mine": 1.0}, {"mine": 3.0}]) == {"mean": 2.0, "worst": None, "best": None}


def test_perplexity_is_the_exponential_of_the_loss():
    scores = Scores(2.0, 0.5, 3, np.zeros(3), np.zeros(0, np.int64))
    assert facts_of(scores, np.zeros(3, np.int64), ["perplexity"])["perplexity"] == pytest.approx(np.exp(2))
    diverged = Scores(1e4, 0.5, 3, np.zeros(3), np.zeros(0, np.int64))
    assert np.isnan(facts_of(diverged, None, ["perplexity"])["perplexity"])


def test_each_class_has_precision_recall_and_f1():
    """Of three examples of a, two are found, and one b is taken for a; nothing is taken for c."""
    found = class_scores(np.array([0, 0, 0, 1, 2]), np.array([0, 0, 1, 0, 1]), ["a", "b", "c", "d"])
    assert found["a"] == {"precision": 2 / 3, "recall": 2 / 3, "f1": pytest.approx(2 / 3), "examples": 3}
    assert (found["b"]["precision"], found["b"]["recall"], found["b"]["f1"]) == (0, 0, 0)
    assert found["c"]["precision"] is None and found["c"]["recall"] == 0 and found["c"]["examples"] == 1
    assert "d" not in found and class_scores(np.zeros(0, int), np.zeros(0, int), ["a"]) == {}


def test_a_function_of_ones_own(toy_values, tmp_path):
    register_metric("share_of_first", share_of_first, share=True)
    done = run(make_config(toy_values(rounds=1, metrics=["share_of_first"])), tmp_path / "run")
    predictions = json.loads((done.path / "predictions.json").read_text())["model"]
    own = [float((np.array(rows) == 0).mean()) for rows in predictions.values()]
    assert done.clients["share_of_first"].tolist() == pytest.approx(own)
    assert done.summary["metrics"]["share_of_first"]["worst"] == pytest.approx(min(own))
    del registry.REGISTERED["share_of_first"]  # as in another process, where the models can be used all the same
    assert open_run(done.path).config.metrics == []


def test_a_function_that_fails_is_named(toy_values, tmp_path):
    register_metric("bad", lambda labels, predictions, probabilities: {}["x"])
    with pytest.raises(RunError, match=r"metric 'bad'.*KeyError"):
        run(make_config(toy_values(rounds=1, metrics=["bad"])), tmp_path / "run")


@pytest.mark.parametrize("name", ["accuracy", "f1_macro", "perplexity", "two words", ""])
def test_names_that_are_taken_or_no_names(name):
    with pytest.raises(ConfigError):
        register_metric(name, share_of_first)
    assert name not in registry.REGISTERED


def test_a_name_is_taken_once_and_needs_a_function():
    register_metric("mine", share_of_first)
    with pytest.raises(ConfigError, match="replace=True"):
        register_metric("mine", share_of_first)
    register_metric("mine", share_of_first, lower_is_better=True, replace=True)
    assert metric_named("mine").lower_is_better
    with pytest.raises(ConfigError, match="expected a function"):
        register_metric("other", 3)


def test_metrics_of_installed_packages(tmp_path, monkeypatch, toy_values):
    (tmp_path / "metrics_of_a_test.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(tmp_path)
    entries = [
        EntryPoint(name, f"metrics_of_a_test:{name}", registry.GROUP) for name in ("cost", "broken", "none")
    ]
    monkeypatch.setattr(registry, "entry_points", lambda group: entries)
    registry.load_metrics_of_packages.cache_clear()
    assert make_config(toy_values(metrics=["cost"])).metrics == ["cost"]
    assert not list(registry.not_in_other_processes(["cost"]))
    for name, reason in (("broken", "expected a function"), ("none", "AttributeError")):
        with pytest.raises(ConfigError, match=reason):
            make_config(toy_values(metrics=[name]))


def test_they_are_in_events_summary_tables_report_and_trackers(toy_values, tmp_path, capsys, monkeypatch):
    done = run(make_config(toy_values(rounds=2, metrics=NAMES, evaluate_every=1)), tmp_path / "run")
    assert list(done.summary["metrics"]) == NAMES
    predictions = json.loads((done.path / "predictions.json").read_text())
    own = [
        sklearn_metrics.f1_score(labels, predictions["model"][name], average="macro")
        for name, labels in predictions["labels"].items()
    ]
    assert done.summary["metrics"]["f1_macro"]["mean"] == pytest.approx(np.mean(own))
    assert done.clients["f1_macro"].tolist() == pytest.approx(own)
    assert [set(point["metrics"]) for point in done.summary["curve"]] == [set(NAMES)] * 3
    events = [json.loads(line) for line in (done.path / "events.jsonl").read_text().splitlines()]
    tags = {point.tag for points in scalars(events) for point in points}
    assert {f"{name}/{end}" for name in NAMES for end in ("mean", "worst", "best")} <= tags
    report = call(capsys, monkeypatch, "report", done.path, "--out", tmp_path / "report.md")
    text = (tmp_path / "report.md").read_text()
    assert report.code == 0 and r"f1\_macro" in text and "Precision, recall and F1 by class" in text
    classes = done.summary["clients"][0]["classes"]
    truth = next(iter(predictions["labels"].values()))
    assert sum(row["examples"] for row in classes.values()) == len(truth)
    assert {"auroc", "valid_auroc"} <= set(done.history.columns)


def test_they_change_nothing_else(toy_values, tmp_path):
    plain, more = (make_config(toy_values(rounds=1, metrics=names)) for names in ([], ["auroc"]))
    assert plain.run_id() == more.run_id()
    assert run(plain, tmp_path / "a").summary["accuracy"] == run(more, tmp_path / "b").summary["accuracy"]


def test_names_and_tasks_that_cannot_be(toy_values):
    with pytest.raises(ConfigError, match=r"metrics.*f1_macro"):
        make_config(toy_values(metrics=["f1"]))
    with pytest.raises(ConfigError, match=r"metrics.*twice"):
        make_config(toy_values(metrics=["auroc", "auroc"]))
    with pytest.raises(ConfigError, match=r"metrics.*does not generate text"):
        make_config(toy_values(metrics=["perplexity"]))
    with pytest.raises(ConfigError, match=r"metric: .*'loss'|metric: got 'speed'"):
        make_config(toy_values(metric="speed"))
    assert make_config(toy_values(metric="auroc", metrics=["brier"])).computed_metrics == ["brier", "auroc"]
    assert make_config(toy_values(metric="loss")).computed_metrics == []
    with pytest.raises(ConfigError, match="no labels to predict"):
        make_config({"task": "causal-lm", "data": {"source": "t.csv"}, "metrics": ["auroc"]})
