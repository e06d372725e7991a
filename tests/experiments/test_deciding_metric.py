"""The metric that decides: in tuning, in comparisons, in verdicts and in tables."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from rich.console import Console

from trifed import register_metric
from trifed.common.errors import ConfigError
from trifed.config import metrics as registry
from trifed.experiments.compare import compare
from trifed.experiments.compare_config import PLANNED, make_comparison
from trifed.experiments.tuning import best_rate
from trifed.reports.comparison.deciding import by_deciding_metric, verdict_in_numbers
from trifed.reports.comparison.metric_tables import metric_curve_table, metric_difference_table, metric_table
from trifed.reports.comparison.report import render_comparison
from trifed.reports.comparison.verdict import leaders, study_verdict, verdict
from trifed.reports.results import Deciding, Difference, MethodResult, Partition, Point, Spread, Study
from trifed.reports.tables import to_markdown


def partition(metric, values, accuracies=None):
    """Methods whose clients have these values of a metric, and accuracies in the opposite order."""
    accuracies = accuracies or {name: 1 - np.array(row) / 10 for name, row in values.items()}
    methods = {
        name: MethodResult(
            mean=float(np.mean(accuracies[name])),
            metrics={metric: Spread(mean=float(np.mean(row)), client_accuracy=list(row))},
        )
        for name, row in values.items()
    }
    clients = [f"client-{place}" for place in range(len(next(iter(values.values()))))]
    return Partition(deciding=Deciding.of(metric), clients=clients, methods=methods)


def run_settings(values):
    return {name: value for name, value in values.items() if name not in PLANNED}


def test_rates_by_the_direction_of_the_metric_and_diverged_ones_last():
    tried = {0.1: None, 0.01: 0.4, 0.001: 0.2}
    assert best_rate(tried) == 0.01 and best_rate(tried, "log_loss") == 0.001
    assert best_rate({0.1: None, 0.01: None}) == 0.01


@pytest.mark.usefixtures("without_processes")
def test_a_comparison_has_metrics_and_is_decided_by_one(compare_values, toy_values, tmp_path):
    settings = run_settings(toy_values(rounds=2, metrics=["auroc"], metric="log_loss"))
    tuning = {"learning_rates": [1e-3, 1e-2], "seed": 7, "rounds": 1, "extend": 0}
    values = compare_values(run=settings, tuning=tuning)
    result = compare(make_comparison(values), tmp_path / "small")
    found = result.results["all"]
    assert found["deciding"] == {"name": "log_loss", "lower_is_better": True, "share": False}
    for method in ("local", "fedavg-lora"):
        told, folder = found["methods"][method]["metrics"], result.path / "runs" / "all" / method
        assert list(told) == ["auroc", "log_loss"]
        summaries = [json.loads((folder / f"seed-{seed}" / "summary.json").read_text()) for seed in (0, 1)]
        for name, spread in told.items():
            for end in ("mean", "worst", "best"):
                assert spread[end] == pytest.approx(np.mean([s["metrics"][name][end] for s in summaries]))
            own = [[client["now"][name] for client in s["clients"]] for s in summaries]
            np.testing.assert_allclose(spread["client_accuracy"], np.mean(own, 0))
        rates = result.data["tuning"]["all"]["methods"][method]
        runs = [tmp_path / "small" / "tuning" / "all" / method / f"rate-{rate:g}" for rate in (1e-3, 1e-2)]
        curves = [json.loads((run / "summary.json").read_text())["curve"] for run in runs]
        losses = [curve[-1]["valid_metrics"]["log_loss"] for curve in curves]
        assert list(rates["grid"].values()) == losses
        assert rates["chosen"] == (1e-3, 1e-2)[int(np.argmin(losses))]
    console = Console(file=io.StringIO(), width=120, color_system=None)
    console.print(render_comparison(result.data))
    text = " ".join(console.file.getvalue().split())
    assert "Further metrics on test data" in text and "less is better" in text


@pytest.mark.usefixtures("without_processes")
def test_a_comparison_starts_processes_that_know_no_function_of_this_one(compare_values, toy_values):
    register_metric("mine", lambda labels, predictions, probabilities: 0.0)
    try:
        settings = run_settings(toy_values(metrics=["mine"]))
        with pytest.raises(ConfigError, match=r"mine.*trifed\.metrics"):
            make_comparison(compare_values(run=settings))
    finally:
        del registry.REGISTERED["mine"]


def test_a_share_decides_like_accuracy():
    values = {"local": [0.5, 0.6, 0.7, 0.6], "fedavg-lora": [0.7, 0.8, 0.9, 0.82]}
    found = partition("f1_macro", values)
    view = by_deciding_metric(found)
    assert leaders(view) == ["fedavg-lora"] and view.methods["local"].mean == pytest.approx(0.6)
    assert by_deciding_metric(view) is view
    text = verdict(found)
    assert "f1_macro" in text and "80.5 %" in text and "accuracy" not in text
    study = Study(name="x", methods=list(values), results={"a": found, "b": found})
    assert study_verdict(study).startswith("fedavg-lora is first")


def test_of_a_loss_less_is_better_and_no_percentage():
    values = {"local": [0.5, 0.6, 0.7, 0.6], "fedavg-lora": [0.3, 0.45, 0.5, 0.41]}
    found = partition("log_loss", values)
    text = verdict(found)
    assert text == verdict_in_numbers(found) and text.startswith("Ahead: fedavg-lora 0.415, local 0.6 ")
    assert "-0.185" in text and "%" not in text.replace("95 %", "")
    assert leaders(by_deciding_metric(found)) == ["fedavg-lora"]
    level = partition("log_loss", {"local": [0.5, 0.6], "fedavg-lora": [0.3, 0.5]})
    assert verdict(level).startswith("No clear winner: fedavg-lora") and "no interval" in verdict(level)
    assert verdict(partition("log_loss", {"local": [0.5]})).startswith("local reached 0.5 test log_loss")
    assert verdict(Partition(deciding=Deciding.of("log_loss"))) == "No test log_loss yet."


def test_tables_of_metrics():
    values = {"local": [0.5, 0.6, 0.7, 0.6], "fedavg-lora": [0.3, 0.4, 0.5, 0.41]}
    found = partition("log_loss", values)
    found = found.model_copy(update={"differences": {"fedavg-lora minus local": Difference()}})
    assert [row["method"] for row in metric_table(found).rows] == list(values)
    [row] = metric_difference_table(found).rows
    assert row["mean"] == pytest.approx(-0.1975) and row["interval"][0] < row["interval"][1] < 0
    assert "log\\_loss" in to_markdown(metric_table(found))
    assert not metric_difference_table(found.model_copy(update={"deciding": Deciding()})).rows


def test_metrics_over_rounds_have_the_deciding_one_on_validation_data():
    point = Point(round=2, metrics={"brier": 0.2, "log_loss": 0.5}, valid_metrics={"brier": 0.3, "log_loss": 0.6})
    curve = [Point(round=0), point]
    found = Partition(deciding=Deciding.of("log_loss"), methods={"local": MethodResult(curve=curve)})
    table = metric_curve_table(found)
    assert [column.key for column in table.columns] == ["method", "round", "brier", "log_loss", "validation"]
    assert [(row["round"], row["log_loss"], row["validation"]) for row in table.rows] == [(2, 0.5, 0.6)]
