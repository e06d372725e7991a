"""A report as Markdown, JSON and CSV: the same sentences and grids as the page."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable
from typing import Any

from trifed.common.version import __version__
from trifed.reports.document import Document
from trifed.reports.tables import Column, Grid


def render_markdown(document: Document) -> str:
    """All sentences and all tables."""
    return "\n".join(_markdown(document)).rstrip() + "\n"


def _markdown(document: Document) -> Iterable[str]:
    yield from (f"# {_plain(document.title)}", "", f"**{_plain(document.headline)}**", "")
    for sentence in document.says:
        yield from (_plain(sentence), "")
    for title, sentences in document.passages:
        yield from (f"## {_plain(title)}", "", *(f"- {_plain(line)}" for line in sentences), "")
    if document.missing:
        yield from ("## Not finished", "", *(f"- {_plain(line)}" for line in document.missing), "")
        if document.go_on:
            yield from (f"To go on: `{document.go_on}`", "")
    yield from ("## What not to conclude", "", *(f"- {_plain(line)}" for line in document.cautions), "")
    for section in document.sections:
        yield from (f"## {_plain(section.title)}", "")
        for sentence in section.says:
            yield from (_plain(sentence), "")
        for block in section.blocks:
            yield from (f"### {_plain(block.grid.title)}", "", *_markdown_table(block.grid), "")
            if block.grid.note:
                yield from (_plain(block.grid.note), "")
    if document.citations:
        yield from ("## Methods", "", *(f"- {method}: {_plain(what)}" for method, what in document.citations), "")


def _markdown_table(grid: Grid) -> Iterable[str]:
    yield _markdown_row(column.label for column in grid.columns)
    yield "|" + "|".join("--:" if column.is_number else ":--" for column in grid.columns) + "|"
    for row in grid.cells():
        yield _markdown_row(row)


def _markdown_row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(_plain(cell) for cell in cells)} |"


def _plain(text: str) -> str:
    """Names as they are, whatever Markdown would make of them."""
    escaped = "".join(f"\\{letter}" if letter in "\\`*_[]<>|#" else letter for letter in text)
    return " ".join(escaped.split())


def render_json(document: Document) -> str:
    """One document: sentences, and every table as a list of records with raw values."""
    value = {
        "trifed": __version__,
        "name": document.title,
        "headline": document.headline,
        "says": document.says,
        "passages": dict(document.passages),
        "not_to_conclude": document.cautions,
        "missing": document.missing,
        "go_on": document.go_on,
        "main": _records(document.main),
        "sections": [
            {
                "title": section.title,
                "says": section.says,
                "tables": [
                    {"title": b.grid.title, "note": b.grid.note, "rows": _records(b.grid)} for b in section.blocks
                ],
            }
            for section in document.sections
        ],
        "methods": dict(document.citations),
    }
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _records(grid: Grid) -> list[dict[str, Any]]:
    keys = [column.key for column in grid.columns]
    return [dict(zip(keys, row, strict=True)) for row in grid.rows]


def render_csv(document: Document) -> str:
    """The main table: one row a partition and method or control, raw values, intervals as two columns."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(name for column in document.main.columns for name in _csv_names(column))
    for row in document.main.rows:
        cells = zip(document.main.columns, row, strict=True)
        writer.writerow(cell for column, value in cells for cell in _csv_cells(column, value))
    return text.getvalue()


def _csv_names(column: Column) -> list[str]:
    return [f"{column.key}_low", f"{column.key}_high"] if column.kind.endswith("interval") else [column.key]


def _csv_cells(column: Column, value: Any) -> list[Any]:
    if column.kind.endswith("interval"):
        return list(value) if value else ["", ""]
    return ["" if value is None else value]
