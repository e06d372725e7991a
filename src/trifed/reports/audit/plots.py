"""Plots of an audit: a score with its interval against a size, one line for each method and knowledge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator

from trifed.reports.audit.findings import Estimate
from trifed.reports.figures import FONT, Style, short

STROKES = {"factors": "-", "start": "--", "base": ":"}
MOST_TICKS = 8
DODGE = 0.05
"""Distance between lines along the axis, as a power of 2: intervals should not hide each other."""

Points = Sequence[tuple[float, Estimate]]
"""Size and score."""


@dataclass(frozen=True)
class Line:
    """A line of a figure. `method` gives its colour and marker, `knows` its stroke."""

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

    def height(self) -> float:
        """Return the figure's height in inches, legend apart."""
        return 1.1 + 0.3 * len(self.lines) if len(self.sizes) <= 1 else 3.3


def draw(axes: Axes, style: Style, curves: Curves) -> None:
    """Draw curves where sizes differ, else one row for each line."""
    if len(curves.sizes) > 1:
        _curves(axes, style, curves)
    else:
        _rows(axes, style, curves)


def _curves(axes: Axes, style: Style, curves: Curves) -> None:
    for place, line in enumerate(curves.lines):
        shift = 2 ** (DODGE * (place - (len(curves.lines) - 1) / 2))
        points = sorted(line.points, key=lambda point: point[0])
        xs, means, lows, highs = _arrays(points)
        look: dict[str, Any] = {"color": style.colour(line.method), "zorder": 3}
        stroke: dict[str, Any] = {
            "ls": STROKES[line.knows],
            "marker": style.marker(line.method),
            "ms": 4.5,
            "lw": 1.5,
        }
        axes.plot(xs * shift, means, label=line.label, **look, **stroke)
        axes.vlines(xs * shift, lows, highs, lw=1.1, **look)
    axes.set_xscale("log", base=2)
    if curves.floor:
        floor = sorted(curves.floor, key=lambda point: point[0])
        if len(floor) == 1:  # one guess is the same wherever there is a score
            floor = [(curves.sizes[0], floor[0][1]), (curves.sizes[-1], floor[0][1])]
        xs, means, lows, highs = _arrays(floor)
        axes.fill_between(xs, lows, highs, color=style.theme.faint, alpha=0.25, lw=0, zorder=1)
        axes.plot(xs, means, color=style.theme.faint, lw=1.2, label="guesser", zorder=2)
    if curves.level is not None:
        axes.axhline(curves.level, color=style.theme.faint, ls="--", lw=1.1, label=f"chance, {curves.level:g}")
    ticks = curves.sizes[:: -(-len(curves.sizes) // MOST_TICKS)]
    axes.set_xticks(ticks, [f"{size:.4g}" for size in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    if curves.ends:
        lowest = min(point.low for line in curves.lines for _, point in line.points)
        axes.set_ylim(min(curves.ends[0], lowest), curves.ends[1])
    axes.set(xlabel=curves.xlabel, ylabel=curves.ylabel)


def _arrays(points: Points) -> tuple[np.ndarray, ...]:
    """Return sizes, means, lower and upper ends."""
    rows = [(size, found.mean, found.low, found.high) for size, found in points]
    return tuple(np.array(rows, float).T)


def _rows(axes: Axes, style: Style, curves: Curves) -> None:
    for row, line in enumerate(curves.lines):
        for _, found in line.points:
            colour = style.colour(line.method)
            axes.plot([found.low, found.high], [row, row], color=colour, lw=2.0, solid_capstyle="round")
            axes.scatter([found.mean], [row], color=colour, marker=style.marker(line.method), s=40, zorder=3)
    for _, guess in list(curves.floor)[:1]:
        axes.axvspan(guess.low, guess.high, color=style.theme.faint, alpha=0.25, lw=0, label="guesser", zorder=1)
    if curves.level is not None:
        axes.axvline(curves.level, color=style.theme.faint, ls="--", lw=1.1, label=f"chance, {curves.level:g}")
    labels = [short(line.label, 30) for line in curves.lines]
    axes.set_yticks(range(len(labels)), labels, fontsize=FONT - 0.5)
    axes.set_ylim(len(curves.lines) - 0.4, -0.6)
    if curves.ends:
        axes.set_xlim(min(curves.ends[0], axes.get_xlim()[0]), curves.ends[1])
    at = f", {curves.xlabel} {curves.sizes[0]:.4g}" if curves.sizes else ""
    axes.set_xlabel(f"{curves.ylabel}{at}")
