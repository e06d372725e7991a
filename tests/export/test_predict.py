"""Predictions in the order of the texts, a chunk at a time, as CSV and JSON Lines."""

from __future__ import annotations

import csv
import io
import json

import numpy as np
import pytest

from trifed.export import predict as module
from trifed.export.inference_inputs import InferenceInput
from trifed.export.locate import locate_model
from trifed.export.predict import load_located, predict, write_csv, write_jsonl
from trifed.federation.client_model import Classifier

TEXTS = [
    f"word{n:03d} {word}" for n, word in enumerate(["invoice", "parcel", "password", "refund", "courier"] * 4)
]


@pytest.fixture
def classifier(run_of):
    return load_located(Classifier, locate_model(run_of("ce-lora"), "amber"))


def inputs(pair=None):
    return [InferenceInput(row, text, pair) for row, text in enumerate(TEXTS, start=1)]


def test_chunks_change_nothing(classifier, monkeypatch):
    whole = list(predict(classifier, inputs()))
    monkeypatch.setattr(module, "CHUNK", 3)
    parts = list(predict(classifier, iter(inputs())))
    assert [p.input for p in parts] == [p.input for p in whole] == inputs()
    assert [p.best[0][0] for p in parts] == [p.best[0][0] for p in whole] == classifier.predict(TEXTS)
    np.testing.assert_allclose([p.best[0][1] for p in parts], [p.best[0][1] for p in whole], rtol=1e-4)


def test_a_chunk_is_predicted_before_the_next_is_read(classifier, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 2)
    read = []

    def lines():
        for item in inputs():
            read.append(item.row)
            yield item

    next(predict(classifier, lines()))
    assert read == [1, 2]


def test_the_best_labels_come_in_order_with_the_models_probabilities(classifier):
    probabilities = classifier.probabilities(TEXTS)
    for prediction, row in zip(predict(classifier, inputs(), top=9), probabilities, strict=True):
        assert sorted(label for label, _ in prediction.best) == classifier.labels  # three, though nine were asked
        np.testing.assert_allclose([p for _, p in prediction.best], np.sort(row)[::-1], rtol=1e-4)
        assert prediction.best[0][0] == classifier.labels[row.argmax()]


def test_a_second_text_reaches_the_model(classifier):
    first, second = (
        [p.best[0][1] for p in predict(classifier, inputs(pair))] for pair in ("invoice", "reset token")
    )
    assert not np.allclose(first, second)
    np.testing.assert_allclose(first, classifier.probabilities(TEXTS, ["invoice"] * len(TEXTS)).max(1), rtol=1e-4)


def test_csv_and_json_lines_hold_the_same(classifier):
    predictions = list(predict(classifier, inputs("one, two"), top=2))
    table, lines = io.StringIO(), io.StringIO()
    write_csv(predictions, table)
    write_jsonl(predictions, lines)
    rows = list(csv.DictReader(io.StringIO(table.getvalue())))
    records = [json.loads(line) for line in lines.getvalue().splitlines()]
    assert list(rows[0]) == ["row", "text", "pair", "label", "probability", "label_2", "probability_2"]
    for row, record, prediction in zip(rows, records, predictions, strict=True):
        assert (int(row["row"]), row["text"], row["pair"]) == prediction.input[:3]
        assert (record["row"], record["text"], record["pair"]) == prediction.input[:3]
        best = [(row["label"], float(row["probability"])), (row["label_2"], float(row["probability_2"]))]
        assert [(item["label"], item["probability"]) for item in record["top"]] == best
        assert (record["label"], record["probability"]) == best[0]
        assert best == [(label, round(p, 6)) for label, p in prediction.best]
