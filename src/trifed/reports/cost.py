"""What every method would send, as a table for a terminal, JSON, CSV, Markdown, or a picture."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from trifed.common.errors import ConfigError, RunError
from trifed.federation.cost import Cost, MethodCost
from trifed.reports.format import size

PICTURES = (".png", ".svg", ".pdf")

COLUMNS = ("method", "adapter", "trains", "sends", "values", "head", "each way", "once", "fewer")

FIELDS = (
    "method", "adapter", "rank", "bits", "trains", "sends", "trained_values", "sent_values", "head_values",
    "bytes_up", "bytes_down", "once_up", "once_down", "times_fewer",
)  # fmt: skip


def render_cost(cost: Cost) -> RenderableType:
    """The table, and under it what its numbers stand on; a method's adapter under its name, to save width."""
    title = f"{cost.model}: what a client sends each round"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, show_edge=False, padding=0)
    for column in COLUMNS:
        if column != "adapter":
            text = column in ("trains", "sends")
            table.add_column(column, justify="left" if text or column == "method" else "right", no_wrap=not text)
            table.columns[-1].min_width = len("nothing") if column == "sends" else None
    for item in cost.methods:
        name, _, *rest = _cells(item, cost)
        below = [item.adapter, ", ".join(_own(item, cost))]
        table.add_row("\n".join([name, *(f"[dim]{line}[/dim]" for line in below if line)]), *rest)
    return Group(table, Text(), *map(Text, _notes(cost)))


def cost_markdown(cost: Cost) -> str:
    """The same table and notes in Markdown."""
    lines = [f"**{cost.model}: what a client sends each round**", "", f"| {' | '.join(COLUMNS)} |"]
    lines += ["|" + "---|" * 4 + "---:|" * (len(COLUMNS) - 4)]
    lines += [f"| {' | '.join(_cells(item, cost))} |" for item in cost.methods]
    return "\n".join([*lines, "", *(f"- {note}" for note in _notes(cost))])


def cost_json(cost: Cost) -> str:
    """All of it; bytes and values as whole numbers."""
    return json.dumps(asdict(cost), indent=2, allow_nan=False)


def cost_csv(cost: Cost) -> str:
    """One line a method; nothing where there is nothing to compare."""
    file = io.StringIO()
    writer = csv.DictWriter(file, FIELDS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for item in cost.methods:
        once = {"once_up": sum(o.up for o in item.once), "once_down": sum(o.down for o in item.once)}
        parts = {"trains": " ".join(item.trains), "sends": " ".join(item.sends)}
        writer.writerow({**asdict(item), **once, **parts})
    return file.getvalue().rstrip("\n")


TEXTS: dict[str, Callable[[Cost], str]] = {"json": cost_json, "csv": cost_csv, "md": cost_markdown}
"""The formats that are plain text, by the name that --format gives them."""


def _cells(item: MethodCost, cost: Cost) -> list[str]:
    once = sum(o.up + o.down for o in item.once)
    return [
        item.method,
        ", ".join([item.adapter, *_own(item, cost)]),
        " ".join(item.trains),
        " ".join(item.sends) or "nothing",
        f"{item.sent_values:,}",
        f"{item.head_values:,}",
        size(item.bytes_up)
        if item.bytes_up == item.bytes_down
        else f"{size(item.bytes_up)} / {size(item.bytes_down)}",
        size(once) if once else "-",
        _times(item.times_fewer),
    ]


def _own(item: MethodCost, cost: Cost) -> list[str]:
    """Rank and bits of a method that has its own."""
    rank = [f"rank {item.rank}"] if item.rank != cost.rank and item.adapter != "none" else []
    return rank + ([f"{item.bits} bit{'s' if item.bits > 1 else ''}"] if item.bits != 32 else [])


def _times(value: float | None) -> str:
    """193×, 2.0×, 0.0024×; a dash where nothing is sent."""
    if value is None:
        return "-"
    return f"{value:,.0f}×" if value >= 10 else f"{value:.1f}×" if value >= 1 else f"{value:.2g}×"


def _notes(cost: Cost) -> list[str]:
    """What the numbers stand on."""
    targets = ", ".join(cost.targets)
    head = f"one linear layer, {cost.features:,} × {cost.labels} and {cost.labels}" if cost.labels else "none"
    if cost.labels and not cost.features:
        head = f"a bias for each of {cost.labels} classes"
    notes = [
        f"{cost.base_values:,} weights; {cost.layers} adapted layers ({targets}), rank {cost.rank} and 32 bits a "
        f"number where no others are named; head: {head}.",
        "values: numbers that a client sends, and as many receives, in a round; head: its share of them; "
        f"each way: bytes up and bytes down, without the envelope of about {cost.envelope} a message.",
        f"fewer: bytes up, against A, B and head of plain LoRA of rank {cost.rank} ({cost.lora_values:,} values, "
        "32 bits each).",
    ]
    for item in cost.methods:
        for once in item.once:
            sizes = f"{size(once.up)} up, {size(once.down)} down" if once.down else f"{size(once.up)} up"
            notes.append(f"once, {item.method}: {sizes}; {once.what}: {once.basis}.")
    return notes


def plot_cost(cost: Cost, target: Path) -> None:
    """Values sent in one round by each method, on a log scale.

    Raises:
        ConfigError: the file's name ends in none of `PICTURES`.
        RunError: it cannot be written.
    """
    check_picture(target)
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 1.2 + 0.42 * len(cost.methods)), layout="constrained")
    for row, item in enumerate(cost.methods):
        axes.barh(row, max(item.sent_values, 1), color="#30638e", height=0.6)
        said = f"{item.sent_values:,}" if item.sent_values else "nothing"
        axes.text(max(item.sent_values, 1) * 1.3, row, said, va="center", fontsize=9)
    axes.set_yticks(range(len(cost.methods)), [item.method for item in cost.methods])
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlim(1, 60 * max(1, *(item.sent_values for item in cost.methods)))
    axes.spines[["top", "right"]].set_visible(False)
    axes.set(xlabel="values a client sends in a round", title=f"{cost.model}, rank {cost.rank}")
    try:
        figure.savefig(target, dpi=130)
    except OSError as error:
        raise RunError(f"{target}: {error.strerror or error}; give another --plot") from error
    finally:
        plt.close(figure)


def check_picture(target: Path) -> None:
    """Refuse a picture that could not be drawn, before anything is computed.

    Raises:
        ConfigError: the name's ending, or its folder.
    """
    if target.suffix not in PICTURES:
        raise ConfigError([f"got '{target}', expected a name that ends in {', '.join(PICTURES)}"], "--plot")
    if not target.absolute().parent.is_dir():
        raise ConfigError([f"there is no folder '{target.parent}'; make it first"], "--plot")
