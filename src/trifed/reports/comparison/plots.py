"""Plots of a run or a comparison, each drawn onto given axes; pages and pictures share them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_rgba
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator

from trifed.common.files import whole_file
from trifed.reports.figures import (
    FONT,
    LIGHT,
    NotebookFigure,
    Style,
    bytes_axis,
    drawing,
    name_beside,
    short,
    wrapped,
)
from trifed.reports.format import control_label, plural, size
from trifed.reports.results import Matrix, Partition, Point, Source, Spread, Study, Tuning

MOST_NAMED = 26
"""With more clients than this the clients' names are left out."""
MOST_LABELS = 20
MOST_WIDE = 4
REFERENCE_LINES = ("--", "-.")
"""Line styles of the reference lines of a plot, which has at most as many."""
TELLING = ("probe-alone", "probe-all", "class-means", "majority")
"""Controls in the order in which reference lines are chosen."""
SHADES = 9
NAME_SHARE = 0.38
"""Part of a plot's width that the name of an upright line takes."""
REACH = 20.0
"""Points beyond the methods' accuracies up to which an axis is stretched for a control."""


def plot_result(source: Source, target: Path) -> None:
    """Write the figure of a run and its baselines as a PNG file."""
    figure = result_figure(source)
    with drawing(LIGHT), whole_file(target) as partial:
        figure.savefig(partial, dpi=130, format="png")


ABOVE_NAMES = 34
"""Points between a plot and its title that two names of upright lines need."""


def result_figure(source: Source) -> Figure:
    """Return a run and its baselines as one figure: accuracy over rounds, accuracy of each client, bytes."""
    partition = next(iter(source.study.results.values()))
    plots = {
        "Mean over clients (band: worst to best)": curves,
        "Each client": clients,
        "What one client sends and receives": sent,
    }
    with drawing(LIGHT):
        figure = NotebookFigure(figsize=(13.0, 4.4), layout="constrained")
        panels = figure.subplots(1, len(plots), width_ratios=(1.25, 1, 0.95))
        for axes, (title, plot) in zip(panels, plots.items(), strict=True):
            plot(axes, Style(LIGHT, tuple(source.study.methods)), partition)
            axes.set_title(title, pad=ABOVE_NAMES if plot is clients else None)
        panels[0].legend(fontsize=8)
    return figure


def curves(axes: Axes, style: Style, partition: Partition) -> None:
    """Draw mean accuracy over rounds, the first method's band from worst to best client, controls as lines."""
    for place, (method, found) in enumerate(partition.methods.items()):
        points = [point for point in found.curve if point.mean is not None]
        rounds = [point.round for point in points]
        means = _scaled(partition, points, "mean")
        axes.plot(rounds, means, label=method, **_line(style, method, place, partition.methods))
        if place == 0:
            ends = (_scaled(partition, points, "worst"), _scaled(partition, points, "best"))
            axes.fill_between(rounds, *ends, color=style.colour(method), alpha=0.07, lw=0)
        kept = [point for point in points if point.round in found.kept_rounds]
        ring: dict[str, Any] = {"facecolors": "none", "edgecolors": style.colour(method), "s": 130, "zorder": 10}
        axes.scatter([point.round for point in kept], _scaled(partition, kept, "mean"), **ring)
    _end_at_all(axes, partition)
    references(axes, style, _controls(partition))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="round", ylabel=f"mean {partition.shown_metric}")


def curves_over_bytes(axes: Axes, style: Style, partition: Partition) -> None:
    """Draw mean accuracy against the bytes sent so far; the best methods that send nothing are flat lines."""
    silent: list[tuple[str, float]] = []
    for place, (method, found) in enumerate(partition.methods.items()):
        points = [point for point in found.curve if point.mean is not None]
        sent = [point for point in points if point.bytes]
        look = _line(style, method, place, partition.methods)
        if sent:
            axes.plot(
                [point.bytes or 0.0 for point in sent], _scaled(partition, sent, "mean"), label=method, **look
            )
        elif points:
            silent.append((f"{method}, sends nothing", _scaled(partition, points, "mean")[-1]))
    _end_at_all(axes, partition)
    references(axes, style, sorted(silent, key=lambda line: -line[1]) or _controls(partition))
    bytes_axis(axes)
    axes.set(xlabel="sent so far, all clients, up and down", ylabel=f"mean {partition.shown_metric}")


def clients(axes: Axes, style: Style, partition: Partition) -> None:
    """Draw each client as a row, each method as a mark; the controls' means as lines."""
    names = partition.clients
    shown = [(m, f.client_accuracy) for m, f in partition.methods.items() if len(f.client_accuracy) == len(names)]
    for place, (method, found) in enumerate(shown):
        shift = 0.5 * (place - (len(shown) - 1) / 2) / max(1, len(shown))  # equal results do not hide each other
        rows = np.arange(len(names)) + shift
        _marks(axes, found, rows, partition.scale, s=20, lw=0, label=method, **style.look(method))
    _end_at_all(axes, partition, upright=True)
    references(axes, style, _controls(partition), upright=True)
    named = len(names) <= MOST_NAMED
    _rows(axes, names if named else [], len(names), partition.shown_metric)
    axes.grid(axis="y", color=style.theme.faint, alpha=0.25, lw=0.6)
    axes.set_axisbelow(True)
    axes.set_ylabel("" if named else f"{len(names)} clients")


def worst_to_best(axes: Axes, style: Style, partition: Partition) -> None:
    """Draw each method as a row: worst client, mean, best client; the controls below in grey."""
    grey = {"color": style.theme.faint, "marker": "|"}
    rows: list[tuple[str, dict[str, Any], Spread]] = [
        *((name, style.look(name), found) for name, found in partition.methods.items()),
        *((control_label(name), grey, found) for name, found in partition.controls.items()),
    ]
    for row, (_, look, found) in enumerate(rows):
        if found.worst is None or found.best is None or found.mean is None:
            continue
        ends = [partition.scale * found.worst, partition.scale * found.best]
        axes.plot(ends, [row, row], color=look["color"], lw=2.2, solid_capstyle="round")
        axes.scatter(ends, [row, row], color=look["color"], marker="|", s=60)
        axes.scatter([partition.scale * found.mean], [row], s=42, zorder=3, **look)
    _end_at_all(axes, partition, upright=True)
    _rows(axes, [name for name, *_ in rows], len(rows), partition.shown_metric)


def _end_at_all(axes: Axes, partition: Partition, upright: bool = False) -> None:
    """Let the axis of a percentage end just above 100: no number beyond it has a meaning."""
    low, high = axes.get_xlim() if upright else axes.get_ylim()
    if partition.is_percentage and high > 100:
        (axes.set_xlim if upright else axes.set_ylim)(low, 100 + 0.03 * (100 - low))


def sent(axes: Axes, style: Style, partition: Partition) -> None:
    """Draw bytes of one client on a log scale: up and down a round, and what travels once, each as a bar."""
    ticks, row, largest = [], 0.0, 10.0
    for method, found in partition.methods.items():
        colour, once = style.colour(method), found.bytes.once_up + found.bytes.once_down
        parts = [("up", found.bytes.up_per_round, 1.0), ("down", found.bytes.down_per_round, 0.55)]
        parts += [("once", once, 1.0)] if once else []
        if not any(count for _, count, _ in parts):
            axes.text(1.3, row, "nothing", va="center")
            parts = []
        for place, (direction, count, alpha) in enumerate(parts):
            look: dict[str, Any] = {"fill": False, "ls": "--"} if direction == "once" else {}
            y, width = row + 0.8 * place, max(count, 1)
            axes.barh(y, width, 0.72, alpha=alpha, facecolor=colour, edgecolor=colour, **look)
            axes.text(width * 1.25, y, f"{size(count)} {direction}", va="center")
            largest = max(largest, count)
        ticks.append((row + 0.4 * max(0, len(parts) - 1), method))
        row += 0.8 * max(1, len(parts)) + 0.5
    axes.set_yticks([tick for tick, _ in ticks], [wrapped(name) for _, name in ticks])
    axes.set_ylim(row - 0.7, -0.7)
    bytes_axis(axes)
    axes.set_xlim(1, largest**1.75)  # room for the numbers beside the bars
    axes.set(xlabel="bytes of one client, log scale")


def similarity(axes: Axes, style: Style, matrix: Matrix, names: Sequence[str]) -> None:
    """Draw a client × client matrix; the shades span the entries off the diagonal."""
    off = matrix[~np.eye(len(matrix), dtype=bool)]
    low, high = float(off.min()), float(off.max())
    _heat_map(axes, matrix, (low, high) if high > low else (0.0, max(high, 1.0)), names, style)
    axes.set_aspect("equal")


def label_counts(axes: Axes, style: Style, counts: Matrix, names: Sequence[str], labels: Sequence[str]) -> None:
    """Draw training examples by client and label."""
    _heat_map(axes, counts, (0.0, max(1.0, float(counts.max(initial=0)))), names, style, whole=True)
    if len(labels) <= MOST_LABELS:
        axes.set_xticks(range(len(labels)), [short(label, 16) for label in labels], rotation=60, ha="right")
    else:
        axes.set_xlabel(plural(len(labels), "label"))


def overview(axes: Axes, style: Style, study: Study) -> None:
    """Draw each data set as a row: every method's mean with its interval."""
    partitions = list(study.results.values())
    for place, method in enumerate(study.methods):
        shift = 0.7 * (place - (len(study.methods) - 1) / 2) / max(1, len(study.methods))
        found = [(row + shift, p.methods[method]) for row, p in enumerate(partitions) if method in p.methods]
        rows = np.array([row for row, _ in found])
        _marks(axes, [one.mean for _, one in found], rows, 100.0, s=26, label=method, **style.look(method))
        for row, one in found:
            if one.interval is not None:
                axes.plot([100 * end for end in one.interval], [row, row], color=style.colour(method), lw=1.3)
    _rows(axes, list(study.results), len(partitions), "mean test accuracy, %")


def learning_rates(axes: Axes, style: Style, tuning: Tuning) -> None:
    """Draw the deciding metric on validation data over the learning rates tried; the chosen rate is ringed."""
    deciding = tuning.deciding
    scale = 100 if deciding.share else 1
    everything: set[float] = set()
    for place, (method, rates) in enumerate(tuning.methods.items()):
        tried = {float(rate): scale * value for rate, value in rates.grid.items() if value is not None}
        everything |= tried.keys()
        look = _line(style, method, place, tuning.methods)
        axes.plot(sorted(tried), [tried[rate] for rate in sorted(tried)], label=method, **look)
        chosen = [rate for rate in tried if rate == rates.chosen]
        ring: dict[str, Any] = {"facecolors": "none", "edgecolors": style.colour(method), "s": 90 + 60 * place}
        axes.scatter(chosen, [tried[rate] for rate in chosen], **ring)
    axes.set_xscale("log")
    axes.set_xticks(sorted(everything), [f"{rate:g}" for rate in sorted(everything)], minor=False)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set(xlabel="learning rate", ylabel=f"validation {deciding.name}{', %' if deciding.share else ''}")


def _rows(axes: Axes, names: Sequence[str], count: int, xlabel: str) -> None:
    """Name the rows of a plot, the first on top."""
    axes.set_yticks(range(len(names)), list(map(wrapped, names)))
    axes.set_ylim(count - 0.4, -0.6)
    axes.set_xlabel(xlabel)


def _line(style: Style, method: str, place: int, methods: Sequence[str] | dict[str, Any]) -> dict[str, Any]:
    """Return a line's look. Of a few, later ones lie below and are wider: equal curves do not hide each other."""
    below = place if len(methods) <= MOST_WIDE else 0
    width = 1.5 + 0.7 * below
    return {**style.look(method), "lw": width, "ms": 2.5 + width, "zorder": 9 - 0.1 * below}


def references(axes: Axes, style: Style, lines: Sequence[tuple[str, float]], upright: bool = False) -> None:
    """Draw at most two reference lines, each with its name on it; one far from everything else is left out.

    The names of two upright lines extend away from each other. If the plot is too narrow there, and with one line,
    a name extends towards the middle. The name of a level line is beside the plot.
    """
    low, high = axes.get_xlim() if upright else axes.get_ylim()
    near = [line for line in lines if low - REACH <= line[1] <= high + REACH][: len(REFERENCE_LINES)]
    low, high = min([low, *(value for _, value in near)]), max([high, *(value for _, value in near)])
    for number, (name, value) in enumerate(sorted(near, key=lambda line: line[1])):
        look: dict[str, Any] = {"color": style.theme.faint, "ls": REFERENCE_LINES[number], "lw": 1.2, "zorder": 0}
        shown = f"{name}, {value:.3g}"
        text: dict[str, Any] = {"fontsize": FONT - 1.5, "color": style.theme.faint}
        if upright:
            axes.axvline(value, **look)
            before, after = (part / ((high - low) or 1) for part in (value - low, high - value))
            apart = len(near) > 1 and (after if number else before) >= NAME_SHARE
            leftwards = number == 0 if apart else before > after
            side: dict[str, Any] = {"ha": "right" if leftwards else "left", "va": "bottom"}
            below = "" if number == 0 else "\n"  # two names are in two lines
            axes.annotate(f" {shown} {below}", (value, 1.0), xycoords=axes.get_xaxis_transform(), **side, **text)
        else:
            axes.axhline(value, **look)
            name_beside(axes, style, shown, value, "center" if len(near) == 1 else "bottom" if number else "top")


def _controls(partition: Partition) -> list[tuple[str, float]]:
    """Return labels and means of the controls, those that say most about a method first."""
    known = {
        name: partition.scale * spread.mean
        for name, spread in partition.controls.items()
        if spread.mean is not None
    }
    order = [*(name for name in TELLING if name in known), *(name for name in known if name not in TELLING)]
    return [(control_label(name), known[name]) for name in order]


def _heat_map(
    axes: Axes,
    values: Matrix,
    limits: tuple[float, float],
    names: Sequence[str],
    style: Style,
    whole: bool = False,
) -> None:
    """Draw steps of one colour's opacity, which suit a light and a dark page alike. `whole`: values are counts."""
    ends = [to_rgba(style.theme.heat, alpha) for alpha in (0.04, 1.0)]
    shades = LinearSegmentedColormap.from_list("heat", ends, N=SHADES)
    edges = [np.arange(count + 1) - 0.5 for count in reversed(values.shape)]
    mesh = axes.pcolormesh(*edges, values, cmap=shades, vmin=limits[0], vmax=limits[1], linewidth=0)
    ticks = MaxNLocator(5, integer=whole)
    axes.figure.colorbar(mesh, ax=axes, shrink=0.8, pad=0.03, ticks=ticks).outline.set_visible(False)
    axes.invert_yaxis()
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    named = len(names) <= MOST_NAMED
    axes.set_yticks(range(len(names)) if named else [], [wrapped(name) for name in names] if named else [])
    axes.set_ylabel("" if named else f"{len(names)} clients")
    axes.set_xticks([])


def _scaled(partition: Partition, points: Sequence[Point], name: str) -> list[float]:
    return [partition.scale * (getattr(point, name) or 0.0) for point in points]


def _marks(axes: Axes, found: Sequence[float | None], rows: np.ndarray, scale: float, **look: Any) -> None:
    """Draw a mark in the row of each value that is known."""
    values = scale * np.array(found, np.float64)
    axes.scatter(values[~np.isnan(values)], rows[~np.isnan(values)], zorder=3, **look)
