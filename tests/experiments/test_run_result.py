"""What a finished run shows in Python: a sentence, and tables."""

from __future__ import annotations

import pandas as pd
import pytest


def test_a_result_is_printed_as_a_sentence(finished):
    result = finished("ce-lora").result
    text = str(result)
    assert text == repr(result) and len(text.splitlines()) == 1
    assert "ce-lora, 3 clients, 3 rounds; mean test accuracy" in text and str(result.path) in text


def test_clients_and_history_are_tables(finished):
    result = finished("ce-lora").result
    assert list(result.clients.index) == [client["name"] for client in result.summary["clients"]]
    assert result.clients["accuracy"].mean() == pytest.approx(result.accuracy["mean"])
    assert (result.clients["bytes_up"] > 0).all() and (result.clients["test_examples"] > 0).all()
    assert isinstance(result.history, pd.DataFrame)
    assert result.history["mean"].iloc[-1] == result.accuracy["mean"]
    assert result.history.index[-1] == result.summary["rounds"]


def test_a_clients_model_has_scikit_learns_names(finished):
    model = finished("ce-lora").result.client("amber")
    probabilities = model.predict_proba(["invoice refund", "parcel"])
    assert probabilities.shape == (2, len(model.classes_))
    assert model.predict(["invoice refund", "parcel"]) == list(model.classes_[probabilities.argmax(1)])
