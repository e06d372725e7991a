"""The page of an audit: what is on it, that nothing breaks it or is fetched, and `trifed report` on it."""

from __future__ import annotations

import csv
import io
import json
import re
import sys
from functools import partial
from pathlib import Path

import pytest
from audits import CURVE, TEXTS, image_findings, member, picture, sure, text_findings, text_row
from rich.console import Console
from studies import make_comparison, write_comparison

import trifed
from trifed.cli import app as cli
from trifed.common.errors import RunError
from trifed.reports.audit.cards import closeness, picture_pair, text_pair
from trifed.reports.audit.findings import Attempt, Claim, Findings, Means
from trifed.reports.audit.plots import Curves, Line, draw
from trifed.reports.audit.report import audit_lines, audit_page
from trifed.reports.audit.verdict import advice
from trifed.reports.figures import draw_figure
from trifed.reports.read import silent

NASTY = '<script>alert("1")</script> & co'


def page(findings: Findings) -> str:
    return audit_page(findings, silent)


def write(folder: Path, findings: Findings) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "audit.json").write_text(findings.model_dump_json(), encoding="utf-8")
    return folder


def titles(text: str) -> list[str]:
    return re.findall(r"<h4>(.*?)</h4>", text)


@pytest.fixture(scope="module")
def text() -> str:
    return page(text_findings())


def test_the_audited_method_comes_first_and_the_guesser_last(text):
    assert titles(text) == [
        "ce-lora, span attack", "ce-lora, matching attack", "fedavg-full, span attack", "fedavg-lora, span attack",
        "guesser",
    ]  # fmt: skip
    table = text[text.index("<h3>At its worst") : text.index("<h3>Was an example")]
    rows = re.findall(r'<th scope="row">(.*?)</th>', table[: table.index("</table>")])
    assert rows == ["ce-lora"] * 4 + ["fedavg-full", "fedavg-lora", "guesser"]
    better = text_findings(dict.fromkeys((1, 2, 4, 8, 16), 0.1))
    assert titles(page(better))[:2] == ["ce-lora, span attack", "ce-lora, matching attack"]
    swapped = [row for row in better.reconstruction if (row.method, row.attack) != ("ce-lora", "matching")]
    swapped.append(text_row("ce-lora", "matching", 0.5))
    changed = better.model_copy(update={"reconstruction": swapped})
    assert titles(page(changed))[:2] == ["ce-lora, matching attack", "ce-lora, span attack"]


def test_every_part_has_its_section(text):
    heads = re.findall(r"<h2>(.*?)</h2>", text)
    assert heads == [
        "Cautions", "Claims", "Originals and reconstructions", "Reconstruction", "Membership", "Labels", "Summary",
        "Who attacks", "Notes", "How it was run",
    ]  # fmt: skip
    assert "✓ holds" in text
    assert "does not hold" not in text
    assert "Embedding gradients" in text
    assert "adapter.rank" in text


def test_right_words_are_marked_as_often_as_both_have_them():
    # "the" stands twice in one text and once in the other: one of two is marked.
    pair = text_pair("The cat saw the dog.", "dog the bird")
    assert pair.original.pieces == (("The", True), ("cat saw the", False), ("dog.", True))
    assert pair.found.pieces == (("dog the", True), ("bird", False))
    assert text_pair("- a", "-").found.pieces == (("-", True),)
    assert text_pair("a b", "").found.pieces == ()


def test_the_closest_trial_is_shown():
    far, near = Attempt(original=["a b c d"], found=["x y z w"]), Attempt(original=["a b c d"], found=["a b x y"])
    assert closeness(far) == 0.0
    assert closeness(near) == 0.5
    assert closeness(Attempt(original=[], found=[])) == 0.0
    shown = page(text_findings(reconstruction=[text_row("ce-lora", "span", 0.5, attempts=[far, near])]))
    assert "<mark>a b</mark>" in shown
    assert "x y z w" not in shown


def test_images_stand_beside_each_other():
    shown = page(image_findings())
    assert titles(shown) == ["own-prior, matching attack", "fedavg-full, matching attack", "guesser"]
    assert shown.count(f'src="{picture(0)}"') == 3
    assert f'src="{picture(1, 0.7)}"' in shown
    assert "PSNR, dB" in shown


@pytest.mark.parametrize(
    "address", ["https://example.org/a.png", "data:text/html;base64,PHA+", 'data:image/png;base64,A"']
)
def test_only_pictures_inside_the_file_are_shown(address):
    assert picture_pair(address, picture(0)).original.picture == ""
    row = image_findings().reconstruction[0]
    bad = row.model_copy(update={"attempts": [Attempt(original=[address], found=[address])]})
    assert "<img" not in page(image_findings(reconstruction=[bad]))


@pytest.mark.parametrize("findings", [text_findings(), image_findings()], ids=["text", "image"])
def test_the_page_refers_to_nothing_outside_itself(findings):
    shown = page(findings)
    assert "<script" not in shown
    for address in re.findall(r"""(?:src|href)=["']([^"']*)|url\(([^)]*)\)""", shown):
        assert "".join(address).startswith(("#", "data:,", "data:image/png;base64,")), address


def test_nothing_in_the_findings_breaks_the_page():
    attempt = Attempt(original=[NASTY], found=[NASTY])
    findings = text_findings(
        name=NASTY, method=NASTY, controls=[NASTY], client=NASTY, task=NASTY, notes=[NASTY],
        claims=[Claim(claim=NASTY, holds=False, why=NASTY)],
        reconstruction=[text_row(NASTY, "span", 0.9, attempts=[attempt]), text_row(NASTY, "guesser", 0.1)],
        membership=[member(NASTY, 0.9), member(NASTY, 0.8, examples=64.0)],
        means=[Means(method=NASTY, examples=5, components=9, found=sure(0.9), chance=0.5, attempts=[attempt])],
        configuration={NASTY: NASTY}, environment={"device": NASTY},
    )  # fmt: skip
    shown = page(findings)
    assert "<script" not in shown
    assert shown.count("&lt;script&gt;") > 15


def test_an_unfinished_audit_says_so_before_anything_else():
    findings = text_findings(finished=False, membership=[], labels=[], means=[], claims=[])
    shown = page(findings)
    assert '<h1 class="headline">Not finished.' in shown
    for part in ("claims", "membership", "labels", "means"):
        assert f"<li>Not measured yet: {part}.</li>" in shown
    assert "Not measured yet: reconstruction" not in shown
    assert shown.index("<h2>Not finished</h2>") < shown.index("<h2>Cautions</h2>")


def test_an_audit_of_nothing_makes_a_page():
    empty = text_findings(
        finished=False, claims=[], reconstruction=[], membership=[], labels=[], means=[], notes=[],
        configuration={}, environment={}, controls=[],
    )  # fmt: skip
    shown = page(empty)
    assert '<h1 class="headline">Not finished.' in shown
    assert "<svg" not in shown


@pytest.mark.parametrize(
    "rows",
    [
        [text_row("ce-lora", "guesser", 0.1)],
        [text_row("ce-lora", "span", 0.5)],
        [text_row("ce-lora", "span", 0.5, attempts=[], scores={})],
        [text_row("ce-lora", "span", 0.5, steps=n, sees="update") for n in (1, 2, 4)],
    ],
    ids=["guesser alone", "no guesser", "nothing scored", "steps"],
)
def test_parts_that_are_missing_do_no_harm(rows):
    shown = page(text_findings(reconstruction=rows))
    assert ("Score by local steps" in shown) == (len(rows) > 1)


def test_figures_say_in_words_what_they_show(text):
    for label in re.findall(r'<svg[^>]*aria-label="([^"]*)"', text):
        assert len(label) > 30
    assert re.search(r"ce-lora, [^;]* 0\.97 at 1; ce-lora, [^;]* 0\.62 at 2", text)


def test_the_terminal_says_the_headline_first_and_leaves_markup_alone():
    out = io.StringIO()
    Console(file=out, width=100).print(
        audit_lines(text_findings(claims=[Claim(claim="[red]c", holds=False, why="w")]))
    )
    assert out.getvalue().startswith("An attack read back") and "[red]c" in out.getvalue()
    assert "✗ does not hold" in out.getvalue()
    Console(file=out).print(audit_lines(text_findings(reconstruction=[], membership=[], claims=[])))


def test_the_folder_and_the_file_give_the_same_report(tmp_path):
    folder = write(tmp_path / "a", text_findings())
    assert trifed.report(folder) == folder / "report.html"
    whole = (folder / "report.html").read_text(encoding="utf-8")
    assert trifed.report(folder / "audit.json", tmp_path / "b.html").read_text(encoding="utf-8") == whole
    assert whole == page(text_findings())
    for form in ("md", "json", "csv"):
        assert trifed.report(folder / "audit.json", format=form) == folder / f"report.{form}"
    found = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    assert (found["outcome"]["kind"], found["outcome"]["broken"], found["advice"]) == (
        "leaks",
        [],
        "gradient-only",
    )
    assert found["cautions"] == ["no-proof", "honest-server"]
    assert "## Cautions" in (folder / "report.md").read_text(encoding="utf-8")
    assert TEXTS[0] not in (folder / "report.md").read_text(encoding="utf-8")
    rows = list(csv.DictReader((folder / "report.csv").read_text(encoding="utf-8").splitlines()))
    assert (rows[0]["method"], rows[0]["f1"], rows[0]["interval_low"]) == ("ce-lora", "0.97", "0.95")
    assert len(rows) == len({json.dumps(row) for row in rows})


def test_a_comparison_that_holds_an_audit_stays_a_comparison(tmp_path):
    folder = write_comparison(write(tmp_path / "a", text_findings()), make_comparison())
    assert "three methods" in trifed.report(folder).read_text(encoding="utf-8")


DAMAGED = {
    "empty": b"",
    "other": b'{"name": "x"}',
    "not text": b"\xff\xfe",
    "cut": text_findings().model_dump_json()[:500].encode(),
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED.keys())
def test_a_damaged_file_is_one_message(tmp_path, capsys, monkeypatch, content):
    (tmp_path / "audit.json").write_bytes(content)
    for place in (tmp_path, tmp_path / "audit.json"):
        with pytest.raises(RunError, match="not an audit's findings"):
            trifed.report(place)
        monkeypatch.setattr(sys, "argv", ["trifed", "report", str(place)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        assert end.value.code == 2
        said = capsys.readouterr().err
        assert "not an audit's findings" in " ".join(said.split())
        assert "Traceback" not in said
    assert not (tmp_path / "report.html").exists()


OVERFLOWING = """[...document.querySelectorAll('body *')].filter(e => !e.closest('.scroll') && !e.closest('svg')
  && e.getBoundingClientRect().right > document.documentElement.clientWidth + 1).map(e => e.tagName)"""


@pytest.mark.parametrize("width", [320, 390, 1280])
@pytest.mark.parametrize("kind", ["text", "image"])
def test_the_page_fits_a_phone_and_asks_for_nothing(browser, tmp_path, width, kind):
    findings = {"text": text_findings(client="unbreakable" * 9), "image": image_findings()}[kind]
    file = tmp_path / "page.html"
    file.write_text(page(findings), encoding="utf-8")
    browser.show(file, width, dark=width == 390)
    assert browser.value("document.documentElement.scrollWidth") <= width
    assert browser.value(OVERFLOWING) == []
    assert [address for address in browser.asked if not address.startswith("data:image/png")] == [file.as_uri()]
    assert browser.said == []


@pytest.mark.parametrize("sizes", [(1.0, 4.0, 16.0), (4.0,)], ids=["curves", "rows"])
def test_guessing_and_chance_are_named_on_their_lines(sizes):
    line = Line("ce-lora", "ce-lora", "base", [(size, sure(0.9)) for size in sizes])
    curves = Curves([line], "examples", "F1", [(size, sure(0.1)) for size in sizes], level=0.5, ends=(0.0, 1.03))
    figure = draw_figure(partial(draw, curves=curves), ("ce-lora",), (4.7, 3.3), "Score")
    figure.draw_without_rendering()
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.texts] == ["guessing", "chance, 0.5"]
    inside = axes.get_window_extent()
    for box in (text.get_window_extent() for text in axes.texts):
        assert box.x0 > inside.x1 or box.y0 > inside.y1
    assert set(axes.get_legend_handles_labels()[1]) <= {"ce-lora"}


def test_a_recommendation_has_two_sentences_at_most():
    for findings in (text_findings(), text_findings(dict.fromkeys(CURVE, 0.9)), image_findings()):
        assert len(re.findall(r"[.!?](?= |$)", advice(findings)[1])) <= 2
