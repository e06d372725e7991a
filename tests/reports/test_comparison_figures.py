"""Figures and tables of comparisons for Python."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from studies import make_comparison

from trifed.experiments.compare import ComparisonResult
from trifed.reports.comparison.report import comparison_document, figures_of
from trifed.reports.results import Details, Source, Study


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
