"""Plots of an audit: a score with its interval against a size, one line for each method and knowledge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator

from trifed.reports.audit.findings import Estimate
from trifed.reports.figures import FONT, Style, name_beside, short

STROKES = {"factors": "-", "start": "--", "base": ":"}
MOST_TICKS = 8
DODGE = 0.05
"""Distance between lines along the axis, as a power of 2: intervals should not hide each other."""

GUESSING, CHANCE = "guessing", "chance"
"""Names of the reference lines, written on them."""

Points = Sequence[tuple[float, Estimate]]
"""Size and score."""


@dataclass(frozen=True)
class Line:
    """A line of a figure. `method` sets its colour and marker, `knows` its stroke.

    Of two lines alike in both, such as two views, the second is thin and has hollow markers.
    """

    label: str
    method: str
    knows: str
    points: Points


@dataclass(frozen=True)
class Curves:
    """Contents of a figure.

    Attributes:
        floor: The guesser's score at each size.
        level: The score of chance.
        ends: Ends of the score's axis, which grows if a value lies below.
    """

    lines: list[Line]
    xlabel: str
    ylabel: str
    floor: Points = ()
    level: float | None = None
    ends: tuple[float, float] | None = None

    @property
    def sizes(self) -> list[float]:
        """Return all sizes, ascending."""
        return sorted({x for line in self.lines for x, _ in line.points})

    @property
    def height(self) -> float:
        """Return the figure's height in inches, legend apart."""
        return 1.1 + 0.3 * len(self.lines) if len(self.sizes) <= 1 else 3.3


def draw(axes: Axes, style: Style, curves: Curves) -> None:
    """Draw curves where sizes differ, else one row for each line."""
    (_curves if len(curves.sizes) > 1 else _rows)(axes, style, curves)


def _curves(axes: Axes, style: Style, curves: Curves) -> None:
    faint = style.theme.faint
    for place, line in enumerate(curves.lines):
        xs, means, lows, highs = _arrays(line.points)
        xs *= 2 ** (DODGE * (place - (len(curves.lines) - 1) / 2))
        again = any((line.method, line.knows) == (one.method, one.knows) for one in curves.lines[:place])
        axes.plot(xs, means, label=line.label, **_stroke(line, again=again), **style.look(line.method))
        axes.vlines(xs, lows, highs, lw=1.1, color=style.colour(line.method), zorder=3)
    axes.set_xscale("log", base=2)
    if curves.floor:
        xs, means, lows, highs = _arrays(curves.floor)
        if len(xs) == 1:  # one guess is the same wherever there is a score
            xs = np.array([curves.sizes[0], curves.sizes[-1]])
            means, lows, highs = (np.repeat(value, 2) for value in (means, lows, highs))
        axes.fill_between(xs, lows, highs, color=faint, alpha=0.25, lw=0, zorder=1)
        axes.plot(xs, means, color=faint, lw=1.2, zorder=2)
    if curves.level is not None:
        axes.axhline(curves.level, color=faint, ls="--", lw=1.1)
    ticks = curves.sizes[:: -(-len(curves.sizes) // MOST_TICKS)]
    axes.set_xticks(ticks, [f"{size:.4g}" for size in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    if curves.ends:
        lowest = min(point.low for line in curves.lines for _, point in line.points)
        axes.set_ylim(min(curves.ends[0], lowest), curves.ends[1])
    if curves.floor:
        name_beside(axes, style, GUESSING, float(means[-1]))
    if curves.level is not None:
        name_beside(axes, style, f"{CHANCE}, {curves.level:g}", curves.level)
    axes.set(xlabel=curves.xlabel, ylabel=curves.ylabel)


def _stroke(line: Line, *, again: bool) -> dict[str, Any]:
    """Return how a line is drawn; `again` is True if an earlier one has its method and knowledge."""
    hollow = {"fillstyle": "none", "lw": 0.8} if again else {"lw": 1.5}
    return {"ls": STROKES[line.knows], "ms": 4.5, "zorder": 3, **hollow}


def _arrays(points: Points) -> tuple[np.ndarray, ...]:
    """Return sizes, ascending, means, lower and upper ends."""
    rows = [(size, e.mean, e.low, e.high) for size, e in sorted(points, key=lambda point: point[0])]
    return tuple(np.array(rows, float).T)


def _rows(axes: Axes, style: Style, curves: Curves) -> None:
    faint = style.theme.faint
    for row, line in enumerate(curves.lines):
        for _, found in line.points:
            colour = style.colour(line.method)
            axes.plot([found.low, found.high], [row, row], color=colour, lw=2.0, solid_capstyle="round")
            axes.scatter([found.mean], [row], s=40, zorder=3, **style.look(line.method))
    for _, guess in curves.floor[:1]:
        axes.axvspan(guess.low, guess.high, color=faint, alpha=0.25, lw=0, zorder=1)
        _name_above(axes, style, GUESSING, guess.mean)
    if curves.level is not None:
        axes.axvline(curves.level, color=faint, ls="--", lw=1.1)
        _name_above(axes, style, f"{CHANCE}, {curves.level:g}", curves.level)
    labels = [short(line.label, 30) for line in curves.lines]
    axes.set_yticks(range(len(labels)), labels, fontsize=FONT - 0.5)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    if curves.ends:
        axes.set_xlim(min(curves.ends[0], axes.get_xlim()[0]), curves.ends[1])
    at = f", {curves.xlabel} {curves.sizes[0]:.4g}" if curves.sizes and curves.xlabel else ""
    axes.set_xlabel(f"{curves.ylabel}{at}")


def _name_above(axes: Axes, style: Style, name: str, x: float) -> None:
    """Write the name of an upright line above its upper end."""
    look: dict[str, Any] = {"fontsize": FONT - 1.5, "color": style.theme.faint, "ha": "center", "va": "bottom"}
    axes.annotate(name, (x, 1.0), (0, 2), xycoords=axes.get_xaxis_transform(), textcoords="offset points", **look)
