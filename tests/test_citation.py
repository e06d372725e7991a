"""CITATION.cff: complete, of this version, and with every paper that a method names."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

import trifed
from trifed.common.version import __version__
from trifed.methods import METHODS

REPOSITORY = Path(__file__).resolve().parents[1]
CITATION = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text(encoding="utf-8"))
ARXIV = re.compile(r"\b\d{4}\.\d{5}\b")


def test_it_has_the_keys_that_the_format_requires():
    assert CITATION["cff-version"] == "1.2.0"
    assert {"message", "title", "authors", "version", "license"} <= CITATION.keys()
    assert CITATION["version"] == __version__
    for reference in CITATION["references"]:
        assert {"type", "title", "authors", "year", "url"} <= reference.keys(), reference["title"]
        assert all(author.keys() & {"family-names", "name"} for author in reference["authors"]), reference["title"]


def test_every_paper_of_a_method_is_cited():
    cited = {number for reference in CITATION["references"] for number in ARXIV.findall(reference["url"])}
    files = (Path(trifed.__file__).parent / "methods").glob("*.py")
    named = {number for file in files for number in ARXIV.findall(file.read_text(encoding="utf-8"))}
    assert len(named) >= len(METHODS) / 2
    assert named - cited == set()
