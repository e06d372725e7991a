"""Pictures and tables of the pages come from committed JSON files, and are those of these files."""

from __future__ import annotations

import io
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

REPOSITORY = Path(__file__).resolve().parents[1]
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md")),
         *sorted((REPOSITORY / "benchmarks").rglob("README.md"))]  # fmt: skip
SHOWN = re.compile(r"!\[[^\]]*\]\(([^)]+)\)")
ALTERNATIVE = re.compile(r"!\[([^\]]*)\]\([^)]+\)")
LINKS = re.compile(r"(?<!!)\[([^\]]+)\]\([^)]+\)")
FEWEST_WORDS = 12
"""Words of an alternative text that says what a picture shows, and not only what it is about."""


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks"))
    return __import__("figures")


@pytest.fixture
def cheap(figures: Any, tmp_path: Path) -> Any:
    """A picture that is drawn fast, and its JSON file in a folder in which the test works."""
    (picture,) = [picture for picture in figures.PICTURES if picture.name == "docs/numbers-sent"]
    (source,) = picture.sources
    (tmp_path / source).parent.mkdir(parents=True)
    shutil.copy(REPOSITORY / source, tmp_path / source)
    return replace(picture, dpi=40)


def test_every_picture_of_a_page_can_be_drawn_again(figures: Any) -> None:
    shown = {
        str((page.parent / target).resolve().relative_to(REPOSITORY))
        for page in PAGES
        for target in SHOWN.findall(page.read_text(encoding="utf-8"))
    }
    assert shown == {picture.path for picture in figures.PICTURES}
    needed = [path for picture in figures.PICTURES for path in (picture.path, *picture.sources)]
    assert [path for path in needed if not (REPOSITORY / path).is_file()] == []


def test_an_alternative_text_says_what_a_picture_shows() -> None:
    told = [(page, alt) for page in PAGES for alt in ALTERNATIVE.findall(page.read_text(encoding="utf-8"))]
    assert len(told) >= 8
    assert [(page.name, alt) for page, alt in told if len(alt.split()) < FEWEST_WORDS] == []


def test_a_link_says_where_it_leads() -> None:
    vague = {"here", "this", "link", "more", "see", "see there", "how", "below", "above", "page", "measured"}
    found = [(page.name, text) for page in PAGES for text in LINKS.findall(page.read_text(encoding="utf-8"))]
    assert len(found) > 300 and [link for link in found if link[1].lower() in vague] == []


def test_a_second_call_changes_nothing(figures: Any, cheap: Any, tmp_path: Path) -> None:
    assert figures.update(cheap, tmp_path)
    image = (tmp_path / cheap.path).read_bytes()
    assert not figures.update(cheap, tmp_path)
    assert image == figures.render(cheap, tmp_path)
    assert b"tEXt" not in image and b"tIME" not in image


def test_other_numbers_give_another_picture(figures: Any, cheap: Any, tmp_path: Path) -> None:
    figures.update(cheap, tmp_path)
    source = tmp_path / cheap.sources[0]
    known = json.loads(source.read_text(encoding="utf-8"))
    known["models"][0]["methods"][0]["numbers"] //= 1000
    source.write_text(json.dumps(known), encoding="utf-8")
    assert figures.update(cheap, tmp_path)


def test_the_committed_picture_is_that_of_the_committed_numbers(figures: Any, cheap: Any) -> None:
    drawn = np.asarray(Image.open(io.BytesIO(figures.render(replace(cheap, dpi=110)))).convert("L"), np.float64)
    kept = np.asarray(Image.open(REPOSITORY / cheap.path).convert("L"), np.float64)
    assert drawn.shape == kept.shape
    assert np.abs(drawn - kept).mean() < 0.5  # of 255: another machine may smooth edges differently


@pytest.mark.parametrize(("asked", "said"), [(["nowhere"], "docs/numbers-sent"), (["docs/demo.png", "x"], "'x'")])
def test_an_unknown_picture_is_refused(
    figures: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], asked: list[str], said: str
) -> None:
    monkeypatch.setattr("sys.argv", ["figures.py", *asked])
    with pytest.raises(SystemExit) as ended:
        figures.main()
    assert ended.value.code == 2 and said in capsys.readouterr().err


def test_the_pages_hold_the_tables_of_the_committed_numbers(figures: Any) -> None:
    for page, tables in __import__("pages").PAGES.items():
        kept = (REPOSITORY / page).read_text(encoding="utf-8").splitlines()
        found = [line for table in tables for line in table()]
        assert len(found) >= 3 and [line for line in found if line not in kept] == [], page


def test_the_counted_numbers_are_those_of_the_shapes(figures: Any) -> None:
    cost = __import__("trifed.federation.cost", fromlist=["estimate_cost"])
    (kept,) = [
        m
        for m in json.loads((REPOSITORY / figures.PICTURES[1].sources[0]).read_text())["models"]
        if m["layers"] == 24
    ]
    now = {item.method: item.sent_values for item in cost.estimate_cost("roberta-base").methods}
    assert {row["method"]: row["numbers"] for row in kept["methods"]}.items() <= now.items()
    # Twelve layers, queries and values: 24 cores of 8 x 8; A and B of rank 8 beside 768 x 768.
    assert now["ce-lora"] == 24 * 8 * 8 and kept["A and B of plain LoRA"] == 24 * 8 * (768 + 768)
