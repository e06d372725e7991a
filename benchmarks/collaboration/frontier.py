"""What each exchange gives for its bytes, one panel a setting; `python benchmarks/figures.py` draws it.

Across: bytes up a round and client, all in, on a logarithmic scale; variants that send nothing are at the left
edge. Up: mean test accuracy over seeds and clients, with the interval of `headroom.py`. Lines: alone and oracle.
Only seeds with runs of clients alone are drawn; a variant that lacks some has its own number behind its name.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from headroom import ORACLE, Json, LocatedModel, best_alone, draws, interval, means, read
from matplotlib.axes import Axes
from matplotlib.figure import Figure

LEFT = 0.7
"""KB at which variants that send nothing are drawn."""


def comparable(found: LocatedModel) -> LocatedModel:
    """Leave out the seeds that clients alone lack."""
    known = ~np.isnan(found.scores[best_alone(found)][:, 0])
    return replace(found, scores={variant: values[known] for variant, values in found.scores.items()})


def panel(axes: Axes, name: str, found: LocatedModel) -> None:
    """One setting."""
    seeds, clients = draws(found, np.random.default_rng(0))
    local = best_alone(found)
    count = len(found.scores[local])
    ordered = sorted(found.bytes_up, key=lambda variant: found.bytes_up[variant])
    for number, variant in enumerate(ordered):
        beside = ordered[number ^ 1] if number ^ 1 < len(ordered) else variant
        values = found.scores[variant]
        mean, (low, high) = np.nanmean(values), interval(means(values, seeds, clients))
        ours = variant.startswith("own-prior")
        place = max(found.bytes_up[variant] / 1000, LEFT)
        axes.errorbar(
            place, mean, [[mean - low], [high - mean]], fmt="o" if ours else "s", ms=5, lw=1,
            color="C0" if ours else "C7",
        )  # fmt: skip
        # Of two neighbours the better one is named above its point, the other below: they may stand close.
        offset = (5, 4) if mean >= np.nanmean(found.scores[beside]) else (5, -10)
        own = int((~np.isnan(values[:, 0])).sum())
        label = variant if own == count else f"{variant} ({own})"
        axes.annotate(label, (place, mean), xytext=offset, textcoords="offset points", fontsize=7)
    for line, style in ((local, ":"), (ORACLE, "--")):
        if line in found.scores:
            axes.axhline(np.nanmean(found.scores[line]), color="C7", lw=0.8, ls=style)
    axes.set_xscale("log")
    axes.set_xlim(LEFT * 0.8, 2000)
    axes.set_title(f"{name}, {count} seeds", fontsize=9)
    axes.set_xlabel("KB up a round and client", fontsize=8)
    axes.set_ylabel("test accuracy, %", fontsize=8)
    axes.tick_params(labelsize=7)


def accuracy_over_bytes(results: Json) -> Figure:
    """All settings of screen.json."""
    rows = -(-len(results) // 2)
    figure = Figure(figsize=(10, 3.4 * rows), layout="tight")
    places = figure.subplots(rows, 2, squeeze=False)
    for axes in places.flat[len(results) :]:
        axes.set_visible(False)
    for axes, (name, kept) in zip(places.flat, results.items(), strict=False):
        panel(axes, name, comparable(read(kept)))
    return figure
