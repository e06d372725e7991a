"""The plots of a report's first screen: each site, separate and federated training; accuracy against bytes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from trifed.reports.comparison.plots import MOST_NAMED, references
from trifed.reports.comparison.ranking import RankedMethod
from trifed.reports.comparison.worth import Worth, alone_label
from trifed.reports.figures import FONT, Style, bytes_axis, wrapped
from trifed.reports.results import Matrix

NAMED_ROW, PLAIN_ROWS = 0.27, 3.2
"""Inches of the row of a site with a name, and of all rows without."""
LINES_PER_INCH = 5.5
"""Lines of labels in an inch of height."""
ROOM = 1.15
"""Inches of axis and labels."""


def sites_height(clients: int) -> float:
    """Return the height of `sites` in inches, legend apart."""
    return ROOM + (max(2, clients) * NAMED_ROW if clients <= MOST_NAMED else PLAIN_ROWS)


def sites(axes: Axes, style: Style, worth: Worth, values: dict[str, tuple[float, float]]) -> None:
    """Draw each site as a row from separate to federated training, the largest gain on top.

    Args:
        axes: Where to draw.
        style: Colours and markers.
        worth: The two methods and the gains.
        values: Site → number of the method that shares and of separate training, as the metric counts.
    """
    scale = 100 if worth.deciding.share else 1
    order = sorted(values, key=lambda name: -worth.gains[name])
    numbers: Matrix = scale * np.array([values[name] for name in order], np.float64)
    rows, named = np.arange(len(order)), len(order) <= MOST_NAMED
    look, grey = style.look(worth.shared), style.theme.faint
    size = 44.0 if named else 14.0
    axes.hlines(rows, numbers.min(1), numbers.max(1), color=grey, lw=1.6 if named else 0.8, alpha=0.6, zorder=1)
    ring: dict[str, Any] = {"facecolors": "none", "edgecolors": grey, "lw": 1.4, "zorder": 3}
    axes.scatter(numbers[:, 1], rows, s=size, label=alone_label(worth), **ring)
    axes.scatter(numbers[:, 0], rows, s=size, lw=0, zorder=2, label=f"federated ({worth.shared})", **look)
    axes.set_yticks(rows if named else [], [wrapped(name) for name in order] if named else [])
    axes.set_ylim(len(order) - 0.4, -0.6)
    axes.set_ylabel("" if named else f"{len(order)} sites, largest gain on top")
    axes.set_xlabel(f"test {worth.metric}{', %' if worth.deciding.share else ''}")
    if worth.deciding.lower_is_better:
        axes.set_xlabel(f"test {worth.metric}, less is better")
    axes.grid(axis="x", color=grey, alpha=0.2, lw=0.6)
    axes.set_axisbelow(True)


def pareto_height(methods: int) -> float:
    """Return the height of `pareto` in inches, which leaves each method's label a line."""
    return max(3.2, 0.9 + 0.24 * methods)


def pareto(axes: Axes, style: Style, order: Sequence[RankedMethod]) -> None:
    """Draw the mean accuracy of each method against its bytes, with its name; a line joins the frontier.

    Methods that send nothing have no place on a logarithmic axis: the best of them is a line with its name.
    """
    sharing = [one for one in order if one.sent and one.mean is not None]
    silent = next((one for one in order if not one.sent), None)
    heights = [100 * (one.mean or 0.0) for one in order]
    reach = max(max(heights) - min(heights), 1.0)
    axes.set_ylim(min(heights) - 0.08 * reach, max(heights) + 0.08 * reach)
    if sharing:
        sent = [one.sent for one in sharing]
        axes.set_xlim(min(sent) / 2, max(sent) * (max(sent) / min(sent)) ** 0.4 * 4)  # room for the names
    axes.grid(axis="y", color=style.theme.faint, alpha=0.2, lw=0.6)
    axes.set_axisbelow(True)
    edge = sorted((one.sent, 100 * (one.mean or 0.0)) for one in sharing if one.frontier)
    axes.plot([x for x, _ in edge], [y for _, y in edge], color=style.theme.heat, lw=6, alpha=0.25, zorder=1)
    line = 1.1 * reach / (LINES_PER_INCH * (pareto_height(len(order)) - 0.7))
    places = _apart([100 * (one.mean or 0.0) for one in sharing], line)
    low, high = axes.get_ylim()
    axes.set_ylim(min([low, *(place - line for place in places)]), max([high, *(p + line for p in places)]))
    for one, place in zip(sharing, places, strict=True):
        y = 100 * (one.mean or 0.0)
        axes.scatter([one.sent], [y], s=46, zorder=3, **style.look(one.method))
        axes.annotate(
            one.method,
            (one.sent, y),
            (one.sent * 1.5, place),
            va="center",
            fontsize=FONT - 1,
            fontweight="bold" if one.frontier else "normal",
            arrowprops={"arrowstyle": "-", "color": style.theme.faint, "lw": 0.5, "shrinkA": 0, "shrinkB": 3},
        )
    if silent is not None and silent.mean is not None:
        references(axes, style, [(f"{silent.method}, sends nothing", 100 * silent.mean)])
    if sharing:
        bytes_axis(axes)
    axes.set(xlabel="bytes of one client in a round", ylabel="mean test accuracy, %")


def _apart(heights: Sequence[float], least: float) -> list[float]:
    """Return heights of labels, in the order of descending `heights`, at least `least` below one another."""
    places = list(heights)
    for number in range(1, len(places)):
        places[number] = min(places[number], places[number - 1] - least)
    shift = (sum(heights) - sum(places)) / max(1, len(places))
    return [place + shift for place in places]
