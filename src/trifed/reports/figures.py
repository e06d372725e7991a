"""A figure as SVG inside a page: text stays text, colours follow the page, a title says what it shows."""

from __future__ import annotations

import io
import re
import warnings
from xml.etree import ElementTree

from matplotlib.figure import Figure

from trifed.reports.style import MARKED, VARIABLES, Draw, Style, drawing

SVG = "http://www.w3.org/2000/svg"
XLINK = "http://www.w3.org/1999/xlink"
MISSING_GLYPH = "Glyph .* missing from font"


def render_svg(draw: Draw, methods: tuple[str, ...], inches: tuple[float, float], alt: str, name: str) -> str:
    """Inline SVG.

    `alt`: what a reader who does not see it should know. `name`: unlike that of any other figure of the page,
    since it makes the figure's ids unlike theirs.
    """
    text = io.StringIO()
    with drawing(MARKED), warnings.catch_warnings():
        # Names in other scripts: the browser has the letters, whatever matplotlib's own font lacks.
        warnings.filterwarnings("ignore", message=MISSING_GLYPH)
        figure = Figure(figsize=inches, layout="constrained")
        draw(figure, Style(MARKED, methods))
        figure.savefig(
            text, format="svg", transparent=True, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type"))
        )
    return _inline(text.getvalue(), alt, name)


def _inline(text: str, alt: str, name: str) -> str:
    for prefix, space in (("", SVG), ("xlink", XLINK)):
        ElementTree.register_namespace(prefix, space)
    root = ElementTree.fromstring(text)
    for metadata in root.findall(f"{{{SVG}}}metadata"):
        root.remove(metadata)
    for size in ("width", "height"):
        del root.attrib[size]
    root.set("role", "img")
    root.set("aria-label", alt)
    title = ElementTree.Element(f"{{{SVG}}}title")
    title.text = alt
    root.insert(0, title)
    _rename(root, name)
    found = ElementTree.tostring(root, encoding="unicode")
    return re.sub("#a1b[23]c[0-9]", lambda colour: f"var({VARIABLES[colour.group()]})", found)


def _rename(root: ElementTree.Element, name: str) -> None:
    """Ids of this figure's own, and all references to them."""
    for item in root.iter():
        for key, value in item.attrib.items():
            if key == "id":
                item.set(key, f"{name}-{value}")
            elif key in ("href", f"{{{XLINK}}}href") and value.startswith("#"):
                item.set(key, f"#{name}-{value[1:]}")
            elif "url(#" in value:
                item.set(key, value.replace("url(#", f"url(#{name}-"))
