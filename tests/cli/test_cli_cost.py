"""`trifed cost`: what it prints in each format, what it draws, and what it refuses with one message."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable

import pytest

from test_cli_help import call, tree
from trifed.federation import cost as counting
from trifed.methods import METHODS


@pytest.fixture(scope="module")
def counted_once() -> Callable[..., counting.Cost]:
    """`estimate_cost`, which counts the same methods on the same model once: all of them take seconds."""
    count, known = counting.estimate_cost, {}

    def counted(*args: object, **kwargs: object) -> counting.Cost:
        key = repr((args, kwargs, list(counting.METHODS)))
        if key not in known:
            known[key] = count(*args, **kwargs)
        return known[key]

    return counted


@pytest.fixture
def cost(capsys, monkeypatch, tmp_path, counted_once):
    """`cost(ARGS)`: `trifed cost ARGS` in an empty folder, 80 columns wide."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(counting, "estimate_cost", counted_once)
    return lambda *args: call(capsys, monkeypatch, "cost", *args)


def test_the_table_fits_a_terminal(cost):
    said = cost("llama-7b")
    lines = said.out.splitlines()
    assert said.code == 0
    assert max(map(len, lines)) <= 80
    for name in METHODS:
        assert sum(line.split()[:1] == [name] for line in lines) == 1
    assert "…" not in said.out
    row = next(line for line in lines if line.startswith("ce-lora "))
    assert row.split() == ["ce-lora", "A", "B", "C", "C", "4,096", "0", "16.6", "KB", "≤", "2.2", "KB", "1,024×"]
    for fact in ("6,738,415,616 weights", "64 adapted layers", "q_proj, v_proj", "rank 8"):
        assert fact in said.out
    assert "528 a component" in " ".join(said.out.split())


def test_json_holds_all_of_it(cost):
    found = json.loads(cost("roberta-base", "--labels", 3, "--rank", 4, "--format", "json").out)
    assert (found["rank"], found["layers"], found["labels"], found["features"]) == (4, 24, 3, 768)
    by_name = {item["method"]: item for item in found["methods"]}
    assert set(by_name) == set(METHODS)
    assert by_name["ce-lora"]["sent_values"] == 24 * 16
    assert by_name["fedavg-lora"]["head_values"] == 3 * 768 + 3


@pytest.mark.parametrize(("examples", "components"), [(10, 0), (40, 2), (1000, 6)])
def test_the_examples_of_a_client_limit_its_summary(cost, monkeypatch, examples, components):
    monkeypatch.setattr(counting, "METHODS", {"ce-lora": METHODS["ce-lora"]})
    found = json.loads(cost("vit-base", "--examples", examples, "--format", "json").out)
    (once,) = found["methods"][0]["once"]
    assert (once["up"], once["at_most"]) == (8 + 2 * 16 + components * 528, True)


def test_csv_has_a_line_a_method(cost):
    rows = list(csv.DictReader(io.StringIO(cost("roberta-base", "--format", "csv").out)))
    assert [row["method"] for row in rows] == list(METHODS)
    row = next(row for row in rows if row["method"] == "ce-lora")
    assert (row["sends"], row["bytes_up"], row["once_up"], row["adapter"]) == ("C", "6144", "2680", "tri-matrix")
    assert next(row for row in rows if row["method"] == "local")["times_fewer"] == ""


def test_markdown_is_one_table(cost):
    lines = [line for line in cost("roberta-base", "--format", "md").out.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + len(METHODS)
    assert len({line.count("|") for line in lines}) == 1


def test_targets_with_commas(cost, monkeypatch):
    monkeypatch.setattr(counting, "METHODS", {"ce-lora": METHODS["ce-lora"]})
    found = json.loads(cost("roberta-base", "--target-modules", "query, key,value", "--format", "json").out)
    assert (found["layers"], found["targets"]) == (36, ["query", "key", "value"])


@pytest.mark.parametrize(("name", "start"), [("c.png", b"\x89PNG"), ("c.svg", b"<?xml"), ("c.pdf", b"%PDF")])
def test_the_picture(cost, tmp_path, name, start):
    said = cost("roberta-base", "--plot", name)
    assert said.code == 0
    assert (tmp_path / name).read_bytes().startswith(start)
    assert name in said.err


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["roberta-bse"], ["did you mean 'roberta-base'?"]),
        (["roberta-base", "--rank", "0"], ["--rank"]),
        (["roberta-base", "--rank", "800"], ["adapter.rank", "800", "at most 768"]),
        (["roberta-base", "--target-modules", "foo"], ["adapter.target_modules", "'foo'"]),
        (["roberta-base", "--target-modules", ","], ["empty list"]),
        (["roberta-base", "--labels", "-1"], ["--labels"]),
        (["roberta-base", "--format", "xml"], ["--format", "'table'"]),
        (["roberta-base", "--plot", "c.doc"], ["c.doc", ".png"]),
        (["roberta-base", "--plot", "no/c.png"], ["no folder 'no'"]),
        (["."], ["config.json"]),
    ],
    ids=lambda value: " ".join(map(str, value))[:40],
)
def test_what_is_refused(cost, tmp_path, args, words):
    said = cost(*args)
    assert said.code == 2
    assert "Traceback" not in said.err
    assert said.out == ""
    assert not tree(tmp_path)
    for word in words:
        assert word in said.err


def test_the_help_names_every_shape(cost):
    from trifed.tasks.shapes import SHAPES

    text = " ".join(cost("--help").out.split())
    assert "Example" in text and "trifed cost roberta-base" in text
    assert max(map(len, cost("--help").out.splitlines())) <= 80
    for name in SHAPES:
        assert name in text
