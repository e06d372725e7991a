"""Scores on a labelled file: those of the run on its own test rows, and right by hand on a small case."""

from __future__ import annotations

import csv
import dataclasses

import numpy as np
import pytest

from trifed.common.errors import DataError
from trifed.data import make_clients
from trifed.export import evaluate as module
from trifed.export.evaluate import Confusion, LabelScore, evaluate_client, measure
from trifed.export.export import export_client
from trifed.export.inference_inputs import InferenceInput, LabelledInputs, read_labelled
from trifed.export.locate import locate_model, locate_models
from trifed.export.predict import load_located
from trifed.federation.client_model import Classifier
from trifed.reports.evaluations import evaluations_csv, evaluations_json


def write_examples(path, examples, names):
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        writer.writerows((text, names[label]) for text, label in zip(examples.texts, examples.labels, strict=True))
    return path


@pytest.mark.parametrize(
    ("method", "precision"),
    [
        ("ce-lora", "fp32"), ("ce-lora", "bf16"), ("local", "fp32"), ("fedavg-lora", "fp32"),
        ("fedex-lora", "fp32"), ("fedalt", "fp32"), ("feddpa", "fp32"),
    ],
)  # fmt: skip
def test_a_clients_own_test_rows_give_what_the_run_reported(method, precision, finished, tmp_path):
    # After three rounds, every client would answer with its most frequent label.
    done = finished(method, rounds=10, evaluate_every=10, training={"precision": precision})
    data = make_clients(done.config.data, done.config.seed)
    reported = {client["name"]: client["now"] for client in done.summary["clients"]}
    accuracies = set()
    for client in data.clients:
        found = locate_model(done.path, client.name)
        path = write_examples(tmp_path / f"{client.name}.csv", client.test, data.label_names)
        scores = evaluate_client(found, load_located(Classifier, found), read_labelled(path, found.columns))
        assert scores.examples == reported[client.name]["examples"]
        assert scores.accuracy == reported[client.name]["accuracy"]
        assert scores.loss == pytest.approx(reported[client.name]["loss"], rel=1e-6)
        accuracies.add(scores.accuracy)
    assert len(accuracies) > 1


def test_scores_by_hand():
    scores = measure("hand", np.array([0, 1, 1, 2, 2]), np.array([0, 0, 1, 1, 1]), list("abcd"), 1.5)
    assert (scores.client, scores.examples, scores.accuracy, scores.loss) == ("hand", 5, 0.4, 1.5)
    # d is neither in the file nor predicted.
    assert [score.label for score in scores.labels] == ["a", "b", "c"]
    assert scores.labels[0] == LabelScore("a", 1, 0.5, 1.0, pytest.approx(2 / 3))
    assert scores.labels[1] == LabelScore("b", 2, pytest.approx(1 / 3), 0.5, pytest.approx(0.4))
    assert scores.labels[2] == LabelScore("c", 2, 0.0, 0.0, 0.0)
    assert scores.macro_f1 == pytest.approx((2 / 3 + 0.4) / 3)
    assert scores.confusions == [Confusion("c", "b", 2), Confusion("b", "a", 1)]


def test_chunks_change_no_score(run_of, toy_table, monkeypatch):
    found = locate_model(run_of("ce-lora"), "amber")
    data = read_labelled(toy_table, found.columns)
    whole = evaluate_client(found, load_located(Classifier, found), data)
    monkeypatch.setattr(module, "CHUNK", 7)
    parts = evaluate_client(found, load_located(Classifier, found), data)
    assert parts.loss == pytest.approx(whole.loss, rel=1e-5)
    assert dataclasses.replace(parts, loss=whole.loss) == whole


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_runs_client_is_measured_in_the_runs_precision_and_an_export_in_float32(
    precision, finished, toy_table, tmp_path
):
    done = finished("local", training={"precision": precision})
    inside = locate_model(done.path, "amber")
    outside = locate_model(export_client(done.path, "amber", "lora", tmp_path / "lora"), None)
    data = read_labelled(toy_table, inside.columns)
    mine, theirs = (
        evaluate_client(found, load_located(Classifier, found), data).loss for found in (inside, outside)
    )
    classifier = load_located(Classifier, inside)
    truth = [classifier.labels.index(label) for label in data.labels]
    probabilities = classifier.probabilities([item.text for item in data.inputs])
    exact = -np.log(probabilities[np.arange(len(truth)), truth]).mean()
    assert theirs == pytest.approx(exact, rel=1e-5)
    assert mine == pytest.approx(exact, rel=0.05)
    # Rounding in bf16 almost cancels in a mean over 120 rows; float32 is nearer by another order of magnitude.
    assert (mine == pytest.approx(exact, rel=1e-6)) == (precision == "fp32")


def test_a_label_that_the_model_does_not_know_is_refused(run_of):
    found = locate_model(run_of("local"), "amber")
    data = LabelledInputs(
        "f.jsonl",
        "line",
        [InferenceInput(4, "x"), InferenceInput(7, "y"), InferenceInput(9, "z")],
        ["login", "Login", "other"],
    )
    with pytest.raises(
        DataError,
        match=r"f\.jsonl, line 7.*'Login'.*\(2 .*'amber'.*billing, delivery, login",
    ):
        evaluate_client(found, load_located(Classifier, found), data)


def test_several_clients_as_json_and_csv(run_of, toy_table):
    data = read_labelled(toy_table, locate_model(run_of("local"), "amber").columns)
    told = []
    scores = [
        evaluate_client(found, load_located(Classifier, found), data, told.append)
        for found in locate_models(run_of("local"), "all")
    ]
    assert sum(told) == 3 * len(data.labels)
    found = evaluations_json(scores)
    accuracies = [one.accuracy for one in scores]
    assert found["accuracy"] == {
        "mean": pytest.approx(np.mean(accuracies)),
        "worst": min(accuracies),
        "best": max(accuracies),
    }
    assert [one["client"] for one in found["clients"]] == ["amber", "basil", "coral"]
    assert found["clients"][0]["labels"][0]["label"] == "billing"
    rows = list(csv.DictReader(evaluations_csv(scores).splitlines()))
    assert [(row["client"], float(row["accuracy"]), int(row["examples"])) for row in rows] == [
        (one.client, one.accuracy, 120) for one in scores
    ]
