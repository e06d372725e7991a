"""Tables of predictions and scores in a terminal of ordinary width."""

from __future__ import annotations

import io
import re

import numpy as np
from rich.console import Console

from trifed.export.evaluate import measure
from trifed.export.inference_inputs import InferenceInput
from trifed.export.predict import Prediction
from trifed.reports.evaluations import CONFUSIONS, LABELS, render_evaluations, render_predictions


def lines(table, width=80):
    out = io.StringIO()
    Console(file=out, width=width).print(table)
    return out.getvalue().splitlines()


def test_a_long_text_is_cut_and_never_the_label():
    best = [("delivery_problem", 0.75), ("[bold]order[/bold]", 0.25)]
    shown = lines(render_predictions([Prediction(InferenceInput(12, "a long text\n" * 50, "[red]"), best)], 2))
    assert max(map(len, shown)) <= 80
    (row,) = (line for line in shown if "delivery_problem" in line)
    cells = [cell.strip() for cell in row.strip("│").split("│")]
    assert cells == ["12", "a long te…", "delivery_problem", "0.750", "[bold]order[/bold] 0.250"]
    assert len(shown) == 5


def scores(n_labels, examples=400):
    rng = np.random.default_rng(0)
    names = [f"label-{number:03d}" for number in range(n_labels)]
    labels, predicted = (rng.integers(n_labels, size=examples) for _ in range(2))
    return measure("amber", labels, predicted, names, 1.5)


def test_of_many_labels_the_worst_are_shown():
    one = scores(LABELS + 20)
    shown = "\n".join(lines(render_evaluations([one])))
    assert re.search(rf"\b{LABELS} .*\b{LABELS + 20}\b", shown)
    worst = sorted(score.f1 for score in one.labels)[LABELS - 1]
    for score in one.labels:
        if score.f1 < worst:
            assert score.label in shown
    assert len(one.confusions) > CONFUSIONS
    first = one.confusions[0]
    assert f"│ {first.actual} │ {first.predicted} │        {first.count} │" in shown


def test_several_clients_are_one_row_each_with_mean_worst_and_best():
    found = [scores(3, examples=50 + 50 * number) for number in range(3)]
    shown = lines(render_evaluations(found))
    accuracies = [one.accuracy for one in found]
    values = {"mean": np.mean(accuracies), "worst": min(accuracies), "best": max(accuracies)}
    for name, value in values.items():
        (row,) = (line for line in shown if name in line)
        assert f"{100 * value:.1f}" in row
    assert not any("taken for" in line for line in shown)
