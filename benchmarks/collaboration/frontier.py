"""A picture of what each exchange gives for its bytes: one panel a setting.

    python benchmarks/collaboration/frontier.py [--results screen.json] [--to frontier.png]

Across: bytes up a round and client, all in, on a logarithmic scale; who sends nothing stands at the left edge. Up:
mean test accuracy over seeds and clients, with the interval of `headroom.py`. Lines: local and the oracle.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from headroom import ORACLE, LocatedModel, best_alone, draws, interval, means, read
from matplotlib.axes import Axes

HERE = Path(__file__).parent
LEFT = 0.7
"""KB: where those stand who send nothing."""


def panel(axes: Axes, name: str, count: int, found: LocatedModel) -> None:
    """One setting."""
    seeds, clients = draws(found, np.random.default_rng(0))
    local = best_alone(found)
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
        axes.annotate(variant, (place, mean), xytext=offset, textcoords="offset points", fontsize=7)
    for line, style in ((local, ":"), (ORACLE, "--")):
        if line in found.scores:
            axes.axhline(np.nanmean(found.scores[line]), color="C7", lw=0.8, ls=style)
    axes.axvline(8, color="C3", lw=0.8, alpha=0.5)
    axes.set_xscale("log")
    axes.set_xlim(LEFT * 0.8, 2000)
    axes.set_title(f"{name}, {count} seed{'s' if count > 1 else ''}", fontsize=9)
    axes.set_xlabel("KB up a round and client", fontsize=8)
    axes.set_ylabel("test accuracy, %", fontsize=8)
    axes.tick_params(labelsize=7)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=HERE / "screen.json")
    parser.add_argument("--to", type=Path, default=HERE / "frontier.png")
    given = parser.parse_args()
    results = json.loads(given.results.read_text())
    rows = -(-len(results) // 2)
    figure, places = plt.subplots(rows, 2, figsize=(10, 3.4 * rows), squeeze=False)
    for axes in places.flat[len(results) :]:
        axes.set_visible(False)
    for axes, (name, kept) in zip(places.flat, results.items(), strict=False):
        panel(axes, name, len(kept["seeds"]), read(kept))
    figure.tight_layout()
    figure.savefig(given.to, dpi=110)


if __name__ == "__main__":
    main()
