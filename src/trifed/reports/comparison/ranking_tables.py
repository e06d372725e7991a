"""The ranking of a comparison as sections: the methods in order, wins and losses, and accuracy against bytes."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from trifed.reports.comparison import first_plots, plots, tables
from trifed.reports.comparison.ranking import RankedMethod, compared, rank_methods
from trifed.reports.comparison.tables import main_table
from trifed.reports.document import Block, Section
from trifed.reports.format import plural
from trifed.reports.results import Study
from trifed.reports.tables import NAME, Column, Table

RANKING_NOTE = (
    "The mean is over the data sets; its interval is over clients and seeds, for these data sets. Better and "
    "worse count the pairs of a data set and a rival whose difference has a 95 % interval on one side of 0. "
    "Frontier: no method is at least as good and sends less."
)


def ranking_sections(study: Study) -> Iterator[Section]:
    """Yield the ranking with wins and losses, and the means on each data set."""
    order = rank_methods(study)
    left_out = [name for name in study.results if name not in compared(study)]
    notes = (
        [f"Not in the ranking, because a method has no result there: {', '.join(left_out)}."] if left_out else []
    )
    blocks = [Block(ranking_table(order)), Block(wins_table(study, order))] if len(order) > 1 else []
    yield Section("Ranking", notes, blocks)
    yield Section("All data sets", blocks=_overview(study))


def ranking_table(order: list[RankedMethod]) -> Table:
    """Return one row for each method, the best first."""
    columns = (
        Column("method", "method", NAME),
        Column("mean", "mean, %", "percent"),
        Column("interval", "95 %", "interval"),
        Column("rank", "mean rank", "ratio"),
        Column("wins", "clearly better", "count"),
        Column("losses", "clearly worse", "count"),
        Column("pairs", "of pairs", "count"),
        Column("up", "up a round", "bytes"),
        Column("frontier", "frontier"),
    )
    rows = [{**vars(one), "frontier": "on it" if one.frontier else None} for one in order]
    return Table("Ranking over all data sets", columns, rows, RANKING_NOTE).without_empty()


def wins_table(study: Study, order: list[RankedMethod]) -> Table:
    """Return, for each pair of methods, on how many data sets the row's is clearly better and clearly worse."""
    views, names = compared(study), [one.method for one in order]
    keys = {name: f"against {name}" for name in names}
    rows = []
    for one in names:
        row: dict[str, str | None] = {"method": one}
        for other in names:
            gaps = [] if one == other else [view.difference(one, other) for view in views.values()]
            ends = [gap.interval for gap in gaps if gap and gap.interval]
            row[keys[other]] = f"{sum(low > 0 for low, _ in ends)} : {sum(high < 0 for _, high in ends)}"
            if one == other:
                row[keys[other]] = None
        rows.append(row)
    columns = [Column("method", "method", NAME), *(Column(keys[name], name, "right") for name in names)]
    note = "Data sets on which the row's method is clearly better : clearly worse than the column's."
    return Table("Wins and losses", columns, rows, note)


def pareto_block(study: Study) -> Block | None:
    """Return mean accuracy against bytes of one client in a round; None without a ranking by means."""
    order = rank_methods(study)
    if len(order) < 2 or any(one.mean is None for one in order):
        return None
    columns = (
        Column("method", "method", NAME),
        Column("mean", "mean, %", "percent"),
        Column("sent", "up and down a round", "bytes"),
        Column("frontier", "frontier"),
    )
    rows = [{**vars(one), "frontier": "on it" if one.frontier else None} for one in order]
    best = ", ".join(one.method for one in order if one.frontier)
    alt = f"Marks: mean accuracy of {plural(len(order), 'method')} against bytes a round. On the frontier: {best}."
    note = "Bytes of one client in a round, up and down. The band joins the methods that no other beats in both."
    table = Table("Accuracy against bytes", columns, rows, note)
    return Block(table, partial(first_plots.pareto, order=order), alt, first_plots.pareto_height(len(order)))


def _overview(study: Study) -> list[Block]:
    """Return all data sets in one table and one figure."""
    means = main_table(study.results).only(
        "partition", "method", "mean", "interval", title="Means with their intervals"
    )
    alt = f"Marks with intervals: mean test accuracy of each method on {plural(len(study.results), 'partition')}."
    height = 1.0 + (0.25 + 0.1 * len(study.methods)) * len(study.results)
    return [
        Block(tables.overview_table(study)),
        Block(means, partial(plots.overview, study=study), alt, height),
    ]
