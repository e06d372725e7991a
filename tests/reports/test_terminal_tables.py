"""Names of methods and clients, and numbers, in terminals of ordinary width and narrower ones."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from studies import make_comparison

from trifed.federation.cost import estimate_cost
from trifed.methods import METHODS
from trifed.reports.comparison.report import render_comparison, render_result
from trifed.reports.cost import render_cost
from trifed.reports.results import Source, Study
from trifed.reports.tables import NAME, Column, Table
from trifed.reports.terminal import to_terminal

ALL = [name for name in METHODS if name != "local"]
CLIENTS = ["banking_app", "furniture_shop", "hotel", "site-of-the-north", "transit"]


def shown(renderable, width):
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(renderable)
    return console.file.getvalue()


def comparison(methods):
    values = make_comparison(means={name: 0.8 - place / 100 for place, name in enumerate(methods)})
    for found in values["results"].values():
        found["clients"] = CLIENTS
        for place, one in enumerate(found["methods"].values()):
            one["seeds"] = [0, 1][: 1 + place % 2]  # so that there is a column of seeds
    return values


def names_in(text):
    """All words of a text and of the cells of its tables."""
    return {word for line in text.splitlines() for word in line.replace("│", " ").replace("┃", " ").split()}


@pytest.mark.parametrize("width", [60, 80, 100])
def test_every_method_of_a_comparison_stands_unbroken(width):
    values = comparison(["local", *ALL])
    text = shown(render_comparison(values), width)
    assert max(map(len, text.splitlines())) <= width and "…" not in text
    assert set(METHODS) <= names_in(text)
    for line in text.splitlines():
        if line.startswith("│") and " minus " in line:  # a difference has both names in its first cell
            assert set(line.split("│")[1].split()) <= {*METHODS, "minus"}
    found = values["results"]["intents-0.5"]["methods"][ALL[0]]
    assert f"{100 * found['mean']:.1f}" in text and f"{100 * found['best']:.1f}" in text


@pytest.mark.parametrize("width", [60, 80, 100])
def test_every_method_and_client_of_a_run_stands_unbroken(width, tmp_path):
    methods = ["own-prior", "alone", "local", "fedavg-lora", "own-prior-lora", "fedprox-lora"]
    study = Study.model_validate({**comparison(methods), "seeds": [0]})
    text = shown(render_result(Source(tmp_path, "run", study, {})), width)
    assert max(map(len, text.splitlines())) <= width and "…" not in text
    assert {*methods, *CLIENTS} <= names_in(text)


@pytest.mark.parametrize("width", [80, 100])
def test_every_method_stands_unbroken_in_the_table_of_costs(width):
    text = shown(render_cost(estimate_cost("roberta-base", labels=77)), width)
    table = text.partition(" weights; ")[0]
    assert set(METHODS) <= names_in(table) and max(map(len, table.splitlines())) <= width


def test_a_table_is_divided_only_if_folding_is_not_enough():
    names = Column("name", "name", NAME)
    numbers = [Column(f"n{place}", f"number {place} of all", "count") for place in range(6)]
    row = {"name": "own-prior-lora", **{column.key: 10_000 for column in numbers}}
    table = to_terminal(Table("Numbers", [names, *numbers], [row]))
    for width, times in ((200, 1), (80, 1), (60, 1), (50, 3), (30, 6)):
        text = shown(table, width)
        assert text.count("own-prior-lora") == times, text
        assert text.count("10,000") == 6 and text.count("Numbers") == 1
        assert ("│" in text) == (width != 60)  # without lines before it is divided
        assert max(map(len, text.splitlines())) <= width


def test_a_name_that_is_longer_than_half_the_terminal_folds():
    long = "a-method-of-mine-" * 4
    table = Table("", [Column("name", "name", NAME), Column("n", "n", "count")], [{"name": long, "n": 12_345}])
    text = shown(to_terminal(table), 40)
    assert "12,345" in text and long not in text
    assert "".join(line.split("│")[1].strip() for line in text.splitlines() if line.startswith("│")) == long
