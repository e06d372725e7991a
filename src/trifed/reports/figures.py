"""Figures: colours as a theme, one look for each method, and inline SVG that follows the page's colours."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from textwrap import fill, wrap
from typing import Any

import matplotlib
from markupsafe import escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator

from trifed.reports.format import size

MARKERS = "osD^vPX*hp<"
LABEL_LENGTH = 22
FONT = 10.0
FEW_DECADES = 200.0
"""Ratio of the ends of a logarithmic axis up to which powers of 10 alone are too few numbers for it."""
LEGEND_LINE = 0.19
"""Inches that one line of a legend adds to a figure's height."""
NAME_WIDTH = 14
"""Characters of a line of the name of a reference line."""
WIDE_LABEL = 40
"""A legend with a longer label, in characters, has one column instead of two."""


@dataclass(frozen=True)
class Theme:
    """Colours; `series` has one for each method and is repeated for further methods."""

    ink: str
    faint: str
    heat: str
    series: tuple[str, ...]

    def variables(self) -> dict[str, str]:
        """Return CSS variable -> colour."""
        series = {f"--series-{place}": colour for place, colour in enumerate(self.series)}
        return {"--ink": self.ink, "--faint": self.faint, "--heat": self.heat, **series}

    def css(self) -> str:
        """Return the colours as CSS declarations."""
        return " ".join(f"{name}: {colour};" for name, colour in self.variables().items())


LIGHT = Theme(
    "#1c2126",
    "#5f666d",
    "#0b6e4f",
    ("#0b6e4f", "#d1495b", "#30638e", "#a86a10", "#6a4c93", "#00838f", "#8d5524", "#c2185b", "#546e7a", "#558b2f"),
)
DARK = Theme(
    "#e8eaed",
    "#9aa1a9",
    "#4cc9a0",
    ("#4cc9a0", "#ff8a98", "#7db8ea", "#f0b856", "#b99ae6", "#4dd0e1", "#d7a677", "#f48fb1", "#a7bcc7", "#aed581"),
)
MARKED = Theme("#a1b2c0", "#a1b2c1", "#a1b2c2", tuple(f"#a1b3c{place}" for place in range(10)))
"""Colours that occur nowhere else; in the SVG text each is replaced by its CSS variable."""


@dataclass(frozen=True)
class Style:
    """A theme and the order of the methods, so that a method looks alike in every figure."""

    theme: Theme
    methods: tuple[str, ...]

    def colour(self, method: str) -> str:
        """Return a method's colour."""
        return self.theme.series[self.methods.index(method) % len(self.theme.series)]

    def look(self, method: str) -> dict[str, Any]:
        """Return a method's colour, and its marker for readers who cannot tell the colours apart."""
        marker = MARKERS[self.methods.index(method) % len(MARKERS)]
        return {"color": self.colour(method), "marker": marker}


Plot = Callable[[Axes, Style], None]


class NotebookFigure(Figure):
    """A figure that a notebook shows, also where pyplot was never imported."""

    def _repr_png_(self) -> bytes:
        image = io.BytesIO()
        with drawing(LIGHT):
            self.savefig(image, format="png", dpi=100)
        return image.getvalue()


@contextmanager
def drawing(theme: Theme) -> Iterator[None]:
    """Set up matplotlib for one figure: the theme's ink, names as they are, text that stays text."""
    settings = {
        **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), theme.ink),
        "axes.edgecolor": theme.faint,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "font.size": FONT,
        "axes.titlesize": FONT + 0.5,
        "legend.frameon": False,
        "text.parse_math": False,  # a client may be called "$5 shop"
        "svg.fonttype": "none",
        "svg.hashsalt": "trifed",
    }
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        # Names in other scripts: a browser has the letters that matplotlib's own font lacks.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def short(name: str, length: int = LABEL_LENGTH) -> str:
    """Cut a name to fit beside an axis."""
    return name if len(name) <= length else f"{name[: length - 1]}…"


def wrapped(name: str, width: int = 18) -> str:
    """Break a name into two lines that fit beside an axis, at a space, "-" or "_"; what does not fit is cut."""
    if len(name) <= width:
        return " ".join(name.split())
    lines = wrap(name.replace("_", "_ "), width, max_lines=2, placeholder="…")
    return "\n".join(line.replace("_ ", "_") for line in lines)


def name_beside(axes: Axes, style: Style, name: str, y: float, va: str = "center") -> None:
    """Write the name of a level line on its right end, outside the plot, where no data can lie below it."""
    look: dict[str, Any] = {"fontsize": FONT - 1.5, "color": style.theme.faint, "ha": "left", "va": va}
    where: dict[str, Any] = {"xycoords": axes.get_yaxis_transform(), "textcoords": "offset points"}
    axes.annotate(fill(name, NAME_WIDTH), (1.0, y), (4, 0), **where, **look)


def bytes_axis(axes: Axes) -> None:
    """Make the x axis logarithmic, in bytes, with at least two numbers on it, which do not touch each other."""
    low, high = axes.dataLim.intervalx if axes.get_autoscalex_on() else axes.get_xlim()
    axes.set_xscale("log")
    low, high = sorted((max(float(low), 1.0), max(float(high), 1.0)))
    steps = (1.0,) if high / low > FEW_DECADES else (1.0, 3.0)
    within = high / low < 10
    axes.xaxis.set_major_locator(MaxNLocator(3) if within else LogLocator(subs=steps, numticks=6))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: size(value).replace(".0 ", " ")))
    axes.xaxis.set_minor_formatter(FuncFormatter(lambda value, _: ""))


def render_svg(plot: Plot, methods: tuple[str, ...], inches: tuple[float, float], alt: str, name: str) -> str:
    """Draw a plot as inline SVG, with its legend below the axes.

    Args:
        plot: Draws onto the axes it is given.
        methods: All methods of the page, in their order.
        inches: Width and height without the legend.
        alt: Description for readers who do not see the figure.
        name: Prefix of the figure's ids; different for every figure of a page.
    """
    text = io.StringIO()
    with drawing(MARKED):
        figure = _drawn(plot, Style(MARKED, methods), inches)
        metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(text, format="svg", transparent=True, metadata=metadata)
    return _inline(text.getvalue(), escape(alt), name)


def draw_figure(plot: Plot, methods: tuple[str, ...], inches: tuple[float, float], title: str) -> Figure:
    """Draw a plot in the light theme as a figure with a title, for Python; see `render_svg` for the arguments."""
    with drawing(LIGHT):
        figure = _drawn(plot, Style(LIGHT, methods), inches)
        figure.suptitle(title, fontsize=FONT + 0.5)
    return figure


def _drawn(plot: Plot, style: Style, inches: tuple[float, float]) -> Figure:
    figure = NotebookFigure(figsize=inches, layout="constrained")
    axes = figure.subplots()
    plot(axes, style)
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        columns = 1 if max(map(len, labels)) > WIDE_LABEL else 2
        figure.set_size_inches(inches[0], inches[1] + LEGEND_LINE * -(-len(labels) // columns))
        figure.legend(handles, labels, loc="outside lower center", ncols=columns, fontsize=FONT - 0.5)
    if (engine := figure.get_layout_engine()) and axes.get_aspect() != "auto":
        for _ in range(2):  # a square settles in further passes; before that, the names beside it are cut
            engine.execute(figure)
    return figure


def _inline(text: str, title: str, name: str) -> str:
    """Make an SVG file part of a page: without size and metadata, with a title and ids of its own."""
    variables = {colour: variable for variable, colour in MARKED.variables().items()}
    text = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    root, rest = text.split(">", 1)
    root = re.sub(r' (width|height)="[^"]*"', "", root)
    # Only inside tags: a client's name may look like an attribute. Matplotlib escapes "<" and ">" elsewhere.
    rest = re.sub(r"<[^>]*>", lambda tag: re.sub(r'( id="|href="#|url\(#)', rf"\1{name}-", tag.group()), rest)
    svg = f'{root} role="img" aria-label="{title}"><title>{title}</title>{rest}'
    return re.sub("#a1b[23]c[0-9]", lambda colour: f"var({variables[colour.group()]})", svg)
