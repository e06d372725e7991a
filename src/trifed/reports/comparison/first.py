"""The first screen of the report on a run or a comparison: outcome, recommendation, and one plot."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from trifed.reports.comparison import first_plots, plots, tables
from trifed.reports.comparison.deciding import by_deciding_metric
from trifed.reports.comparison.ranking import rank_methods
from trifed.reports.comparison.ranking_tables import pareto_block
from trifed.reports.comparison.worth import Worth, alone_label, worth_of_sharing
from trifed.reports.document import Block
from trifed.reports.format import plural
from trifed.reports.results import Details, Partition, Source, Study
from trifed.reports.tables import Column, Table

MEANING = (
    "Separate: each site trains on its own examples only. Federated: the sites also exchange numbers of the "
    "model, and no examples."
)
"""Sentence below the first plot that explains the words "separate" and "federated"."""
MOST_IN_ROWS = 3
"""With more methods than this, one plot of all of them replaces the rows of the sites."""


def outcome(study: Study) -> dict[str, Any]:
    """Return the first sentence in numbers, for programs; `kind` is "none" without a result.

    Shares lie in [0, 1]; bytes are those that leave one site.
    """
    partition = next(iter(study.results.values()), Partition())
    if len(study.results) == 1 and (worth := worth_of_sharing(partition)):
        return {
            "kind": worth.kind,
            "method": worth.shared,
            "alone": worth.alone,
            "metric": worth.deciding.name,
            "gain": worth.gain,
            "interval": worth.interval,
            "sites": worth.clients,
            "better": worth.better,
            "worse": worth.worse,
            "up_per_round": worth.up_per_round,
            "once_up": worth.once_up,
        }
    known = [found for one in study.results.values() for found in one.methods.values() if found.mean is not None]
    if len(known) < 2:
        return {"kind": "one method" if known else "none"}
    return {"kind": "ranking", "order": [vars(one) for one in rank_methods(study)]}


def first_block(source: Source) -> Block | None:
    """Return the one plot of the first screen with its numbers; None without any result."""
    if len(source.study.results) != 1:
        return pareto_block(source.study)
    ((name, partition),) = source.study.results.items()
    if worth := worth_of_sharing(partition):
        return _sites(partition, worth)
    if len(partition.methods) > MOST_IN_ROWS and (block := pareto_block(source.study)):
        return block
    if any(value is not None for found in partition.methods.values() for value in found.client_accuracy):
        known = tables.client_table(partition, source.details.get(name, Details()), controls=False)
        table = replace(known, title=f"Each site: {partition.shown_metric}")
        rows = min(len(partition.clients), plots.MOST_NAMED)
        alt = f"Marks: test {partition.metric} of {plural(len(partition.clients), 'site')} by method."
        plot = partial(plots.clients, partition=partition.model_copy(update={"controls": {}}))
        return Block(table, plot, alt, 1.0 + min(0.32, 0.16 + 0.05 * len(partition.methods)) * rows)
    return None


def _sites(partition: Partition, worth: Worth) -> Block | None:
    """Return each site with separate and with federated training; None if no site has both numbers."""
    view = by_deciding_metric(partition)
    sign = -1 if partition.deciding.lower_is_better else 1
    both = zip(*(view.methods[name].client_accuracy for name in (worth.shared, worth.alone)), strict=False)
    values = {
        site: (sign * one, sign * other)
        for site, (one, other) in zip(view.clients, both, strict=False)
        if one is not None and other is not None
    }
    if not values:
        return None
    kind, gained = ("percent", "points") if worth.deciding.share else ("number", "number")
    columns = (
        Column("site", "site"),
        Column("alone", alone_label(worth), kind),
        Column("federated", f"federated ({worth.shared})", kind),
        Column("gain", "improvement", gained),
    )
    order = sorted(values, key=lambda site: -worth.gains[site])
    rows = [
        {"site": site, "federated": values[site][0], "alone": values[site][1], "gain": worth.gains[site]}
        for site in order
    ]
    title = f"Each site: test {worth.metric}, separate and federated"
    alt = (
        f"Rows: test {worth.metric} of each site, from separate to federated training. "
        f"{len(worth.better)} of {plural(len(values), 'site')} are better off, {len(worth.worse)} worse."
    )
    if not worth.better and not worth.worse:
        note = f"Every site has the same test {worth.metric} with separate and with federated training. {MEANING}"
        return Block(Table(title, columns, rows, note))
    plot = partial(first_plots.sites, worth=worth, values=values)
    return Block(Table(title, columns, rows, MEANING), plot, alt, first_plots.sites_height(len(values)))
