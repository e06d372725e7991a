"""Prints results.json as Markdown tables. `learning_curves` draws them, for `python benchmarks/figures.py`.

python benchmarks/three_methods/plot.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

HERE = Path(__file__).parent
COLOURS = {"ce-lora": "#0b6e4f", "fedavg-lora": "#d1495b", "local": "#30638e"}
STYLES = {"probe-alone": "--", "probe-all": "-.", "class-means": ":", "majority": (0, (1, 5))}


def learning_curves(result: dict[str, Any]) -> Figure:
    """One panel a setting: mean test accuracy by round, and the controls as lines."""
    settings = result["settings"]
    figure = Figure(figsize=(3.4 * len(settings), 3.8), layout="constrained")
    panels = figure.subplots(1, len(settings))
    for axes, (name, setting) in zip(panels, settings.items(), strict=True):
        for method, found in setting["methods"].items():
            rounds = [point["round"] for point in found["curve"]]
            axes.plot(rounds, [100 * p["mean"] for p in found["curve"]], color=COLOURS[method], lw=2, label=method)
        for control, spread in setting["controls"].items():
            axes.axhline(100 * spread["mean"], color="#8a8a8a", lw=1.1, ls=STYLES[control], label=control)
        axes.set(title=name, xlabel="round")
        axes.set_ylim(0, 102)
    panels[0].set_ylabel("mean test accuracy over clients, %")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    return figure


def cell(found: dict[str, Any]) -> str:
    low, high = (100 * bound for bound in found["interval"])
    return f"{100 * found['mean']:.1f} ({low:.1f} to {high:.1f})"


def table(result: dict[str, Any]) -> str:
    lines = [
        "| setting | method | mean, % (95 %) | worst | best | KB in all | still rising |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, setting in result["settings"].items():
        for method, found in setting["methods"].items():
            sent = f"{found['bytes']['total'] / 1000:,.0f}"
            rise = f"{100 * found['plateau']['rise_in_last_quarter']:+.1f}"
            ends = f"{100 * found['worst']:.1f} | {100 * found['best']:.1f}"
            lines.append(f"| {name} | `{method}` | {cell(found)} | {ends} | {sent} | {rise} |")
        for control, found in setting["controls"].items():
            ends = f"{100 * found['worst']:.1f} | {100 * found['best']:.1f}"
            lines.append(f"| | *{control}* | {cell(found)} | {ends} | | |")
    lines += ["", "| setting | difference, paired | points (95 %) |", "|---|---|---|"]
    for name, setting in result["settings"].items():
        for difference, found in setting["differences"].items():
            lines.append(f"| {name} | {difference} | {cell(found)} |")
    return "\n".join(lines)


def compact(result: dict[str, Any]) -> str:
    """One row a setting: means, and how many times fewer bytes."""
    names = ("local", "fedavg-lora", "ce-lora")
    lines = [
        "| setting | `local` | `fedavg-lora` | `ce-lora` | `ce-lora` less `local` (95 %) "
        "| bytes | *probe alone* | *majority* |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, setting in result["settings"].items():
        means = " | ".join(f"{100 * setting['methods'][method]['mean']:.1f}" for method in names)
        gap = setting["differences"]["ce-lora minus local"]
        low, high = (100 * bound for bound in gap["interval"])
        controls = " | ".join(f"{100 * setting['controls'][c]['mean']:.1f}" for c in ("probe-alone", "majority"))
        times = setting["fedavg_lora_bytes_over_ce_lora_bytes"]
        difference = f"{100 * gap['mean']:+.1f} ({low:+.1f} to {high:+.1f})"
        lines.append(f"| {name} | {means} | {difference} | {times:.0f}× fewer | {controls} |")
    return "\n".join(lines)


def main() -> None:
    result = json.loads((HERE / "results.json").read_text())
    print(table(result), compact(result), sep="\n\n")


if __name__ == "__main__":
    main()
