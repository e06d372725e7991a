"""The plots of a report's first screen: each site with training alone and federated."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes

from trifed.reports.comparison.plots import MOST_NAMED
from trifed.reports.comparison.worth import Worth, alone_label
from trifed.reports.figures import Style, wrapped
from trifed.reports.results import Matrix

NAMED_ROW, PLAIN_ROWS = 0.27, 3.2
"""Inches of the row of a site with a name, and of all rows without."""
ROOM = 1.15
"""Inches of axis and labels."""


def sites_height(clients: int) -> float:
    """Return the height of `sites` in inches, legend apart."""
    return ROOM + (max(2, clients) * NAMED_ROW if clients <= MOST_NAMED else PLAIN_ROWS)


def sites(axes: Axes, style: Style, worth: Worth, values: dict[str, tuple[float, float]]) -> None:
    """Draw each site as a row from training alone to federated, the largest gain on top.

    Args:
        axes: Where to draw.
        style: Colours and markers.
        worth: The two methods and the gains.
        values: Site → number of the method that shares and of training alone, as the metric counts.
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
