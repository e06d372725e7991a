"""Plots of a run or a comparison, each drawn onto given axes; pages and pictures share them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_rgba
from matplotlib.ticker import MaxNLocator, NullLocator

from trifed.reports.figures import Style, bytes_axis, control_lines, short
from trifed.reports.format import control_label, size
from trifed.reports.results import Matrix, Partition, Point, Spread, Study, Tuning

MOST_NAMED = 26
"""With more clients than this the clients' names are left out."""
MOST_LABELS = 20
MOST_BANDS = 4
SHADES = 9
REACH = 20.0
"""Points beyond the methods' accuracies up to which an axis is stretched for a control."""


def curves(axes: Axes, style: Style, partition: Partition) -> None:
    """Draw mean accuracy over rounds, a band from worst to best client, controls as lines."""
    for place, (method, found) in enumerate(partition.methods.items()):
        points = [point for point in found.curve if point.mean is not None]
        rounds = [point.round for point in points]
        axes.plot(rounds, _percent(points, "mean"), label=method, **_line(style, method, place, partition.methods))
        if len(partition.methods) <= MOST_BANDS:
            ends = (_percent(points, "worst"), _percent(points, "best"))
            axes.fill_between(rounds, *ends, color=style.colour(method), alpha=0.07, lw=0)
    _controls(axes, style, partition)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="round", ylabel=f"mean test {partition.metric}, %")


def curves_over_bytes(axes: Axes, style: Style, partition: Partition) -> None:
    """Draw mean accuracy against the bytes sent so far; a method that sends nothing is a flat line."""
    for place, (method, found) in enumerate(partition.methods.items()):
        points = [point for point in found.curve if point.mean is not None]
        sent = [point for point in points if point.bytes]
        look = _line(style, method, place, partition.methods)
        if sent:
            axes.plot([point.bytes or 0.0 for point in sent], _percent(sent, "mean"), label=method, **look)
        elif points:
            level = _percent(points, "mean")[-1]
            axes.axhline(level, **{**look, "ls": (0, (4, 1.5)), "marker": ""}, label=f"{method}, sends nothing")
    _controls(axes, style, partition)
    bytes_axis(axes)
    axes.set(xlabel="sent so far, all clients, up and down", ylabel=f"mean test {partition.metric}, %")


def clients(axes: Axes, style: Style, partition: Partition) -> None:
    """Draw each client as a row, each method as a mark; the controls' means as lines."""
    names = partition.clients
    shown = [(m, f.client_accuracy) for m, f in partition.methods.items() if len(f.client_accuracy) == len(names)]
    for place, (method, found) in enumerate(shown):
        shift = 0.5 * (place - (len(shown) - 1) / 2) / max(1, len(shown))  # equal results do not hide each other
        dots = [(100 * value, row + shift) for row, value in enumerate(found) if value is not None]
        look: dict[str, Any] = {"color": style.colour(method), "marker": style.marker(method), "label": method}
        axes.scatter([x for x, _ in dots], [y for _, y in dots], s=20, lw=0, zorder=3, **look)
    _controls(axes, style, partition, upright=True)
    named = len(names) <= MOST_NAMED
    _rows(axes, names if named else [], len(names), f"test {partition.metric}, %")
    axes.grid(axis="y", color=style.theme.faint, alpha=0.25, lw=0.6)
    axes.set_axisbelow(True)
    axes.set_ylabel("" if named else f"{len(names)} clients")


def worst_to_best(axes: Axes, style: Style, partition: Partition) -> None:
    """Draw each method as a row: worst client, mean, best client; the controls below in grey."""
    rows: list[tuple[str, str, str, Spread]]
    rows = [(name, style.colour(name), style.marker(name), found) for name, found in partition.methods.items()]
    grey = style.theme.faint
    rows += [(control_label(name), grey, "|", found) for name, found in partition.controls.items()]
    for row, (_, colour, marker, found) in enumerate(rows):
        if found.worst is None or found.best is None or found.mean is None:
            continue
        ends = [100 * found.worst, 100 * found.best]
        axes.plot(ends, [row, row], color=colour, lw=2.2, solid_capstyle="round")
        axes.scatter(ends, [row, row], color=colour, marker="|", s=60)
        axes.scatter([100 * found.mean], [row], color=colour, marker=marker, s=42, zorder=3)
    label = f"test {partition.metric}, %: worst client, mean, best client"
    _rows(axes, [short(name) for name, *_ in rows], len(rows), label)


def sent(axes: Axes, style: Style, partition: Partition) -> None:
    """Draw bytes of one client on a log scale: up and down a round, and what travels once, each as a bar."""
    ticks, row, largest = [], 0.0, 10.0
    for method, found in partition.methods.items():
        parts = [("up", found.bytes.up_per_round, 1.0, False), ("down", found.bytes.down_per_round, 0.55, False)]
        once = found.bytes.once_up + found.bytes.once_down
        parts += [("once", once, 1.0, True)] if once else []
        if not any(count for _, count, *_ in parts):
            axes.text(1.3, row, "nothing", va="center")
            parts = []
        for place, (way, count, alpha, hollow) in enumerate(parts):
            look: dict[str, Any] = {"fill": not hollow, "ls": "--" if hollow else "-", "alpha": alpha}
            look |= {"facecolor": style.colour(method), "edgecolor": style.colour(method)}
            axes.barh(row + 0.8 * place, max(count, 1), 0.72, **look)
            axes.text(max(count, 1) * 1.25, row + 0.8 * place, f"{size(count)} {way}", va="center")
            largest = max(largest, count)
        ticks.append((row + 0.4 * max(0, len(parts) - 1), method))
        row += 0.8 * max(1, len(parts)) + 0.5
    axes.set_yticks([tick for tick, _ in ticks], [short(name) for _, name in ticks])
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
    _heat_map(axes, counts, (0.0, max(1.0, float(counts.max(initial=0)))), names, style)
    if len(labels) <= MOST_LABELS:
        axes.set_xticks(range(len(labels)), [short(label, 16) for label in labels], rotation=60, ha="right")
    else:
        axes.set_xlabel(f"{len(labels)} labels")


def overview(axes: Axes, style: Style, study: Study) -> None:
    """Draw each partition as a row: every method's mean with its interval, the controls as grey ticks."""
    partitions = list(study.results.values())
    for place, method in enumerate(study.methods):
        shift = 0.7 * (place - (len(study.methods) - 1) / 2) / max(1, len(study.methods))
        colour = style.colour(method)
        look: dict[str, Any] = {"color": colour, "marker": style.marker(method), "label": method}
        found = [(row + shift, p.methods[method]) for row, p in enumerate(partitions) if method in p.methods]
        dots = [(100 * one.mean, row) for row, one in found if one.mean is not None]
        axes.scatter([x for x, _ in dots], [row for _, row in dots], s=26, zorder=3, **look)
        for row, one in found:
            if one.interval is not None:
                axes.plot([100 * end for end in one.interval], [row, row], color=colour, lw=1.3)
    low, high = axes.get_xlim()
    controls = list(dict.fromkeys(name for partition in partitions for name in partition.controls))
    for line, control in zip(control_lines(len(controls)), controls, strict=True):
        means = [(row, p.controls[control].mean) for row, p in enumerate(partitions) if control in p.controls]
        known = [(row, 100 * mean) for row, mean in means if mean is not None]
        ticks = [(row, mean) for row, mean in known if low - REACH <= mean <= high + REACH]
        low_high = ([row - 0.42 for row, _ in ticks], [row + 0.42 for row, _ in ticks])
        label = control_label(control) + ("" if len(ticks) == len(known) else ", partly off the scale")
        grey: dict[str, Any] = {"colors": style.theme.faint, "linestyles": line, "lw": 1.2, "label": label}
        axes.vlines([x for _, x in ticks], *low_high, **grey)
    _rows(axes, [short(name, 24) for name in study.results], len(partitions), "mean test accuracy, %")


def learning_rates(axes: Axes, style: Style, tuning: Tuning) -> None:
    """Draw validation accuracy over the learning rates tried; the chosen rate is ringed."""
    everything: set[float] = set()
    for place, (method, rates) in enumerate(tuning.methods.items()):
        tried = sorted((float(rate), 100 * value) for rate, value in rates.grid.items() if value is not None)
        everything |= {rate for rate, _ in tried}
        look = _line(style, method, place, tuning.methods)
        axes.plot([rate for rate, _ in tried], [value for _, value in tried], label=method, **look)
        taken = [(rate, value) for rate, value in tried if rate == rates.chosen]
        ring: dict[str, Any] = {"facecolors": "none", "edgecolors": style.colour(method), "s": 90 + 60 * place}
        axes.scatter([rate for rate, _ in taken], [value for _, value in taken], **ring)
    axes.set_xscale("log")
    axes.set_xticks(sorted(everything), [f"{rate:g}" for rate in sorted(everything)], minor=False)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set(xlabel="learning rate", ylabel="validation accuracy, %")


def _rows(axes: Axes, names: Sequence[str], count: int, xlabel: str) -> None:
    """Name the rows of a plot, the first on top."""
    axes.set_yticks(range(len(names)), map(short, names))
    axes.set_ylim(count - 0.4, -0.6)
    axes.set_xlabel(xlabel)


def _line(style: Style, method: str, place: int, methods: Sequence[str] | dict[str, Any]) -> dict[str, Any]:
    """Return a line's look. Of a few, later ones lie below and are wider: equal curves do not hide each other."""
    below = place if len(methods) <= MOST_BANDS else 0
    width = 1.5 + 0.7 * below
    look: dict[str, Any] = {"color": style.colour(method), "marker": style.marker(method)}
    return {**look, "lw": width, "ms": 2.5 + width, "zorder": 9 - 0.1 * below}


def _controls(axes: Axes, style: Style, partition: Partition, upright: bool = False) -> None:
    """Draw lines at the controls' means; one far from every method is only named, to save room."""
    known = [(name, 100 * spread.mean) for name, spread in partition.controls.items() if spread.mean is not None]
    draw, limits = (axes.axvline, axes.get_xlim()) if upright else (axes.axhline, axes.get_ylim())
    for line, (name, mean) in zip(control_lines(len(known)), known, strict=True):
        look: dict[str, Any] = {"color": style.theme.faint, "ls": line, "lw": 1.2}
        if limits[0] - REACH <= mean <= limits[1] + REACH:
            draw(mean, label=f"{control_label(name)}, {mean:.1f}", **look)
        else:
            axes.plot([], [], label=f"{control_label(name)}, {mean:.1f}: off the scale", **look)


def _heat_map(axes: Axes, values: Matrix, limits: tuple[float, float], names: Sequence[str], style: Style) -> None:
    """Draw steps of one colour's opacity, which suit a light and a dark page alike."""
    ends = [to_rgba(style.theme.heat, alpha) for alpha in (0.04, 1.0)]
    shades = LinearSegmentedColormap.from_list("heat", ends, N=SHADES)
    edges = [np.arange(count + 1) - 0.5 for count in reversed(values.shape)]
    mesh = axes.pcolormesh(*edges, values, cmap=shades, vmin=limits[0], vmax=limits[1], linewidth=0)
    axes.figure.colorbar(mesh, ax=axes, shrink=0.8, pad=0.03).outline.set_visible(False)
    axes.invert_yaxis()
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    named = len(names) <= MOST_NAMED
    axes.set_yticks(range(len(names)) if named else [], [short(name, 18) for name in names] if named else [])
    axes.set_ylabel("" if named else f"{len(names)} clients")
    axes.set_xticks([])


def _percent(points: Sequence[Point], name: str) -> list[float]:
    return [100 * (getattr(point, name) or 0.0) for point in points]
