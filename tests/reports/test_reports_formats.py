"""The page as text, Markdown, JSON and CSV: they show the same."""

from __future__ import annotations

import csv
import html
import json
import re
from collections import Counter
from functools import cache
from xml.etree import ElementTree

import numpy as np
import pytest
from studies import make_comparison, write_comparison

import trifed
from trifed.common.errors import RunError
from trifed.common.text import markdown_text
from trifed.experiments.compare import ComparisonResult
from trifed.reports.comparison.sections import cluster_order

SVG = "{http://www.w3.org/2000/svg}"


def figures(page):
    return [ElementTree.fromstring(found) for found in re.findall(r"<svg.*?</svg>", page, re.S)]


@pytest.fixture(params=["run", "broken off", "comparison", "real comparison"])
def folder(request, run_folder, broken_off, comparison, real_comparison):
    """Each kind of folder that a report is made of."""
    made = {"run": run_folder, "broken off": broken_off, "comparison": comparison}
    return {**made, "real comparison": real_comparison}[request.param]


@pytest.fixture(scope="module")
def write(tmp_path_factory):
    """`write(folder, "md")`: the text of a report, made once for all tests."""
    target = tmp_path_factory.mktemp("written")

    @cache
    def text(folder, form):
        return trifed.report(folder, target / f"out.{form}").read_text(encoding="utf-8")

    return text


def test_the_page_refers_to_nothing_outside_itself(folder, write):
    page = write(folder, "html")
    assert "<script" not in page
    for address in re.findall(r"""(?:src|href)=["']([^"']*)|url\(([^)]*)\)""", page):
        assert "".join(address).startswith(("#", "data:,")), address


def test_every_figure_says_what_it_shows_and_has_its_numbers(folder, write):
    page = write(folder, "html")
    drawn = figures(page)
    assert drawn
    for figure in drawn:
        assert figure.get("role") == "img"
        assert len(figure.get("aria-label")) > 30
        assert figure[0].tag == f"{SVG}title"
        assert figure[0].text == figure.get("aria-label")
    assert len(re.findall(r"<figure>.*?<details>.*?<table>.*?</figure>", page, re.S)) == len(drawn)


def test_no_id_is_used_twice(folder, write):
    page = write(folder, "html")
    ids = Counter(re.findall(r'\bid="([^"]+)"', page))
    assert max(ids.values()) == 1
    for target in re.findall(r'(?:href="|url\()#([^")]+)', page):
        assert target in ids


def test_figures_take_their_colours_from_the_page(folder, write):
    page = write(folder, "html")
    for figure in re.findall(r"<svg.*?</svg>", page, re.S):
        assert "var(--ink)" in figure
        assert "#a1b" not in figure
    assert "var(--series-0)" in page
    assert page.count("--series-0:") == 3  # light, dark, print


def test_no_label_shows_a_drawing_program_s_markup(comparison, run_folder, write):
    for folder in (comparison, run_folder):
        for figure in figures(write(folder, "html")):
            assert "$" not in "".join(figure.itertext())
            assert "\\math" not in "".join(figure.itertext())


def test_names_cannot_break_the_page(tmp_path, write):
    values = make_comparison()
    nasty = ["<script>alert(1)</script>", "$5 | _shop_", "会社 🏥", '"quoted"', "a" * 90]
    values["results"]["intents-0.5"]["clients"] = nasty
    folder = write_comparison(tmp_path / "c", values)
    page = write(folder, "html")
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert any("$5 | _shop_" in "".join(figure.itertext()) for figure in figures(page))
    table = next(part for part in write(folder, "md").split("\n### ") if part.startswith("Test accuracy of each"))
    rows = [line for line in table.splitlines() if line.startswith("|")]
    assert {len(re.split(r"(?<!\\)\|", row)) for row in rows} == {len(re.split(r"(?<!\\)\|", rows[0]))}
    assert r"$5 \| \_shop\_" in table


def test_all_formats_hold_the_same_tables(folder, write):
    found = json.loads(write(folder, "json"))
    page, text = write(folder, "html"), write(folder, "md")
    for section in found["sections"]:
        for table in section["tables"]:
            assert table["title"] in page
            assert f"### {table['title']}".replace("_", r"\_") in text
            assert table["rows"]
    for sentence in (found["headline"], found["recommendation"]):
        assert sentence in html.unescape(re.sub("<[^>]*>", "", page))
        assert markdown_text(sentence) in text


def test_json_has_the_raw_numbers(run_folder, write):
    found = json.loads(write(run_folder, "json"))
    summary = json.loads((run_folder / "summary.json").read_text())
    row = found["main"][0]
    assert (row["method"], row["mean"], row["total_bytes"]) == (
        "ce-lora", summary["accuracy"]["mean"], summary["bytes"]["total"],
    )  # fmt: skip
    titles = [table["title"] for section in found["sections"] for table in section["tables"]]
    for title in (
        "What one client sends and receives", "Accuracy over rounds", "Accuracy against bytes sent",
        "Worst and best client", "Test accuracy of each client, %", "The split: clients and labels",
        "Similarity of data, ce-lora, round 3", "Similarity of models, ce-lora, round 3",
        "Weights of the average, ce-lora, round 3", "Bytes by tensor, ce-lora", "Configuration",
        "Versions and hardware",
    ):  # fmt: skip
        assert title in titles


def test_csv_is_the_main_table(comparison, write):
    rows = list(csv.DictReader(write(comparison, "csv").splitlines()))
    values = json.loads((comparison / "comparison.json").read_text())
    assert len(rows) == 2 * (3 + 4)
    for row in rows[:3]:
        known = values["results"][row["partition"]]["methods"][row["method"]]
        assert [float(row["interval_low"]), float(row["interval_high"])] == known["interval"]
        assert float(row["mean"]) == known["mean"]
        assert float(row["up_per_round"]) == known["bytes"]["up_per_round"]
    assert rows[3]["total_bytes"] == ""


def test_a_broken_off_run_says_what_is_missing_and_how_to_go_on(broken_off, write):
    for form in ("html", "md"):
        text = write(broken_off, form)
        assert re.search(r"ce-lora: .*round 2", text)
        assert "local: not started" in text
        assert f"trifed run --resume {broken_off}" in text
    assert json.loads(write(broken_off, "json"))["advice"] == "finish"


def test_a_comparison_without_any_result_yet_makes_a_page(tmp_path, write):
    values = make_comparison()
    values.update(results={}, tuning={}, finished=False)
    values["missing"] = [{"partition": "intents-0.5", "method": "local", "seed": 0, "state": "not started"}]
    page = write(write_comparison(tmp_path / "c", values), "html")
    assert "No test accuracy yet." in page
    assert re.search(r"intents-0\.5, .*: local \(seed 0\)", page)
    values["missing"] = [
        {"partition": "intents-0.5", "method": method, "seed": seed, "state": "not started"}
        for method in values["methods"]
        for seed in values["seeds"]
    ]
    page = write(write_comparison(tmp_path / "none", values), "html")
    assert "intents-0.5, not started" in page


def test_the_same_folder_gives_the_same_page(run_folder, write, tmp_path):
    again = trifed.report(run_folder, tmp_path / "again.html").read_text(encoding="utf-8")
    assert again == write(run_folder, "html")


def test_a_notebook_shows_the_result_in_short(run_folder):
    result = trifed.load_result(run_folder)
    fragment = result._repr_html_()
    assert "<strong>" in fragment
    assert "ce-lora" in fragment
    assert "<svg" not in fragment
    assert len(fragment) < 10_000


def test_a_notebook_shows_a_comparison_too(real_comparison):
    written = json.loads((real_comparison / "comparison.json").read_text())
    fragment = ComparisonResult(real_comparison, written)._repr_html_()
    assert "0.0 points" in fragment
    assert "ce-lora" in fragment


def test_the_report_lies_in_the_folder_unless_told_otherwise(own_run, tmp_path):
    assert trifed.report(own_run) == own_run / "report.html"
    assert trifed.report(own_run, format="md") == own_run / "report.md"
    assert trifed.report(own_run, tmp_path / "r.csv").read_text().startswith("partition,")
    assert trifed.report(own_run, tmp_path / "r.txt", "json").read_text().startswith("{")


@pytest.mark.parametrize(
    ("out", "form", "says"),
    [
        ("r.pdf", None, "got 'pdf', expected one of html, md, json, csv"),
        (None, "word", "format: got 'word'"),
        ("no/such/r.html", None, "a folder that does not exist"),
        (".", "html", "is a folder"),
    ],
)
def test_nowhere_to_write_is_said_at_once(run_folder, tmp_path, out, form, says):
    before = set(run_folder.rglob("*"))
    with pytest.raises(RunError, match=re.escape(says)):
        trifed.report(run_folder, None if out is None else tmp_path / out, form)
    assert list(tmp_path.iterdir()) == []
    assert set(run_folder.rglob("*")) == before


def test_alike_clients_are_neighbours():
    groups = np.array([0, 1, 0, 1, 0, 1])
    similarity = np.where(groups[:, None] == groups, 0.9, 0.1)
    np.fill_diagonal(similarity, 1.0)
    order = cluster_order({"similarity_data": similarity, "weights": np.eye(6)})
    assert sorted(order) == list(range(6))
    assert np.abs(np.diff(groups[order])).sum() == 1
