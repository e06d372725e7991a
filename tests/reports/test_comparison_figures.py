"""Figures and tables of comparisons for Python."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
from studies import make_comparison

from trifed.experiments.compare import ComparisonResult
from trifed.reports.comparison.plots import clients
from trifed.reports.comparison.report import comparison_document, figures_of
from trifed.reports.figures import draw_figure
from trifed.reports.results import Details, Source, Spread, Study


def test_figures_of_several_partitions_are_told_apart():
    drawn = figures_of(
        comparison_document(Source(Path(), "comparison", Study.model_validate(make_comparison(("a", "b"))), {}))
    )
    assert {"a: Accuracy over rounds", "b: Accuracy over rounds"} <= set(drawn)


def test_a_comparison_without_a_result_has_empty_tables(tmp_path):
    data = make_comparison() | {"results": {}, "tuning": {}, "finished": False}
    result = ComparisonResult(tmp_path, data)
    assert result.table().empty and result.differences().empty and result.figures() == {}


def test_a_matrix_in_which_all_are_alike_is_a_sentence_and_no_square():
    study = Study.model_validate(make_comparison(clients=4))
    equal, other = np.full((4, 4), 0.25), np.linspace(0.1, 1.0, 16).reshape(4, 4)
    own = equal + 0.3 * np.eye(4)
    details = Details(matrices={"ce-lora": {"weights": equal, "similarity_data": own, "similarity_model": other}})
    drawn = comparison_document(Source(Path(), "comparison", study, {"intents-0.5": details}))
    found = {
        block.table.title.partition(",")[0]: block
        for section in drawn.sections
        for block in section.blocks
        if ", ce-lora, round" in block.table.title
    }
    assert (
        found["Weights of the average"].plot is None and "is 0.25." in found["Weights of the average"].table.note
    )
    assert found["Similarity of data"].plot is None and "0.55" in found["Similarity of data"].table.note
    assert found["Similarity of models"].plot is not None


@pytest.mark.parametrize(("one", "other"), [(0.72, 0.85), (0.87, 0.88), (0.61, 0.62), (0.60, 0.90)])
def test_the_names_of_controls_stay_above_the_plot_and_apart(one, other):
    (partition,) = Study.model_validate(make_comparison()).results.values()
    controls = {"probe-alone": Spread(mean=one), "probe-all": Spread(mean=other)}
    plot = partial(clients, partition=partition.model_copy(update={"controls": controls}))
    figure = draw_figure(plot, ("local", "ce-lora", "fedavg-lora"), (4.7, 3.5), "Each client")
    figure.draw_without_rendering()
    (axes,) = figure.axes
    plain, high = axes.get_window_extent(), []
    for text in axes.texts:
        box = text.get_window_extent()
        assert plain.x0 - 1 <= box.x0 and box.x1 <= plain.x1 + 1
        high.append((text.get_text().strip(), text.get_text().count("\n")))
    assert [name.partition(",")[0] for name, _ in high] == ["probe", "probe"] and [n for _, n in high] == [0, 1]
