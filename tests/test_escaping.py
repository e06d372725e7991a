"""Labels, names and error texts are data: nothing that shows them interprets them."""

from __future__ import annotations

import csv
import io
import json
import re
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown import markdown
from rich.table import Table

from trifed.cli.app import main
from trifed.cli.flower_tables import render_releases, render_status
from trifed.common.console import PlainConsole
from trifed.common.errors import one_line
from trifed.common.text import csv_row, markdown_code, markdown_text, printable
from trifed.deployment.checkpoint import ClientStatus, RunStatus
from trifed.deployment.release_log import Release
from trifed.export.export import export_client
from trifed.export.inference_inputs import InferenceInput
from trifed.export.predict import Prediction, write_csv
from trifed.federation.events import line_of
from trifed.reports.tables import write_csv as table_csv

SEQUENCES = "\x1b[2J\x1b]0;title\x07\x9b31m\u202e\x00\x7f"
HOSTILE = f"[bold]a[/bold] :smile: {SEQUENCES}\r\nb\nfinished"


def is_plain(text: str) -> bool:
    return not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", text)


def shown(renderable: object) -> str:
    console = PlainConsole()
    console._width = 200
    with console.capture() as captured:
        console.print(renderable)
    return captured.get()


@given(st.text())
def test_one_line_is_one_line_and_leaves_printable_text(text):
    line = one_line(text)
    assert is_plain(line) and "\n" not in line
    assert one_line(line) == line and (line == text or not text.isprintable())


@pytest.mark.parametrize("terminal", [False, True])
def test_the_console_interprets_nothing(terminal):
    console = PlainConsole()
    console._force_terminal = terminal
    table = Table(title=HOSTILE)
    table.add_column(HOSTILE)
    table.add_row(HOSTILE)
    with console.capture() as captured:
        console.print(HOSTILE, highlight=False)
    assert captured.get().startswith("[bold]a[/bold] :smile: [2J")
    assert is_plain(captured.get())
    assert "\x07" not in shown(table) and "\x1b" not in shown(table) and "[bold]a[/bold]" in shown(table)


def test_tables_of_flower_have_no_escape_sequences():
    client = ClientStatus(HOSTILE, 3, 1, 0, 10, HOSTILE, 0.5)
    text = shown(render_status(RunStatus(1, 2, False, [client], [HOSTILE]), sealed=True))
    assert is_plain(text) and "[bold]a[/bold]" in text
    release = Release(HOSTILE, HOSTILE, 1, HOSTILE, {HOSTILE: HOSTILE}, {}, HOSTILE)
    assert is_plain(shown(render_releases([release])))


@pytest.mark.parametrize("name", ["refused", "joined", "warned", "left out", "started", "withdrawn"])
def test_an_event_is_one_line(name):
    keys = ("client", "reason", "text", "method", "round")
    line = line_of({"event": name, **dict.fromkeys(keys, HOSTILE)})
    assert is_plain(line) and "\n" not in line and "[bold]a" in line


def test_an_error_has_no_escape_sequences(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(sys, "argv", ["trifed", "report", str(tmp_path / "a\x1b[2Jb")])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "a[2Jb" in capsys.readouterr().err


FORMULAS = ["=1+1", "+1", "-1+cmd|' /C calc'!A0", "@SUM(A1)", "\t=1", "\r=1", '=HYPERLINK("x","y")']
NORMAL = ["a", "'a", " =1", "a=b", "", "5", "a\n=b", 'say "no"', "ä,ö"]


@pytest.mark.parametrize("text", FORMULAS + NORMAL)
def test_a_spreadsheet_finds_no_formula_in_predictions(text):
    file = io.StringIO(newline="")
    item = InferenceInput(1, text, text)
    write_csv([Prediction(item, [(text, 0.5)])], file)
    file.seek(0)
    (row,) = csv.DictReader(file)
    for column in ("text", "pair", "label"):
        assert row[column] == (text if text in NORMAL else "'" + text.replace("\r", "\n"))
    (row,) = csv.DictReader(
        io.StringIO(table_csv([{"client": text, "loss": -0.5}], ["client", "loss"]), newline="")
    )
    assert row == {"client": text if text in NORMAL else "'" + text.replace("\r", "\n"), "loss": "-0.5"}


def test_numbers_are_no_formulas():
    assert csv_row({"a": -1.5, "b": None, "c": -2}) == {"a": -1.5, "b": None, "c": -2}


TAGS = [
    "<script>x</script>", "[a](javascript:x)", "![a](http://x/y.png)", "&lt;b&gt;", "a|b", "`x`<b>`", "*a* _b_",
    "a\n# b\n\n- c", "<!-- -->", "\\<b>",
]  # fmt: skip


@pytest.mark.parametrize("text", TAGS)
def test_markdown_shows_a_text_as_it_is(text):
    html = markdown(f"label: {markdown_text(text)}")
    assert re.findall("<[^>]+>", html) == ["<p>", "</p>"]
    html = markdown(f"label: {markdown_code(text)}", extensions=["tables"])
    assert re.findall("<[^>]+>", html) == ["<p>", "<code>", "</code>", "</p>"]


def test_labels_stand_in_a_model_card_as_they_are(finished, tmp_path, tmp_path_factory):
    import shutil

    run = shutil.copytree(finished("local").path, tmp_path / "run")
    facts = run / "clients" / "amber" / "classifier.json"
    labels = ["<img src=x onerror=y>", "a | b\n\n## c", "![](http://x/y.png)"]
    facts.write_text(json.dumps(json.loads(facts.read_text()) | {"labels": labels}))
    card = (export_client(run, "amber", "lora", tmp_path / "out") / "README.md").read_text()
    html = markdown(card, extensions=["tables", "fenced_code"])
    assert "<img" not in html and "<h2>c" not in html
    (row,) = (line for line in card.splitlines() if line.startswith("| labels"))
    assert row.replace("\\|", "").count("|") == 3


def test_printable_keeps_lines():
    assert printable("a\n\tb\x1b[0m") == "a\n\tb[0m"
