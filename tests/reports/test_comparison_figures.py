"""Figures and tables of comparisons for Python."""

from __future__ import annotations

from pathlib import Path

from studies import make_comparison

from trifed.experiments.compare import ComparisonResult
from trifed.reports.comparison.report import comparison_document, figures_of
from trifed.reports.results import Source, Study


def test_figures_of_several_partitions_are_told_apart():
    drawn = figures_of(
        comparison_document(Source(Path(), "comparison", Study.model_validate(make_comparison(("a", "b"))), {}))
    )
    assert {"a: Accuracy over rounds", "b: Accuracy over rounds"} <= set(drawn)


def test_a_comparison_without_a_result_has_empty_tables(tmp_path):
    data = make_comparison() | {"results": {}, "tuning": {}, "finished": False}
    result = ComparisonResult(tmp_path, data)
    assert result.table().empty and result.differences().empty and result.figures() == {}
