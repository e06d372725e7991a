"""The audits of benchmarks/privacy: each is a valid run, and a sealed one becomes the table of sums."""

import json
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pandas as pd
import pytest

from trifed import make_config
from trifed.common.dict_merge import deep_merge
from trifed.reports.audit.findings import read_findings

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def script(monkeypatch):
    """`script("audit")`: that script of benchmarks/privacy."""
    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks"))
    return lambda name: import_module("figures").script(f"privacy/{name}.py")


@pytest.fixture
def data(toy_table, tmp_path):
    """A folder of public data sets, each with the toy rows."""
    rows = pd.read_csv(toy_table)[["text", "label"]]
    for name, columns in (("banking77", {}), ("glue_sst2", {"text": "sentence"}), ("cifar10", {"text": "img"})):
        (tmp_path / "data" / name).mkdir(parents=True)
        rows.rename(columns=columns).to_parquet(tmp_path / "data" / name / "train.parquet")
    return tmp_path / "data"


def test_every_audit_is_of_a_valid_run(script, data, tmp_path, monkeypatch):
    audit = script("audit")
    monkeypatch.setattr(audit, "ROWS", dict.fromkeys(audit.ROWS, 100))
    for name, (source, _, plan) in audit.AUDITS.items():
        values = json.loads(audit.settings(name, data, tmp_path, tmp_path / "work").read_text())
        config = make_config(values)
        own = source == "tickets"
        table = (pd.read_csv if own else pd.read_parquet)(values["data"]["source"])
        assert len(table) == (850 if own else 100) and ("image" if source == "cifar10" else "text") in table
        sealed = name.startswith("sealed-")
        assert config.sealing.on is sealed
        if sealed:
            assert config.data.clients.count == config.sealing.at_least == plan.clients == 3
            assert not plan.controls  # they are not sealed
            assert name.removeprefix("sealed-") == source


def rows_of(lines):
    """The cells of a table of sums by view and by what is seen of a round."""
    _, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {(view, sees): cells for _, view, sees, *cells in rows}


@pytest.mark.slow
def test_a_sealed_audit_becomes_a_table_of_sums(script, data, tiny_encoder, tmp_path, monkeypatch):
    """A tiny model in place of MiniLM, one round, and two batch sizes."""
    audit, tables = script("audit"), script("tables")
    name = "sealed-banking77"
    source, values, plan = audit.AUDITS[name]
    small = {"model": {"name": str(tiny_encoder), "max_length": 32}, "training": {"steps": 2}}
    few = replace(plan, rounds=1, batches=(1, 2), trials=2, matched=1, iterations=3, members=8)
    monkeypatch.setitem(audit.AUDITS, name, (source, deep_merge(values, small), few))
    monkeypatch.setitem(audit.ROWS, source, 100)
    monkeypatch.setattr(audit, "HERE", tmp_path)
    said = audit.one(name, audit.settings(name, data, None, tmp_path / "work"), tmp_path / "work")
    found = read_findings(tmp_path / "results" / f"{name}.json")
    assert said.startswith(f"{name}: ") and found.finished and found.sealed and found.controls == []
    assert found.configuration["data"]["source"] == "banking77/train.parquet"
    assert not [row for row in found.reconstruction if row.attempts]
    cells = rows_of(tables.sums({name: found}))
    assert set(cells) == {(view, sees) for view in ("single", "sum", "others") for sees in ("update", "gradient")}
    assert all(len(row) == 2 and all("; guess " in cell for cell in row) for row in cells.values())


@pytest.mark.parametrize("name", ["sealed-banking77", "sealed-sst2", "sealed-cifar10"])
def test_what_the_page_says_of_sums_of_three_is_in_the_record(script, name):
    """Bold is what lies above a guess: of sums nothing, and of a sum of two only gradients of single texts."""
    tables = script("tables")
    found = read_findings(tables.RESULTS / f"{name}.json")
    assert found.finished and found.sealed
    assert {row.clients for row in found.reconstruction if row.view == "sum"} == {3}
    assert sorted({row.batch for row in found.reconstruction}) == [1, 2, 4, 8, 16]
    cells = rows_of(tables.sums({name: found}))
    above = {place: [cell for cell in row if "**" in cell] for place, row in cells.items()}
    assert above["sum", "update"] == above["sum", "gradient"] == above["others", "update"] == []
    single = cells["others", "gradient"][0]  # batches of one text
    assert above["others", "gradient"] == ([single] if name == "sealed-banking77" else [])
    if found.kind == "text":
        mean, guess = (part.split(" (")[0].strip("*") for part in single.split("; guess "))
        page = (REPOSITORY / "benchmarks" / "privacy" / "README.md").read_text(encoding="utf-8")
        assert f"({mean} against {guess})" in page.replace("\n", " ")
    page = (REPOSITORY / "docs" / "secure-aggregation.md").read_text(encoding="utf-8")
    assert "From sums of three clients no text was recovered" in page


OTHERWISE = {
    "default": "banking77", "rank 8": "rank-8", "rank 16": "rank-16", "rank 64": "rank-64",
    "1 step a round": "steps-1", "32 steps a round": "steps-32", "32 bits a number": "bits-32",
    "learning rate 0.005": "rate-0.005", "round 1": "round-1",
    "round 10": "round-10", "`privacy.summary`, ε = 4": "summary-epsilon-4",
}  # fmt: skip
"""Rows of the table of other settings, and their records."""


def test_the_table_of_other_settings_follows_from_the_records(script):
    """`benchmarks/pages.py` has the tables that compare methods."""
    tables = script("tables")
    found = {label: read_findings(tables.RESULTS / f"{name}.json") for label, name in OTHERWISE.items()}
    whole = found["default"]  # the only one with other methods beside it
    own = [row for row in whole.reconstruction if row.method not in whole.controls]
    found["default"] = whole.model_copy(update={"reconstruction": own})
    cells = {}
    for line in list(tables.sweep(found))[2:]:
        label, *gradient, _, _, _, auc, _ = [cell.strip() for cell in line.strip("|").split("|")]
        cells[label] = [*gradient, auc]
    page = (REPOSITORY / "docs" / "what-was-recovered.md").read_text(encoding="utf-8").splitlines()
    for label in OTHERWISE:
        (row,) = [line for line in page if line.startswith(f"| {label} |")]
        _, *shown = row.strip("| ").split(" | ")
        pairs = zip(shown, cells["default"], strict=True)
        assert [plain if cell == "the same" else cell for cell, plain in pairs] == cells[label]


def test_the_audit_of_the_first_run_is_told_as_it_is(script):
    """The numbers of two pages, for one upload and for the sum of all sites."""
    found = read_findings(script("tables").RESULTS / "first-run.json")
    auc = {(row.view, row.over): row.auc for row in found.membership if row.source == "update"}
    plain, details = (
        (REPOSITORY / page).read_text(encoding="utf-8")
        for page in ("docs/privacy-in-plain-words.md", "benchmarks/privacy/README.md")
    )
    one, two, summed = auc["single", "round"], auc["single", "mean"], auc["sum", "round"]
    for text in (
        f"[{one.mean:.2f} from one upload]",
        f"{two.mean:.2f} from those of two",
        f"{summed.mean:.2f} from a sum of",
    ):
        assert text in plain
    others = auc["others", "round"]
    for each in (one, two, summed, others):
        assert f"{each.mean:.2f} ({each.low:.2f} to {each.high:.2f})" in details.replace("\n", " ")
