"""Blocks of a partition's result: each a grid, the figure of it, and what the figure shows in words."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from trifed.reports.audit.cards import Card
from trifed.reports.comparison import plots as panels
from trifed.reports.comparison.tables import (
    client_grid,
    curve_grid,
    difference_grid,
    main_grid,
    overview_grid,
    tuning_grid,
)
from trifed.reports.comparison.verdict import ranked
from trifed.reports.format import control_label, percent, size
from trifed.reports.results import Details, Partition, Study
from trifed.reports.style import Draw, Style, legend_below
from trifed.reports.tables import Grid

WIDTH = 4.7
HEIGHT = 3.5
LEGEND_LINE = 0.19
"""Inches."""
MOST_UNFOLDED = 12


SIDE_BY_SIDE = (
    "method", "mean", "interval", "worst", "best", "up_per_round", "down_per_round", "once_up", "once_down",
    "total_bytes", "rounds_to_target", "bytes_to_target",
)  # fmt: skip
MORE = (
    "weighted_mean", "sd", "mean_trained", "mean_received", "learning_rate", "rounds", "seeds", "seconds",
)  # fmt: skip


@dataclass(frozen=True)
class Block:
    """A grid, with or without a figure.

    `alt`: the figure in words; `inches`: its size. `folded`: a grid that few want to read from the start. `cards`:
    what a page shows in front of the grid.
    """

    grid: Grid
    draw: Draw | None = None
    alt: str = ""
    inches: tuple[float, float] = (WIDTH, HEIGHT)
    folded: bool = False
    cards: tuple[Card, ...] = ()


Panel = Callable[[Axes, Partition, Style], None]


def partition_blocks(name: str, partition: Partition, details: Details | None = None) -> list[Block]:
    """The result of one partition: the table of everything, then figure by figure."""
    everything = main_grid({name: partition})
    methods = main_grid({name: partition.model_copy(update={"controls": {}})})
    more = Grid("More on each method", methods.columns, methods.rows).only("method", *MORE)
    blocks = [Block(everything.only(*SIDE_BY_SIDE).without_empty()), Block(more.without_empty())]
    if partition.differences:
        blocks.append(Block(difference_grid(partition), folded=len(partition.differences) > MOST_UNFOLDED))
    if not ranked(partition):
        return blocks
    return [*blocks, *_figures(partition, details)]


def _figures(partition: Partition, details: Details | None) -> Iterable[Block]:
    legend = LEGEND_LINE * -(-(len(partition.methods) + len(partition.controls)) // 2)
    means = "; ".join(f"{name} {percent(mean)} %" for name, _, mean in ranked(partition))
    controls = "; ".join(f"{control_label(name)} {percent(s.mean)} %" for name, s in partition.controls.items())
    ends = f"Mean test {partition.metric} at the end: {means}." + (f" Controls: {controls}." if controls else "")
    yield _sent_block(partition)
    grid = curve_grid(partition)
    yield Block(
        grid.only("method", "round", "mean", "worst", "best", "valid_mean", "training_loss"),
        _with_legend(panels.curves, partition),
        f"Lines: mean test {partition.metric} over rounds, one a method. {ends}",
        (WIDTH, HEIGHT + legend),
    )
    if any(point.bytes for found in partition.methods.values() for point in found.curve):
        over_bytes = grid.only("method", "round", "bytes", "mean")
        yield Block(
            Grid("Accuracy against bytes sent", over_bytes.columns, over_bytes.rows),
            _with_legend(panels.curves_over_bytes, partition),
            f"Lines: mean test {partition.metric} against all bytes sent so far, on a log scale. {ends}",
            (WIDTH, HEIGHT + legend),
        )
    yield _worst_block(partition)
    if any(any(a is not None for a in found.client_accuracy) for found in partition.methods.values()):
        rows = min(len(partition.clients), panels.MOST_NAMED)
        yield Block(
            client_grid(partition, details),
            _with_legend(panels.clients, partition),
            f"Marks: test {partition.metric} of {len(partition.clients)} clients, each under every method. {ends}",
            (WIDTH, 1.0 + min(0.32, 0.16 + 0.05 * len(partition.methods)) * rows + legend),
        )


def _sent_block(partition: Partition) -> Block:
    keys = ("method", "up_per_round", "down_per_round", "once_up", "once_down", "total_bytes")
    grid = main_grid({"": partition.model_copy(update={"controls": {}})}).only(*keys)
    sent = {method: found.bytes for method, found in partition.methods.items()}
    shown = "; ".join(f"{m} {size(b.up_per_round)} up, {size(b.down_per_round)} down" for m, b in sent.items())
    bars = sum(2 + bool(b.once_up + b.once_down) if b.total else 1 for b in sent.values())

    def draw(figure: Figure, style: Style) -> None:
        panels.sent(figure.subplots(), partition, style)

    alt = f"Bars on a log scale: bytes of one client, by method. A round: {shown}."
    title = "What one client sends and receives"
    return Block(Grid(title, grid.columns, grid.rows), draw, alt, (WIDTH, 0.9 + 0.24 * bars + 0.12 * len(sent)))


def _worst_block(partition: Partition) -> Block:
    grid = main_grid({"": partition}).only("method", "worst", "mean", "best")
    shown = "; ".join(
        f"{name} {percent(found.worst)} to {percent(found.best)} %" for name, found in partition.methods.items()
    )

    def draw(figure: Figure, style: Style) -> None:
        panels.worst_to_best(figure.subplots(), partition, style)

    return Block(
        Grid("Worst and best client", grid.columns, grid.rows),
        draw,
        f"One bar a method from its worst to its best client, the mean marked: {shown}.",
        (WIDTH, 0.9 + 0.27 * len(grid.rows)),
    )


def _with_legend(panel: Panel, partition: Partition) -> Draw:
    def draw(figure: Figure, style: Style) -> None:
        axes = figure.subplots()
        panel(axes, partition, style)
        legend_below(figure, axes)

    return draw


def overview_blocks(study: Study) -> list[Block]:
    """All partitions in one table and one figure."""
    means = main_grid(study.results).only("partition", "method", "mean", "interval")
    legend = LEGEND_LINE * -(-(len(overview_grid(study).columns) - 1) // 2)

    def draw(figure: Figure, style: Style) -> None:
        axes = figure.subplots()
        panels.overview(axes, study, style)
        legend_below(figure, axes)

    shown = "; ".join(
        f"{name}: " + ", ".join(f"{method} {percent(mean)} %" for method, _, mean in ranked(partition))
        for name, partition in study.results.items()
    )
    alt = f"Marks with intervals: mean test accuracy of each method on each partition. {shown}."
    inches = (WIDTH, 1.0 + (0.25 + 0.1 * len(study.methods)) * len(study.results) + legend)
    figured = Block(Grid("Means with their intervals", means.columns, means.rows), draw, alt, inches)
    return [Block(overview_grid(study)), figured]


def tuning_blocks(study: Study) -> list[Block]:
    """One block a partition that learning rates were searched on."""
    blocks = []
    for name, tuning in study.tuning.items():
        chosen = "; ".join(f"{method} {rates.chosen}" for method, rates in tuning.methods.items())

        def draw(figure: Figure, style: Style, name: str = name) -> None:
            axes = figure.subplots()
            panels.learning_rates(axes, study.tuning[name], style)
            legend_below(figure, axes)

        grid = tuning_grid(study.model_copy(update={"tuning": {name: tuning}})).without_empty()
        grid = Grid(f"Learning rates tried on {name}", grid.columns, grid.rows)
        legend = LEGEND_LINE * -(-len(tuning.methods) // 2)
        alt = f"Lines: validation accuracy over learning rates, one a method. Chosen: {chosen}."
        blocks.append(Block(grid, draw, alt, (WIDTH, HEIGHT + legend)))
    return blocks
