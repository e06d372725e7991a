"""A run and its baselines as one picture: accuracy over rounds, accuracy of each client, bytes."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from trifed.common.files import whole_file
from trifed.reports.comparison import plots
from trifed.reports.figures import LIGHT, Style, drawing
from trifed.reports.results import Source

INCHES = (13.0, 4.4)
PANELS = {
    "Mean over clients (band: worst to best)": plots.curves,
    "Each client": plots.clients,
    "What one client sends and receives": plots.sent,
}


def plot_result(source: Source, target: Path) -> None:
    """Write the picture as a PNG."""
    style = Style(LIGHT, tuple(source.study.methods))
    partition = next(iter(source.study.results.values()))
    with drawing(LIGHT):
        figure = Figure(figsize=INCHES, layout="constrained")
        panels = figure.subplots(1, len(PANELS), width_ratios=(1.25, 1, 0.95))
        for axes, (title, plot) in zip(panels, PANELS.items(), strict=True):
            plot(axes, style, partition)
            axes.set_title(title)
        panels[0].legend(fontsize=8)
        with whole_file(target) as partial:
            figure.savefig(partial, dpi=130, format="png")
