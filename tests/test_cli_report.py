"""`trifed report` as a user calls it."""

from __future__ import annotations

import json

import pytest

from test_cli_help import call, finished_run, tree


@pytest.fixture(scope="module")
def folder(toy_values, tmp_path_factory):
    """A finished run with a baseline; tests may add reports to it."""
    return finished_run(toy_values(rounds=2, baselines=["local"]), tmp_path_factory.mktemp("cli") / "toy")


@pytest.fixture
def report(capsys, monkeypatch):
    """`report(ARGS)`: `trifed report ARGS`."""
    monkeypatch.setenv("COLUMNS", "80")
    return lambda *args: call(capsys, monkeypatch, "report", *args)


def test_help_has_an_example_and_fits(report):
    said = report("--help")
    assert said.code == 0
    assert "trifed report runs/demo" in said.out
    assert max(map(len, said.out.splitlines())) <= 80


def test_a_page_beside_the_run(report, folder):
    said = report(folder)
    assert said.code == 0
    assert said.out == f"The report is {folder / 'report.html'}\n"
    assert "reading own-prior" in said.err
    assert "drawing" in said.err
    assert (folder / "report.html").read_text(encoding="utf-8").startswith("<!doctype html>")


def test_another_format_elsewhere(report, folder, tmp_path):
    assert report(folder, "--out", tmp_path / "r.md").code == 0
    assert report(folder, "--format", "json", "--out", tmp_path / "r").code == 0
    assert (tmp_path / "r.md").read_text(encoding="utf-8").startswith("# toy\n")
    assert json.loads((tmp_path / "r").read_text(encoding="utf-8"))["name"] == "toy"


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["nowhere"], "nowhere: no such folder"),
        (["FOLDER", "--format", "pdf"], "format: got 'pdf', expected one of html, md, json, csv"),
        (["FOLDER", "--out", "no/such/r.html"], "does not exist"),
    ],
)
def test_a_mistake_is_one_message_and_leaves_nothing(report, folder, tmp_path, monkeypatch, args, says):
    monkeypatch.chdir(tmp_path)
    before = tree(folder)
    said = report(*(folder if arg == "FOLDER" else arg for arg in args))
    assert said.code == 2
    assert says in said.err
    assert "Traceback" not in said.err
    assert tree(folder) == before
    assert tree(tmp_path) == set()
