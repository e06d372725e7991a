"""An audit's curves: a score with its interval against a size, one line a method and knowledge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from trifed.reports.audit.findings import Estimate
from trifed.reports.style import FONT, Style, legend_below, short

STROKES = {"factors": "-", "start": "--", "base": ":"}
MOST_TICKS = 8
DODGE = 0.05
"""How far lines stand from each other along the axis, as a power of 2: intervals should not hide others."""


@dataclass(frozen=True)
class Line:
    """A line of a figure. `knows` gives its stroke, `method` its colour and marker."""

    label: str
    method: str
    knows: str
    points: list[tuple[float, Estimate]]


@dataclass(frozen=True)
class Curves:
    """What a figure of lines shows.

    `floor`: what a guesser has at each x; `level`: what chance gives; `ends`: of the score's axis, which grows
    where a value lies below.
    """

    lines: list[Line]
    xlabel: str
    ylabel: str
    floor: Sequence[tuple[float, Estimate]] = ()
    level: float | None = None
    ends: tuple[float, float] | None = None

    @property
    def sizes(self) -> list[float]:
        """All x values."""
        return sorted({x for line in self.lines for x, _ in line.points})

    def draw(self, figure: Figure, style: Style) -> None:
        """A curve a line where sizes differ, else a row a line."""
        axes = figure.subplots()
        if len(self.sizes) > 1:
            _curves(axes, self, style)
            legend_below(figure, axes, columns=1 if self.longest > 24 else 2)
        else:
            _rows(axes, self, style)
            if self.floor or self.level is not None:
                legend_below(figure, axes)

    @property
    def longest(self) -> int:
        """Letters of the longest label."""
        return max(len(line.label) for line in self.lines)

    def height(self) -> float:
        """Inches."""
        if len(self.sizes) <= 1:
            return 1.1 + 0.3 * len(self.lines)
        return 3.3 + 0.19 * (len(self.lines) + 1) / (1 if self.longest > 24 else 2)


def _curves(axes: Axes, curves: Curves, style: Style) -> None:
    for place, line in enumerate(curves.lines):
        shift = 2 ** (DODGE * (place - (len(curves.lines) - 1) / 2))
        points = sorted(line.points, key=lambda point: point[0])
        xs = [x * shift for x, _ in points]
        look: dict[str, Any] = {"color": style.colour(line.method), "zorder": 3}
        stroke: dict[str, Any] = {
            "ls": STROKES[line.knows],
            "marker": style.marker(line.method),
            "ms": 4.5,
            "lw": 1.5,
        }
        axes.plot(xs, [found.mean for _, found in points], label=line.label, **look, **stroke)
        axes.vlines(xs, [found.low for _, found in points], [found.high for _, found in points], lw=1.1, **look)
    axes.set_xscale("log", base=2)
    _floor(axes, curves, style)
    if curves.level is not None:
        axes.axhline(curves.level, color=style.theme.faint, ls="--", lw=1.1, label=f"chance, {curves.level:g}")
    _ticks(axes, curves.sizes)
    if curves.ends:
        axes.set_ylim(
            min(curves.ends[0], *(point.low for line in curves.lines for _, point in line.points)), curves.ends[1]
        )
    axes.set(xlabel=curves.xlabel, ylabel=curves.ylabel)


def _floor(axes: Axes, curves: Curves, style: Style) -> None:
    """The guesser as a grey line with its interval as a band."""
    if not curves.floor:
        return
    floor = sorted(curves.floor, key=lambda point: point[0])
    xs = np.array([x for x, _ in floor], float)
    means, lows, highs = (np.array([getattr(f, end) for _, f in floor]) for end in ("mean", "low", "high"))
    if len(xs) == 1:  # one guess is the same wherever there is a score
        xs, means, lows, highs = (np.repeat(values, 2) for values in (xs, means, lows, highs))
        xs = np.array([min(curves.sizes), max(curves.sizes)], float)
    axes.fill_between(xs, lows, highs, color=style.theme.faint, alpha=0.25, lw=0, zorder=1)
    axes.plot(xs, means, color=style.theme.faint, lw=1.2, label="guesser", zorder=2)


def _ticks(axes: Axes, sizes: list[float]) -> None:
    step = -(-len(sizes) // MOST_TICKS)
    shown = sizes[::step]
    axes.set_xticks(shown, [f"{size:.4g}" for size in shown])
    axes.xaxis.set_minor_locator(NullLocator())


def _rows(axes: Axes, curves: Curves, style: Style) -> None:
    """One size alone: each line a row, its interval a bar."""
    for row, line in enumerate(curves.lines):
        for _, found in line.points:
            colour = style.colour(line.method)
            axes.plot([found.low, found.high], [row, row], color=colour, lw=2.0, solid_capstyle="round")
            axes.scatter([found.mean], [row], color=colour, marker=style.marker(line.method), s=40, zorder=3)
    for _, guess in list(curves.floor)[:1]:
        axes.axvspan(guess.low, guess.high, color=style.theme.faint, alpha=0.25, lw=0, label="guesser", zorder=1)
    if curves.level is not None:
        axes.axvline(curves.level, color=style.theme.faint, ls="--", lw=1.1, label=f"chance, {curves.level:g}")
    axes.set_yticks(
        range(len(curves.lines)), [short(line.label, 30) for line in curves.lines], fontsize=FONT - 0.5
    )
    axes.set_ylim(len(curves.lines) - 0.4, -0.6)
    if curves.ends:
        axes.set_xlim(min(curves.ends[0], axes.get_xlim()[0]), curves.ends[1])
    at = f", {curves.xlabel} {curves.sizes[0]:.4g}" if curves.sizes else ""
    axes.set(xlabel=f"{curves.ylabel}{at}")
