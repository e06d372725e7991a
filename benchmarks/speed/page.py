"""One page of plots of the results in a folder.

    python benchmarks/speed/page.py [FOLDER] [--out page.png]

`against.json` gets a row of plots for each job, from the runs on the machine and code that ran last. Each other
JSON file is drawn if it has the key `panels`, a list with an object for each plot:

- `title`, and `unit` of the values, such as "ms";
- `bars`: name → list of measured values, drawn as a bar at their median, with each value as a dot;
- or `lines`: name → list of values, over `x`, a list of numbers that `x_label` describes.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

HERE = Path(__file__).resolve().parent
Json = dict[str, Any]
AGAINST = "against.json"
COLUMNS = 3
OURS, OTHERS, DOTS = "#1f6f8b", "#b8bfc6", "#30363d"
MEASURES = {
    "seconds": ("Wall time", "s", 1.0),
    "cpu_seconds": ("CPU time of all processes", "s", 1.0),
    "peak_mib": ("Peak memory of all processes", "GiB", 1024.0),
}
"""Title, unit, and what a value is divided by."""
NAMES = {
    "trifed": "trifed run",
    "trifed-defaults": "trifed run, defaults",
    "plain-peft": "plain PEFT, by hand",
    "flower": "Flower simulation",
    "flower-kept": "Flower, model kept",
}


def panels_against(held: Json) -> tuple[str, list[Json]]:
    """Return a line about the machine, and three panels for each job of the environment that ran last."""
    if not held["runs"]:
        return "", []
    last = held["runs"][-1]["environment"]
    about, panels = held["environments"][last], []
    for job, found in held["summary"][last].items():
        warning = "" if found["same_work"] else " (work differs)"
        for measure, (title, unit, scale) in MEASURES.items():
            bars = {
                _label(name, measure, found["trifed_to"]): [value / scale for value in one[f"all_{measure}"]]
                for name, one in found["contestants"].items()
            }
            panels.append({"title": f"{title}\n{job}{warning}", "unit": unit, "bars": bars})
    packages = about["packages"]
    versions = ", ".join(
        f"{name} {packages[name]}" for name in ("torch", "peft", "flwr", "ray") if name in packages
    )
    return f"{about['processor']}, {about['cpus']} cores; {versions}", panels


def _label(name: str, measure: str, ratios: Mapping[str, Json]) -> str:
    shown = NAMES.get(name, name)
    return f"{shown}\n(trifed takes {ratios[name][measure]:.2f}×)" if name in ratios else shown


def draw_bars(axes: Axes, panel: Json) -> None:
    """Draw a bar at the median of each name's values, and the values as dots."""
    names, values = list(panel["bars"]), list(panel["bars"].values())
    heights = range(len(names))
    medians = [median(of_one) for of_one in values]
    colors = [OURS if name.startswith("trifed") else OTHERS for name in names]
    axes.barh(heights, medians, color=colors, height=0.6)
    largest = max(value for of_one in values for value in of_one)
    for height, of_one, middle in zip(heights, values, medians, strict=True):
        axes.plot(of_one, [height] * len(of_one), ".", color=DOTS, markersize=4)
        axes.text(max(of_one) + 0.02 * largest, height, f"{middle:#.3g}".rstrip("."), va="center", fontsize=8)
    axes.set_yticks(heights, names, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, largest * 1.15)
    axes.set_xlabel(panel["unit"], fontsize=8)


def draw_lines(axes: Axes, panel: Json) -> None:
    """Draw a line for each name."""
    for name, values in panel["lines"].items():
        axes.plot(panel["x"], values, "o-", markersize=3, linewidth=1.5, label=name)
    axes.set_xlabel(panel.get("x_label", ""), fontsize=8)
    axes.set_ylabel(panel["unit"], fontsize=8)
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=8, frameon=False)


def draw(panels: Sequence[Json], about: str) -> Figure:
    """Draw all panels on one page."""
    rows = -(-len(panels) // COLUMNS)
    figure = Figure(figsize=(14, 0.6 + 2.7 * rows), layout="constrained")
    grid = figure.subplots(rows, COLUMNS, squeeze=False)
    for axes, panel in zip(grid.flat, panels, strict=False):
        (draw_bars if "bars" in panel else draw_lines)(axes, panel)
        axes.set_title(panel["title"], fontsize=9, loc="left")
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in list(grid.flat)[len(panels) :]:
        axes.axis("off")
    if about:
        figure.supxlabel(f"Medians, dots are single runs. {about}", fontsize=8, x=0.01, ha="left")
    return figure


def collect(folder: Path) -> tuple[str, list[Json]]:
    """Return a line about the machine and all panels of a folder; name the files that have none."""
    about, panels = "", []
    for path in sorted(folder.glob("*.json"), key=lambda path: (path.name != AGAINST, path.name)):
        held = json.loads(path.read_text())
        if path.name == AGAINST:
            about, found = panels_against(held)
        else:
            found = held.get("panels", [])
        if not found:
            print(f"{path}: nothing to draw")
        panels += found
    return about, panels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=HERE)
    parser.add_argument("--out", type=Path, help="page.png in the folder unless given")
    given = parser.parse_args()
    about, panels = collect(given.folder)
    if not panels:
        print(f"skipped: {given.folder} holds no results; against.py writes some")
        return
    out = given.out or given.folder / "page.png"
    draw(panels, about).savefig(out, dpi=110, metadata={"Software": None})  # the same picture in `make figures`
    print(out)


if __name__ == "__main__":
    main()
