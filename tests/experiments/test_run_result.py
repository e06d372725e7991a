"""What a finished run shows in Python: a sentence, and tables."""

from __future__ import annotations

import pandas as pd
import pytest
from matplotlib.figure import Figure


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


def test_a_run_is_drawn_as_figures(finished):
    result = finished("ce-lora").result
    overview = result.plot()
    assert isinstance(overview, Figure) and len(overview.axes) == 3
    assert overview._repr_png_().startswith(b"\x89PNG")
    figures = result.figures()
    assert {"Accuracy over rounds", "Worst and best client", "The split: clients and labels"} <= set(figures)
    lines = figures["Accuracy over rounds"].axes[0].get_lines()
    assert list(lines[0].get_ydata()) == pytest.approx(100 * result.history["mean"].to_numpy())


def test_a_comparison_is_printed_short_and_has_tables_and_figures(compared):
    result = compared[0]
    text = str(result)
    assert len(text) < 400 and "small: " in text and str(result.path) in text
    table = result.table()
    found = result.results["all"]["methods"]["fedavg-lora"]
    row = table.loc[("all", "fedavg-lora")]
    assert row["mean"] == found["mean"] and (row["interval_low"], row["interval_high"]) == tuple(found["interval"])
    assert len(table) == 2 + len(result.results["all"]["controls"])
    gaps = result.differences()
    expected = result.results["all"]["differences"]["fedavg-lora minus local"]["mean"]
    assert gaps.loc[("all", "fedavg-lora minus local"), "mean"] == expected
    figures = result.figures()
    assert {"Accuracy over rounds", "The split: clients and labels"} <= set(figures)
