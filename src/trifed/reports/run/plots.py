"""A run and its baselines as one picture: accuracy over rounds, accuracy of each client, bytes."""

from __future__ import annotations

import warnings
from pathlib import Path

from matplotlib.figure import Figure

from trifed.common.files import whole_file
from trifed.reports.comparison import plots as panels
from trifed.reports.figures import MISSING_GLYPH
from trifed.reports.results import Source
from trifed.reports.style import LIGHT, Style, drawing

INCHES = (13.0, 4.4)


def plot_result(source: Source, target: Path) -> None:
    """Mean accuracy over rounds, each client, and what one client sends, as a PNG."""
    style = Style(LIGHT, tuple(source.study.methods))
    partition = next(iter(source.study.results.values()))
    with drawing(LIGHT), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=MISSING_GLYPH)
        figure = Figure(figsize=INCHES, layout="constrained")
        curves, clients, sent = figure.subplots(1, 3, width_ratios=(1.25, 1, 0.95))
        panels.curves(curves, partition, style)
        curves.set_title("Mean over clients (band: worst to best)")
        curves.legend(fontsize=8)
        panels.clients(clients, partition, style)
        clients.set_title("Each client")
        panels.sent(sent, partition, style)
        sent.set_title("What one client sends and receives")
        with whole_file(target) as partial:
            figure.savefig(partial, dpi=130, format="png")
