"""Draws the pictures of README.md and of the documentation from committed JSON files; nothing is trained.

    python benchmarks/figures.py [PICTURE ...] [--list]

`make figures` draws all of them. A file is written only if its picture changes, so a second call changes nothing.
To add a picture: write a function from the contents of its JSON files to a matplotlib `Figure`, and a row in
`PICTURES`.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import json
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import matplotlib.style
from matplotlib.figure import Figure

from trifed.reports.figures import LIGHT, Theme, drawing

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
Json = dict[str, Any]
PAPER = {"local": LIGHT.series[2], "fedavg-lora": LIGHT.series[1], "ce-lora": LIGHT.series[0]}
"""The three methods that the paper's figures have in common with ours, with their colours."""


@dataclass(frozen=True)
class Picture:
    """One picture; paths are relative to the root of the repository.

    Attributes:
        path: The PNG file that a page shows.
        sources: The JSON files that it is drawn from; those with a record a line end in .jsonl.
        draw: Returns the figure, given the contents of the sources in their order.
        dpi: Pixels per inch.
        theme: Look of trifed's reports; matplotlib's defaults without one.
    """

    path: str
    sources: tuple[str, ...]
    draw: Callable[..., Figure]
    dpi: int = 120
    theme: Theme | None = None

    @property
    def name(self) -> str:
        """The name by which the command line knows it: its path without the ending."""
        return self.path.removesuffix(".png")


def script(path: str) -> ModuleType:
    """Import a script of a benchmark's folder, which imports its neighbours by their plain names."""
    file, name = HERE / path, f"benchmarks.{path.removesuffix('.py').replace('/', '.')}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ImportError(f"{file}: not a Python file")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(file.parent))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(file.parent))
    return module


def demo(study: Json) -> Figure:
    """Draw a run of `trifed demo` as the command itself does."""
    from trifed.reports.comparison.plots import result_figure
    from trifed.reports.results import Source, Study

    return result_figure(Source(HERE / "demo", "comparison", Study.model_validate(study), {}))


def gain(study: Json) -> Figure:
    """Draw what the demo's sites gained, and what they sent, as the command itself does."""
    from trifed.reports.comparison.gain import gain_figure
    from trifed.reports.comparison.worth import worth_of_sharing
    from trifed.reports.results import Study

    (partition,) = Study.model_validate(study).results.values()
    worth = worth_of_sharing(partition)
    if worth is None:
        raise ValueError("benchmarks/demo/comparison.json: got no method that sends nothing, expected one")
    return gain_figure(partition, worth)


def learning_curves(results: Json) -> Figure:
    figure: Figure = script("three_methods/plot.py").learning_curves(results)
    return figure


def accuracy_over_bytes(results: Json) -> Figure:
    figure: Figure = script("collaboration/frontier.py").accuracy_over_bytes(results)
    return figure


def speed(*_: Json) -> Figure:
    page = script("speed/page.py")
    about, panels = page.collect(HERE / "speed")
    figure: Figure = page.draw(panels, about)
    return figure


def evidence(picture: str) -> Callable[..., Figure]:
    """Return what draws a picture of the comparison at equal bits, with equal parts: a panel for each set."""

    def draw(*sets: list[Json]) -> Figure:
        pictures = script("evidence/pictures.py")
        _, held = script("evidence/tables.py").document({records[0]["set"]: records for records in sets})
        figure: Figure = getattr(pictures, picture)(held)
        return figure

    return draw


def numbers_sent(costs: Json) -> Figure:
    """Draw the numbers that one client sends in one round, a panel for each model, on a log scale."""
    figure = Figure(figsize=(11.0, 3.4), layout="constrained")
    for axes, cost in zip(figure.subplots(1, len(costs["models"])), costs["models"], strict=True):
        rows = cost["methods"]
        values = [row["numbers"] for row in rows]
        axes.barh(range(len(rows)), values, color=[PAPER.get(r["method"], "#b8bfc6") for r in rows], height=0.62)
        for place, row in enumerate(rows):
            axes.text(row["numbers"] * 1.4, place, f"{row['numbers']:,}", va="center", fontsize=9)
        axes.set_yticks(range(len(rows)), [row["method"] for row in rows])
        axes.invert_yaxis()
        axes.set_xscale("log")
        axes.set_xlim(100, 60 * max(values))
        axes.set_xticks([1e3, 1e6, 1e9], ["1,000", "1 million", "1 billion"])
        axes.set(xlabel="numbers that one client sends in one round", title=f"{cost['model']}, q and v")
    return figure


def worst_to_best(three: Json, six: Json) -> Figure:
    """Draw worst client, mean and best client of three methods, a row for each data set and split."""
    panels = {
        "about 100 examples a client, 40 rounds": three["settings"],
        "48 or 120 examples a client, 16 rounds": six["results"],
    }
    figure = Figure(figsize=(11.0, 4.2), layout="constrained")
    for axes, (title, settings) in zip(figure.subplots(1, 2), panels.items(), strict=True):
        for row, found in enumerate(settings.values()):
            for shift, (method, colour) in zip((-0.22, 0.0, 0.22), PAPER.items(), strict=True):
                one = found["methods"][method]
                worst, mean, best = (100 * one[end] for end in ("worst", "mean", "best"))
                axes.plot([worst, best], [row + shift] * 2, color=colour, lw=1.8, marker="|", ms=7)
                label = method if row == 0 else None
                axes.plot([mean], [row + shift], "o", color=colour, ms=5, label=label)
        axes.set_yticks(range(len(settings)), list(settings))
        axes.set_ylim(len(settings) - 0.5, -0.5)
        axes.set(xlabel="test accuracy, %: worst client, mean, best client", title=title)
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    return figure


THREE, SIX = "benchmarks/three_methods/results.json", "benchmarks/methods/results/comparison.json"
EVIDENCE = ("sst2", "banking77", "sentiment-domains", "banking77-few")
PICTURES = (
    Picture("docs/demo.png", ("benchmarks/demo/comparison.json",), demo, 130, LIGHT),
    Picture("docs/numbers-sent.png", ("benchmarks/cost/parameters.json",), numbers_sent, 110, LIGHT),
    Picture("docs/gain.png", ("benchmarks/demo/comparison.json",), gain, 200, LIGHT),
    *(
        Picture(path, tuple(f"benchmarks/evidence/results/{name}.jsonl" for name in EVIDENCE), evidence(name), 110)
        for path, name in (
            ("benchmarks/evidence/evidence.png", "intervals"),
            ("docs/accuracy-over-bytes.png", "over_bytes"),
        )
    ),
    Picture("docs/worst-to-best.png", (THREE, SIX), worst_to_best, 110, LIGHT),
    Picture("benchmarks/three_methods/curves.png", (THREE,), learning_curves),
    Picture(
        "benchmarks/collaboration/frontier.png",
        ("benchmarks/collaboration/screen.json",),
        accuracy_over_bytes,
        110,
    ),
    Picture(
        "benchmarks/speed/page.png",
        tuple(f"benchmarks/speed/{name}.json" for name in ("against", "commands", "stacks")),
        speed,
        110,
    ),
)


def read(source: Path) -> Any:
    """Return the content of a JSON file, or the records of one with a record a line (.jsonl)."""
    text = source.read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()] if source.suffix == ".jsonl" else json.loads(text)


def render(picture: Picture, root: Path = ROOT) -> bytes:
    """Return a picture as PNG; the same bytes for the same JSON, without date or version of a library."""
    contents = [read(root / source) for source in picture.sources]
    image = io.BytesIO()
    with matplotlib.style.context("default"), drawing(picture.theme) if picture.theme else nullcontext():
        picture.draw(*contents).savefig(image, format="png", dpi=picture.dpi, metadata={"Software": None})
    return image.getvalue()


def update(picture: Picture, root: Path = ROOT) -> bool:
    """Draw a picture into its place; return whether the file changed."""
    target, image = root / picture.path, render(picture, root)
    if target.is_file() and target.read_bytes() == image:
        return False
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(image)
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = {picture.name: picture for picture in PICTURES}
    parser.add_argument("pictures", nargs="*", metavar="PICTURE", help="all unless given; a path without .png")
    parser.add_argument("--list", action="store_true", help="print each picture and its JSON files, draw nothing")
    given = parser.parse_args()
    names = [name.removesuffix(".png") for name in given.pictures] or list(known)
    if unknown := [name for name in names if name not in known]:
        parser.error(f"got '{unknown[0]}', expected one of {', '.join(known)}")
    for picture in (known[name] for name in names):
        if given.list:
            print(f"{picture.path}: {', '.join(picture.sources)}")
        else:
            print(f"{picture.path}: {'drawn' if update(picture) else 'unchanged'}")


if __name__ == "__main__":
    main()
