"""How figures look: colours as a theme, so that the same drawing serves a picture and a page in light and dark."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator

from trifed.reports.format import size

MARKERS = "osD^vPX*hp<"
LINES: tuple[Any, ...] = ("--", "-.", ":", (0, (1, 5)), (0, (5, 1, 1, 1, 1, 1)), (0, (8, 3)))
LABEL_LENGTH = 22
FONT = 10.0


@dataclass(frozen=True)
class Theme:
    """Colours. `series`: one a method, repeated where there are more methods."""

    ink: str
    faint: str
    heat: str
    series: tuple[str, ...]

    def css(self) -> str:
        """The colours as CSS variables."""
        named = {"ink": self.ink, "faint": self.faint, "heat": self.heat}
        named |= {f"series-{place}": colour for place, colour in enumerate(self.series)}
        return " ".join(f"--{name}: {colour};" for name, colour in named.items())


LIGHT = Theme(
    "#1c2126",
    "#72787f",
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
"""Colours that occur nowhere else, each to be replaced by its CSS variable once the figure is text."""

VARIABLES = {MARKED.ink: "--ink", MARKED.faint: "--faint", MARKED.heat: "--heat"} | {
    colour: f"--series-{place}" for place, colour in enumerate(MARKED.series)
}


@dataclass(frozen=True)
class Style:
    """A theme, and which method has which place in it; a method looks the same in every figure."""

    theme: Theme
    methods: tuple[str, ...]

    def colour(self, method: str) -> str:
        """A method's colour."""
        return self.theme.series[self.methods.index(method) % len(self.theme.series)]

    def marker(self, method: str) -> str:
        """A method's marker, so that colour is not all that tells it from others."""
        return MARKERS[self.methods.index(method) % len(MARKERS)]


def control_lines(count: int) -> list[Any]:
    """One line style a control."""
    return list(islice(cycle(LINES), count))


Draw = Callable[[Figure, Style], None]


@contextmanager
def drawing(theme: Theme) -> Iterator[None]:
    """Matplotlib settings for one figure: the theme's ink, names as they are, text that stays text."""
    ink = dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), theme.ink)
    settings = {
        **ink,
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
    with matplotlib.rc_context(settings):
        yield


def short(name: str, length: int = LABEL_LENGTH) -> str:
    """A name that fits beside an axis."""
    return name if len(name) <= length else f"{name[: length - 1]}…"


def bytes_axis(axes: Axes) -> None:
    """A logarithmic x axis in bytes."""
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(numticks=6))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: size(value).replace(".0 ", " ")))
    axes.xaxis.set_minor_formatter(FuncFormatter(lambda value, _: ""))


def legend_below(figure: Figure, axes: Axes, columns: int = 2) -> None:
    """The axes' legend under the figure, where it covers nothing."""
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside lower center", ncols=columns, fontsize=FONT - 0.5)
