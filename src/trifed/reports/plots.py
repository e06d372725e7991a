"""A run and its baselines as one picture: accuracy over rounds, accuracy of each client, bytes."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from trifed.reports.tables import CONTROLS, size
from trifed.runner import RunResult

COLOURS = ("#0b6e4f", "#d1495b", "#30638e", "#edae49", "#6a4c93")
GREY = "#8a8a8a"


def plot_result(result: RunResult, target: Path) -> None:
    """Mean accuracy over rounds with the controls as lines, each client as a dot, bytes on a log scale."""
    runs = [result, *result.baselines.values()]
    figure, axes = plt.subplots(1, 3, figsize=(13, 4.2), width_ratios=(1.25, 1, 0.9), layout="constrained")
    _curves(axes[0], runs)
    _clients(axes[1], runs)
    _bytes(axes[2], runs)
    scratch = target.with_name(f".{target.name}")
    figure.savefig(scratch, dpi=130, format="png")
    plt.close(figure)
    scratch.replace(target)


def _curves(axes: Axes, runs: list[RunResult]) -> None:
    for place, (colour, run) in enumerate(zip(COLOURS, runs, strict=False)):
        points = [p for p in run.summary["curve"] if p["mean"] is not None]
        rounds = [p["round"] for p in points]
        axes.plot(
            rounds,
            [100 * p["mean"] for p in points],
            color=colour,
            label=run.summary["method"],
            lw=2,
            zorder=9 - place,
        )
        low, high = ([100 * p[end] for p in points] for end in ("worst", "best"))
        axes.fill_between(rounds, low, high, color=colour, alpha=0.08, lw=0)
    for style, (name, spread) in zip(
        ("--", "-.", ":", (0, (1, 5))), runs[0].summary["controls"].items(), strict=False
    ):
        if spread["mean"] is not None:
            axes.axhline(100 * spread["mean"], color=GREY, ls=style, lw=1.2, label=CONTROLS[name])
    axes.set(xlabel="round", ylabel="test accuracy, %", title="Mean over clients (band: worst to best)")
    axes.legend(frameon=False, fontsize=8)


def _clients(axes: Axes, runs: list[RunResult]) -> None:
    names = [client["name"] for client in runs[0].summary["clients"]]
    for place, (colour, run) in enumerate(zip(COLOURS, runs, strict=False)):
        shift = 0.18 * (place - (len(runs) - 1) / 2)  # side by side, so that equal results do not hide each other
        found = [c["now"]["accuracy"] if c["now"] else None for c in run.summary["clients"]]
        dots = [(100 * a, row + shift) for row, a in enumerate(found) if a is not None]
        axes.scatter([x for x, _ in dots], [y for _, y in dots], color=colour, s=36, label=run.summary["method"])
    if len(names) <= 25:
        axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.invert_yaxis()
    axes.grid(axis="y", color="#e6e6e6", lw=0.8)
    axes.set_axisbelow(True)
    axes.set(xlabel="test accuracy, %", title="Each client")


def _bytes(axes: Axes, runs: list[RunResult]) -> None:
    sent = [(run.summary["method"], run.summary["bytes"]["total"]) for run in runs]
    for row, (colour, (_, count)) in enumerate(zip(COLOURS, sent, strict=False)):
        axes.barh(row, max(count, 1), color=colour)
        axes.text(max(count, 1) * 1.3, row, size(count) if count else "nothing", va="center", fontsize=9)
    axes.set_yticks(range(len(sent)), [name for name, _ in sent])
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlim(1, 300 * max(1, *(count for _, count in sent), 1))
    axes.set(xlabel="bytes, up and down", title="Sent in all")
