"""Metrics by name: their values, and their way through a run to events, summary, report, trackers and tables."""

from __future__ import annotations

import json

import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from test_cli_help import call
from trifed import make_config, run
from trifed.common.errors import ConfigError
from trifed.config.settings import MetricName
from trifed.federation.metrics import METRICS, compute_metrics
from trifed.federation.results import spread_of
from trifed.reports.tracking.scalars import scalars

NAMES = list(METRICS)


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
    assert report.code == 0 and r"f1\_macro" in (tmp_path / "report.md").read_text()


def test_they_change_nothing_else(toy_values, tmp_path):
    plain, more = (make_config(toy_values(rounds=1, metrics=names)) for names in ([], ["auroc"]))
    assert plain.run_id() == more.run_id()
    assert run(plain, tmp_path / "a").summary["accuracy"] == run(more, tmp_path / "b").summary["accuracy"]


def test_names_and_tasks_that_cannot_be(toy_values):
    with pytest.raises(ConfigError, match=r"metrics.*f1_macro"):
        make_config(toy_values(metrics=["f1"]))
    with pytest.raises(ConfigError, match="no labels to predict"):
        make_config({"task": "causal-lm", "data": {"source": "t.csv"}, "metrics": ["auroc"]})
