"""A report before it has a format, and its forms as a self-contained page, Markdown, JSON and CSV."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader

from trifed.common.text import markdown_code, markdown_text
from trifed.common.version import __version__
from trifed.reports.figures import DARK, LIGHT, Plot, render_svg
from trifed.reports.tables import Column, Table, to_markdown

WIDTH, HEIGHT = 4.7, 3.5
"""Inches of a figure, legend apart."""

TEMPLATES = Environment(
    loader=PackageLoader("trifed.reports"), autoescape=True, trim_blocks=True, lstrip_blocks=True
)


class Caution(NamedTuple):
    """A conclusion that the numbers do not support. `code` is stable; `text` is for people."""

    code: str
    text: str


MOST_CAUTIONS = 3


@dataclass(frozen=True)
class Side:
    """A text in pieces, each with whether it is marked; or a picture's data URI."""

    pieces: tuple[tuple[str, bool], ...] = ()
    picture: str = ""


class Pair(NamedTuple):
    """An example and its reconstruction."""

    original: Side
    found: Side


class Card(NamedTuple):
    """Pairs under a title. `says`: heading of the second of each pair; `colour`: a CSS variable."""

    title: str
    note: str
    says: str
    colour: str
    pairs: tuple[Pair, ...]


@dataclass(frozen=True)
class Block:
    """A table, with or without a figure of it.

    Attributes:
        alt: The figure in words.
        height: The figure's height in inches, legend apart.
        folded: True for a table that few readers want to see at once.
        cards: Examples that a page shows before the table.
    """

    table: Table
    plot: Plot | None = None
    alt: str = ""
    height: float = HEIGHT
    folded: bool = False
    cards: tuple[Card, ...] = ()


@dataclass(frozen=True)
class Section:
    """A part of the report under its own heading. `folded`: a page shows the heading and opens on demand."""

    title: str
    notes: Sequence[str] = ()
    blocks: Sequence[Block] = ()
    folded: bool = False


@dataclass(frozen=True)
class Document:
    """Contents of a report, the same in every format.

    Attributes:
        verdict: The result in one sentence.
        outcome: The same in numbers, for programs; its `kind` is stable.
        recommendation: What to do, in at most two sentences; may be empty.
        advice: Stable code of the recommendation.
        first: The one plot of the first screen.
        cautions: At most three conclusions that the numbers do not support.
        missing: Runs or parts that are not there yet.
        resume_command: The command that computes it; may be empty.
        main: The table of all numbers, which is also the CSV form.
        citations: Method and paper.
    """

    title: str
    subtitle: str
    verdict: str
    cautions: Sequence[Caution]
    missing: Sequence[str]
    main: Table
    sections: Sequence[Section]
    methods: tuple[str, ...]
    resume_command: str = ""
    citations: dict[str, str] = field(default_factory=dict)
    outcome: dict[str, Any] = field(default_factory=dict)
    recommendation: str = ""
    advice: str = ""
    first: Block | None = None


def settings_section(configuration: dict[str, Any], environment: dict[str, Any]) -> list[Section]:
    """Return configuration, versions and hardware as folded tables; no section where both are empty."""
    columns = (Column("name", "name"), Column("value", "value"))
    parts = {"Configuration": configuration, "Versions and hardware": environment}
    tables = [Table(title, columns, list(_dotted(values, ""))) for title, values in parts.items() if values]
    return [Section("How it was run", blocks=[Block(table, folded=True) for table in tables])] if tables else []


def _dotted(values: dict[str, Any], prefix: str) -> Iterable[dict[str, str]]:
    """Flatten nested dictionaries to dotted names."""
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield from _dotted(value, f"{prefix}{name}.")
        elif value is not None:
            text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
            yield {"name": f"{prefix}{name}", "value": text or "none"}


def render_html(document: Document, on_progress: Callable[[str], None]) -> str:
    """Render the whole page, which fetches nothing. `on_progress` gets a line before each section is drawn."""
    return TEMPLATES.get_template("page.html").render(
        document=document,
        light=LIGHT,
        dark=DARK,
        version=__version__,
        render_svg=render_svg,
        width=WIDTH,
        on_progress=on_progress,
    )


def render_markdown(document: Document) -> str:
    """Render all sentences and all tables as Markdown."""
    return "\n\n".join(_markdown(document)) + "\n"


def _markdown(document: Document) -> Iterable[str]:
    yield from (f"# {markdown_text(document.title)}", f"**{markdown_text(document.verdict)}**")
    if document.recommendation:
        yield markdown_text(document.recommendation)
    if document.missing:
        yield from ("## Not finished", _bullets(document.missing))
    if document.resume_command:
        yield f"To go on: {markdown_code(document.resume_command)}"
    if document.first:
        yield from _markdown_table(document.first.table)
    if document.cautions:
        yield from ("## Cautions", _bullets([caution.text for caution in document.cautions]))
    for section in document.sections:
        yield from (f"## {markdown_text(section.title)}", *map(markdown_text, section.notes))
        for block in section.blocks:
            yield from _markdown_table(block.table)


def _markdown_table(table: Table) -> Iterable[str]:
    yield from (f"### {markdown_text(table.title)}", to_markdown(table))
    yield from [markdown_text(table.note)] if table.note else []


def _bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"- {markdown_text(line)}" for line in lines)


def render_json(document: Document) -> str:
    """Render sentences, and every table as a list of records with raw values, as JSON."""
    value = {
        "trifed": __version__,
        "name": document.title,
        "headline": document.verdict,
        "outcome": document.outcome,
        "recommendation": document.recommendation,
        "advice": document.advice,
        "not_to_conclude": [caution.text for caution in document.cautions],
        "cautions": [caution.code for caution in document.cautions],
        "missing": document.missing,
        "go_on": document.resume_command,
        "first": _json_table(document.first.table) if document.first else None,
        "main": document.main.records(),
        "sections": [
            {
                "title": section.title,
                "says": section.notes,
                "tables": [_json_table(block.table) for block in section.blocks],
            }
            for section in document.sections
        ],
        "methods": document.citations,
    }
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _json_table(table: Table) -> dict[str, Any]:
    return {"title": table.title, "note": table.note, "rows": table.records()}
