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


def test_bytes_stand_beside_those_of_plain_lora_with_as_many_bits():
    values = make_comparison()
    found = values["results"]["intents-0.5"]["methods"]["ce-lora"]
    assert not any("same bits" in line for line in shown(160).splitlines())
    found["bytes"] |= {"bits": 1, "fedavg_lora_would_send": 1_712_000}
    console = Console(file=io.StringIO(), width=80, color_system=None)
    console.print(render_comparison(values))
    lines = console.file.getvalue().splitlines()
    assert any("sent in all" in line and "same bits" in line for line in lines)
    assert any("ce-lora" in line and "533.0 KB" in line and "1.7 MB" in line for line in lines)


def test_unequal_seeds_and_runs_under_way_are_named():
    values = make_comparison()
    found = values["results"]["intents-0.5"]
    for method, seeds in (("local", [0]), ("ce-lora", [0, 1]), ("fedavg-lora", [0, 1])):
        found["methods"][method]["seeds"] = seeds
    found["differences"]["local minus ce-lora"]["seeds"] = [0]
    values["missing"] = [
        {"partition": "intents-0.5", "method": "local", "seed": 1, "state": "running in round 3 of 16"}
    ]
    console = Console(file=io.StringIO(), width=100, color_system=None)
    console.print(render_comparison(values))
    lines = console.file.getvalue().splitlines()
    row = next(line for line in lines if line.startswith("│ local ") and "74.0" in line)
    assert row.split("│")[-2].strip() == "1"
    assert any("local minus ce-lora" in line and line.split("│")[-2].strip() == "1" for line in lines)
    assert any("local · seed 1: running in round 3 of 16" in line for line in lines)
    assert not any("seeds of both" in line for line in shown(100).splitlines())
