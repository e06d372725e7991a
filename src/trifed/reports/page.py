"""A report as one self-contained HTML page, and a result as a few lines for a notebook."""

from __future__ import annotations

from collections.abc import Callable

from jinja2 import Environment, PackageLoader
from markupsafe import Markup

from trifed.common.version import __version__
from trifed.reports.comparison.report import comparison_document
from trifed.reports.document import Block, Document
from trifed.reports.figures import DARK, LIGHT, render_svg
from trifed.reports.results import Source

BRIEF = ("method", "mean", "interval", "worst", "best", "up_per_round", "total_bytes")


def render_html(document: Document, on_progress: Callable[[str], None]) -> str:
    """Render the whole page, which fetches nothing. `on_progress` gets a line before each section is drawn."""

    def draw(block: Block, name: str) -> Markup:
        if block.plot is None:
            return Markup()
        # Matplotlib escapes the text of a figure.
        return Markup(render_svg(block.plot, document.methods, block.inches, block.alt, name))

    facts = {"light": LIGHT, "dark": DARK, "version": __version__, "draw": draw, "on_progress": on_progress}
    return _environment().get_template("page.html").render(document=document, **facts)


def render_brief(source: Source) -> str:
    """Render verdict, first caution and the main numbers as an HTML fragment."""
    document = comparison_document(source)
    table = document.main.only(*BRIEF).without_empty()
    return _environment().get_template("brief.html").render(document=document, table=table)


def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("trifed.reports"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
