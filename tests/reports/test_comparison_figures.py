"""Figures and tables of comparisons for Python."""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from studies import make_comparison

from trifed.experiments.compare import ComparisonResult
from trifed.reports.comparison.plots import clients, curves, curves_over_bytes, similarity, worst_to_best
from trifed.reports.comparison.report import comparison_document, figures_of
from trifed.reports.comparison.tables import main_table
from trifed.reports.figures import bytes_axis, draw_figure, wrapped
from trifed.reports.results import Details, Source, Spread, Study, Traffic


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


def test_the_names_of_two_upright_lines_point_away_from_each_other():
    (partition,) = Study.model_validate(make_comparison()).results.values()
    controls = {"probe-alone": Spread(mean=0.77), "probe-all": Spread(mean=0.82)}
    plot = partial(clients, partition=partition.model_copy(update={"controls": controls}))
    (axes,) = draw_figure(plot, ("local", "ce-lora", "fedavg-lora"), (4.7, 3.5), "Each client").axes
    assert [(text.xy[0], text.get_ha()) for text in axes.texts] == [(77.0, "right"), (82.0, "left")]


@pytest.mark.parametrize("height", [3.0, 3.2, 3.4])
def test_no_name_beside_a_heat_map_is_cut(height):
    names = ["hotel", "furniture_shop", "transit"]
    plot = partial(similarity, matrix=np.array([[1, 0.4, 1], [0.4, 1, 1], [1, 1, 1]]), names=names)
    figure = draw_figure(plot, ("ce-lora",), (4.7, height), "Similarity of data")
    figure.draw_without_rendering()
    labels = figure.axes[0].get_yticklabels()
    assert [one.get_text() for one in labels] == names and min(one.get_window_extent().x0 for one in labels) >= 0


@pytest.mark.parametrize("plot", [curves, curves_over_bytes])
def test_the_names_of_level_lines_are_beside_the_plot_and_apart(plot):
    """Beside the plot no data can lie below a name, however close the two lines are."""
    values = make_comparison(means={"local": 0.70, "alone": 0.71, "ce-lora": 0.72})
    (partition,) = Study.model_validate(values).results.values()
    quiet = partition.methods["local"].model_copy(update={"bytes": Traffic()})
    methods = {**partition.methods, "local": quiet, "alone": quiet}
    controls = {"probe-alone": Spread(mean=0.71), "probe-all": Spread(mean=0.72)}
    shown = partition.model_copy(update={"controls": controls, "methods": methods})
    figure = draw_figure(partial(plot, partition=shown), ("local", "alone", "ce-lora"), (4.7, 3.5), "Lines")
    figure.draw_without_rendering()
    (axes,) = figure.axes
    boxes = [text.get_window_extent() for text in axes.texts]
    assert len(boxes) == 2 and boxes[0].y1 <= boxes[1].y0 + 1
    assert all(box.x0 > axes.get_window_extent().x1 and box.x1 <= figure.bbox.x1 for box in boxes)


@pytest.mark.parametrize("most", [4_000, 30_000, 150_000, 700_000, 5_000_000])
def test_the_numbers_of_an_axis_of_bytes_do_not_touch(most):
    def plot(axes, style):
        axes.set_xlim(2_500, most)
        bytes_axis(axes)

    figure = draw_figure(plot, (), (4.7, 3.5), "Bytes")
    figure.draw_without_rendering()
    (axes,) = figure.axes
    low, high = axes.get_xlim()
    ticks = zip(axes.get_xticks(), axes.get_xticklabels(), strict=True)
    boxes = [label.get_window_extent() for place, label in ticks if low <= place <= high and label.get_text()]
    assert len(boxes) >= 2 and all(left.x1 + 3 < right.x0 for left, right in pairwise(boxes))


def test_r2_is_shown_as_a_number_and_other_scores_as_percentages():
    (partition,) = Study.model_validate(make_comparison(means={"local": 0.46, "ce-lora": 0.57})).results.values()
    for metric, mean, label in (("R²", "0.46", "test R²"), ("accuracy", "46.0", "test accuracy, %")):
        shown = partition.model_copy(update={"metric": metric})
        table = main_table({"": shown}, controls=False)
        place = [column.key for column in table.columns].index("mean")
        assert table.cells()[0][place] == mean and ("%" in table.columns[place].label) == (metric == "accuracy")
        figure = draw_figure(partial(worst_to_best, partition=shown), ("local", "ce-lora"), (4.7, 3.5), "Ends")
        assert figure.axes[0].get_xlabel() == label
        assert (figure.axes[0].dataLim.x1 > 1) == (metric == "accuracy")


@pytest.mark.parametrize("plot", [clients, worst_to_best, curves])
def test_an_axis_of_percentages_ends_at_100(plot):
    values = make_comparison(means={"local": 1.0, "ce-lora": 1.0})
    (partition,) = Study.model_validate(values).results.values()
    methods = {
        name: found.model_copy(update={"client_accuracy": [1.0] * 5, "worst": 0.99, "best": 1.0})
        for name, found in partition.methods.items()
    }
    shown = partition.model_copy(update={"methods": methods, "controls": {}})
    figure = draw_figure(partial(plot, partition=shown), ("local", "ce-lora"), (4.7, 3.5), "All right")
    (axes,) = figure.axes
    high = (axes.get_ylim() if plot is curves else axes.get_xlim())[1]
    assert 100 < high < 104


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("energy", ["energy"]),
        ("banking_app", ["banking_app"]),
        ("accounting_software", ["accounting_", "software"]),
        ("Cork-university-hospital", ["Cork-university-", "hospital"]),
        ("probe, all data, own prior", ["probe, all data,", "own prior"]),
        ("north_west_regional_hospital_trust", ["north_west_", "regional_…"]),
    ],
)
def test_a_long_name_beside_an_axis_breaks_between_its_words(name: str, lines: list[str]) -> None:
    assert wrapped(name).split("\n") == lines
