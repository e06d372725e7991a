"""The terminal's tables of a comparison."""

from __future__ import annotations

import io

from rich.console import Console
from studies import SENT, make_comparison

from trifed.reports.comparison.report import render_comparison


def shown(width: int) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(render_comparison(make_comparison()))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_no_number_is_cut_in_eighty_columns():
    text = shown(80)
    assert not [line for line in text.splitlines() if "…" in line and "│" in line]
    for number in ("85.0", "82.0 to 88.0", "313.6 KB", "3.3 KB"):
        assert number in text, f"{number} of {SENT}"


def test_wide_terminals_show_accuracy_and_bytes_side_by_side():
    assert any("85.0" in line and "313.6 KB" in line for line in shown(160).splitlines())
    assert not any("85.0" in line and "313.6 KB" in line for line in shown(80).splitlines())
