"""Pictures of the comparison at equal bits: accuracy with intervals, and accuracy over the bytes of a client.

`make figures` draws both from results/*.jsonl alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from design import ALL_ARMS, MAIN_ARMS
from matplotlib.figure import Figure
from tables import DEFAULT, Held, interval

PANELS = 5
"""Panels of a figure beside one another."""
BLUE, BROWN, GREY = "#1f6f8b", "#b0592b", "#777777"
LOW_RANK = "fedavg-lora, rank 2"
SHOWN = (
    "own-prior",
    "fedavg-lora",
    LOW_RANK,
    *(arm for arm in MAIN_ARMS if arm not in ("own-prior", "fedavg-lora")),
)
"""Arms of the first picture, from above; an arm without a run is left out."""
LINES = {DEFAULT: (BLUE, "-", "o"), "fedavg-lora": (BROWN, "-", "s"), LOW_RANK: (BROWN, "--", "^")}
"""Arms of the second picture: colour, line and marker of each."""


def panels(shown: Sequence[Held], height: float) -> tuple[Figure, list[tuple[Held, object]]]:
    """Return a figure with one panel a set, and the sets with their axes."""
    wide, high = max(1, min(PANELS, len(shown))), max(1, -(-len(shown) // PANELS))
    drawn = Figure(figsize=(2 + 2.6 * wide, high * height), layout="constrained")
    axes = list(drawn.subplots(high, wide, squeeze=False).flat)
    for axis in axes[len(shown) :]:
        axis.set_visible(False)
    for axis, held in zip(axes, shown, strict=False):
        axis.set_title(held.name, fontsize=10)
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    return drawn, list(zip(shown, axes, strict=False))


def intervals(sets: Sequence[Held]) -> Figure:
    """Draw each arm's accuracy, or loss, with its interval, over the seeds that all have, one panel a set."""
    shown = [held for held in sets if DEFAULT in held.runs]
    arms = [arm for arm in SHOWN if any(arm in held.runs for held in shown)][::-1]
    drawn, pairs = panels(shown, 1 + 0.32 * len(arms))
    for number, (held, axis) in enumerate(pairs):
        times = held.unit.times
        for place, arm in enumerate(arms):
            if arm not in held.runs:
                continue
            seeds = held.seeds(arm, *(other for other in held.runs if other in SHOWN))
            ends = [times * end for end in interval(held.right(arm, seeds))]
            rival = ALL_ARMS[arm].rival or ALL_ARMS[ALL_ARMS[arm].tuned_as or arm].rival
            colour = BLUE if arm.startswith(DEFAULT) else BROWN if rival else GREY
            axis.plot(ends, [place, place], color=colour, linewidth=1.5)
            axis.plot([times * held.mean(arm, "mean", seeds)], [place], "o", color=colour, markersize=5)
        axis.set_yticks(range(len(arms)), [] if number % PANELS else arms, fontsize=9)
        axis.set_ylim(-0.5, len(arms) - 0.5)
        axis.set_xlabel(held.unit.axis, fontsize=9)
    return drawn


def over_bytes(sets: Sequence[Held]) -> Figure:
    """Draw the mean after each evaluated round, over a client's KB up and down until then.

    It is of the seeds that all three arms have.
    """
    shown = [held for held in sets if DEFAULT in held.runs]
    drawn, pairs = panels(shown, 2.9)
    for held, axis in pairs:
        seeds = held.seeds(*(arm for arm in LINES if arm in held.runs))
        for arm, (colour, line, marker) in LINES.items():
            if arm not in held.runs:
                continue
            curves = [
                [
                    (p["bytes"] / len(record["train_examples"]) / 1000, p["mean"])
                    for p in record["curve"]
                    if p["round"]
                ]
                for record in (held.runs[arm][seed] for seed in seeds)
            ]
            sent, means = np.mean(curves, axis=0).T
            axis.plot(sent, held.unit.times * means, line, marker=marker, color=colour, markersize=4, label=arm)
        axis.set_xscale("log")
        axis.set_xticks([10, 30, 100, 300], ["10", "30", "100", "300"])
        axis.minorticks_off()
        axis.set_xlabel("KB up and down of a client", fontsize=9)
    if pairs:
        pairs[0][1].set_ylabel(pairs[0][0].unit.axis, fontsize=9)
        drawn.legend(*pairs[0][1].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    return drawn
