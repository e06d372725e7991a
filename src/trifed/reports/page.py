"""A report as one self-contained HTML page, and a result as a few lines for a notebook."""

from __future__ import annotations

from dataclasses import dataclass

from jinja2 import Environment, PackageLoader
from markupsafe import Markup

from trifed.common.version import __version__
from trifed.reports.audit.cards import Card
from trifed.reports.comparison.sections import Block
from trifed.reports.document import Document, make_document
from trifed.reports.figures import render_svg
from trifed.reports.results import Source
from trifed.reports.run.read import Say
from trifed.reports.style import DARK, LIGHT
from trifed.reports.tables import Grid

BRIEF = ("method", "mean", "interval", "worst", "best", "up_per_round", "total_bytes")


@dataclass(frozen=True)
class Drawn:
    """A block whose figure is drawn. `svg`: empty where it has none."""

    grid: Grid
    svg: Markup
    folded: bool
    cards: tuple[Card, ...]


def render_html(document: Document, say: Say) -> str:
    """The whole page; nothing in it is fetched from anywhere."""
    sections = []
    for number, section in enumerate(document.sections):
        say(f"drawing {section.title}")
        drawn = [_drawn(block, document, f"f{number}-{place}") for place, block in enumerate(section.blocks)]
        sections.append((section, drawn))
    return (
        _environment()
        .get_template("page.html")
        .render(document=document, sections=sections, light=LIGHT, dark=DARK, version=__version__)
    )


def render_brief(source: Source) -> str:
    """Headline, caution and the main numbers, as an HTML fragment."""
    document = make_document(source)
    grid = document.main.only(*BRIEF).without_empty()
    return _environment().get_template("brief.html").render(document=document, grid=grid)


def _drawn(block: Block, document: Document, name: str) -> Drawn:
    if block.draw is None:
        return Drawn(block.grid, Markup(), block.folded, block.cards)
    # Made by ElementTree from text that it escaped.
    svg = Markup(render_svg(block.draw, document.methods, block.inches, block.alt, name))
    return Drawn(block.grid, svg, block.folded, block.cards)


def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("trifed.reports"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
