"""Predicted traffic of every method: a table for a terminal, JSON, CSV, Markdown, or a picture."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table as RichTable
from rich.text import Text

from trifed.common.errors import ConfigError, RunError
from trifed.federation.cost import Cost, MethodCost, OneTimeMessage
from trifed.methods import METHODS
from trifed.reports.format import size
from trifed.reports.tables import NAME, Column, Table, to_markdown, write_csv

PICTURES = (".png", ".svg", ".pdf")
COLUMNS = (
    Column("method", "method", NAME),
    Column("adapter", "adapter"),
    Column("trains", "trains"),
    Column("sends", "sends"),
    Column("sent_values", "values", "count"),
    Column("head_values", "head", "count"),
    Column("each_way", "each way", "right"),
    Column("once", "once", "right"),
    Column("fewer", "fewer", "right"),
)
FIELDS = (
    "method", "adapter", "rank", "bits", "trains", "sends", "trained_values", "sent_values", "head_values",
    "bytes_up", "bytes_down", "once_up", "once_down", "times_fewer",
)  # fmt: skip


def cost_table(cost: Cost) -> Table:
    """Return one row for each method."""
    title = f"{cost.model}: what a client sends each round"
    return Table(title, COLUMNS, [_row(item, cost) for item in cost.methods])


def _row(item: MethodCost, cost: Cost) -> dict[str, Any]:
    once = sum(o.up + o.down + o.envelope for o in item.once)
    limit = "≤ " * any(o.at_most for o in item.once)
    sizes = list(dict.fromkeys(size(sent and sent + cost.envelope) for sent in (item.bytes_up, item.bytes_down)))
    return {
        **asdict(item),
        "adapter": ", ".join([item.adapter, *_own(item, cost)]),
        "trains": " ".join(item.trains),
        "sends": " ".join(item.sends) or "nothing",
        "each_way": " / ".join(sizes),
        "once": limit + size(once) if once else None,
        "fewer": _times(item.times_fewer),
    }


def render_cost(cost: Cost) -> RenderableType:
    """Render the table and its notes; a method's adapter is below its name, to save width."""
    table = RichTable(
        title=cost_table(cost).title, title_justify="left", box=SIMPLE_HEAD, show_edge=False, padding=0
    )
    for column in COLUMNS:
        if column.key != "adapter":
            width = len("nothing") if column.key == "sends" else None
            wraps = column.key in ("trains", "sends")
            table.add_column(column.label, justify=column.side, no_wrap=not wraps, min_width=width)
    for item, (name, _, *rest) in zip(cost.methods, cost_table(cost).cells(), strict=True):
        below = [item.adapter, ", ".join(_own(item, cost))]
        rest = [cell.replace(" / ", " /\n") for cell in rest]  # two sizes, one below the other
        table.add_row(Text("\n").join([Text(name), *(Text(line, "dim") for line in below if line)]), *rest)
    return Group(table, Text(), *map(Text, _notes(cost)))


def cost_markdown(cost: Cost) -> str:
    """Render the table and its notes as Markdown."""
    table = cost_table(cost)
    return "\n".join([f"**{table.title}**", "", to_markdown(table), "", *(f"- {note}" for note in _notes(cost))])


def cost_json(cost: Cost) -> str:
    """Render everything as JSON; bytes and values are whole numbers."""
    return json.dumps(asdict(cost), indent=2, allow_nan=False)


def cost_csv(cost: Cost) -> str:
    """Render one line for each method as CSV; a missing comparison is an empty cell."""
    rows = [
        {
            **asdict(item),
            "once_up": sum(once.up for once in item.once),
            "once_down": sum(once.down for once in item.once),
            "trains": " ".join(item.trains),
            "sends": " ".join(item.sends),
        }
        for item in cost.methods
    ]
    return write_csv(rows, FIELDS).rstrip("\n")


TEXTS: dict[str, Callable[[Cost], str]] = {"json": cost_json, "csv": cost_csv, "md": cost_markdown}
"""Formats that are plain text, by their names for --format."""


def _own(item: MethodCost, cost: Cost) -> list[str]:
    """Return rank and bits of a method whose rank and bits are not the common ones."""
    rank = [f"rank {item.rank}"] if item.rank != cost.rank and item.adapter != "none" else []
    rank += [f"sum of {item.sealed}"] if item.sealed else []
    return rank + ([f"{item.bits} bit{'s' if item.bits > 1 else ''}"] if item.bits != 32 else [])


def _times(value: float | None) -> str | None:
    """Format a ratio: 193×, 2.0×, 0.0024×."""
    if value is None:
        return None
    return f"{value:,.0f}×" if value >= 10 else f"{value:.1f}×" if value >= 1 else f"{value:.2g}×"


def _once(message: OneTimeMessage) -> str:
    """Return the size of a message before round 1: `at most 3.4 KB up`."""
    limit = "at most " * message.at_most
    return (
        f"{limit}{size(message.up + message.envelope)} up{f', {size(message.down)} down' if message.down else ''}"
    )


def _notes(cost: Cost) -> list[str]:
    """Return the assumptions behind the numbers."""
    targets, sizes = ", ".join(cost.targets), f"{cost.features:,} × {cost.labels} and {cost.labels}"
    layer = f"one linear layer, {sizes}" if cost.features else f"a bias for each of {cost.labels} classes"
    return [
        f"{cost.base_values:,} weights; {cost.layers} adapted layers ({targets}), rank {cost.rank} and 32 bits a "
        f"number where no others are named; head: {layer if cost.labels else 'none'}.",
        "values: numbers that a client sends in a round, and as many receives where one size is named for each "
        "way; head: its share of them; each way: bytes up and bytes down, with an envelope of about "
        f"{cost.envelope} a message.",
        f"fewer: bytes of A, B and head of plain LoRA of rank {cost.rank} ({cost.lora_values:,} values) at the "
        "method's own bits a number, over the method's bytes up; without envelopes.",
        *(
            f"{item.method}: a round sends a part of this, in turn; the numbers are the mean of its rounds."
            for item in cost.methods
            if len(METHODS[item.method].turns) > 1
        ),
        *(
            [
                "sum of n: sealed sums of n clients; bytes up are a part of a sum, bytes down the change of the "
                "last sum and the terms of the next. If rows are averaged by label, a sum of each label's holders "
                "comes before round 1."
            ]
            if any(item.sealed for item in cost.methods)
            else []
        ),
        *(
            f"once, {item.method}: {_once(once)}; {once.what}: {once.basis}."
            for item in cost.methods
            for once in item.once
        ),
    ]


def plot_cost(cost: Cost, target: Path) -> None:
    """Draw the values that each method sends in one round, on a log scale.

    Raises:
        RunError: The file cannot be written.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 1.2 + 0.42 * len(cost.methods)), layout="constrained")
    axes = figure.subplots()
    for row, item in enumerate(cost.methods):
        axes.barh(row, max(item.sent_values, 1), color="#30638e", height=0.6)
        label = f"{item.sent_values:,}" if item.sent_values else "nothing"
        axes.text(max(item.sent_values, 1) * 1.3, row, label, va="center", fontsize=9)
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


def check_picture(target: Path) -> None:
    """Refuse a picture that could not be drawn, before anything is computed.

    Raises:
        ConfigError: The name's ending is no picture's, or its folder does not exist.
    """
    if target.suffix not in PICTURES:
        raise ConfigError([f"got '{target}', expected a name that ends in {', '.join(PICTURES)}"], "--plot")
    if not target.absolute().parent.is_dir():
        raise ConfigError([f"there is no folder '{target.parent}'; make it first"], "--plot")
