"""Tables of the metrics beside accuracy: of each method, of differences, and of each class."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import numpy as np

from trifed.reports.comparison.deciding import by_deciding_metric
from trifed.reports.results import Partition
from trifed.reports.tables import NAME, Column, Table

METHOD = Column("method", "method", NAME)
CLASS_COLUMNS = (
    Column("class", "class"),
    Column("precision", "precision, %", "percent"),
    Column("recall", "recall", "percent"),
    Column("f1", "F1", "percent"),
    Column("examples", "test examples", "count"),
)
MOST_CLASS_ROWS = 500
"""Most rows of the table of clients and classes."""


def metric_tables(partition: Partition) -> Iterator[Table]:
    """Yield the tables of metrics that have rows, without those of classes."""
    for table in (metric_table(partition), metric_difference_table(partition)):
        if table.rows:
            yield table


def metric_table(partition: Partition) -> Table:
    """Return the further metrics, each with all methods; worst and best are clients."""
    columns = (
        Column("metric", "metric"),
        METHOD,
        Column("mean", "mean", "number"),
        Column("worst", "worst", "number"),
        Column("best", "best", "number"),
    )
    names = dict.fromkeys(name for found in partition.methods.values() for name in found.metrics)
    rows = [
        {"metric": name, "method": method, **dict(found.metrics[name])}
        for name in names
        for method, found in partition.methods.items()
        if name in found.metrics
    ]
    decides = partition.deciding.name in names
    note = f"The order of the methods is decided by {partition.deciding.name}." if decides else ""
    return Table("Further metrics on test data", columns, rows, note)


def metric_difference_table(partition: Partition) -> Table:
    """Return paired differences in the deciding metric; without rows if that is accuracy."""
    columns = (
        Column("difference", "difference", NAME),
        Column("mean", "mean", "number"),
        Column("interval", "95 %", "number interval"),
    )
    name, view = partition.deciding.name, by_deciding_metric(partition)
    sign = -1 if partition.deciding.lower_is_better else 1
    rows: list[dict[str, Any]] = []
    pairs = [] if name == "accuracy" else [pair.partition(" minus ") for pair in partition.differences]
    for one, _, other in pairs:
        gap = view.difference(one, other)
        if gap and gap.mean is not None and gap.interval:
            ends = sorted(sign * end for end in gap.interval)
            rows.append({"difference": f"{one} minus {other}", "mean": sign * gap.mean, "interval": (*ends,)})
    note = "95 % t intervals over clients."
    return Table(f"Differences in {name}, paired over clients", columns, rows, note)


def metric_curve_table(partition: Partition) -> Table:
    """Return the further metrics of each method and evaluated round, and the deciding one on validation data."""
    points = [(method, point) for method, found in partition.methods.items() for point in found.curve]
    names = list(dict.fromkeys(name for _, point in points for name in point.metrics))
    decides = partition.deciding.name
    columns = (
        METHOD,
        Column("round", "round", "count"),
        *(Column(name, name, "number") for name in names),
        *([Column("validation", f"{decides} on validation", "number")] if decides in names else []),
    )
    rows = [
        {**point.metrics, "method": method, "round": point.round, "validation": point.valid_metrics.get(decides)}
        for method, point in points
        if point.metrics
    ]
    return Table("Metrics over rounds, means over clients", columns, rows)


def class_table(partition: Partition) -> Table:
    """Return precision, recall and F1 of each class and method: means over the clients that have a value."""
    columns = (METHOD, *CLASS_COLUMNS[:-1], Column("clients", "clients", "count"), CLASS_COLUMNS[-1])
    rows: list[dict[str, Any]] = []
    for method, found in partition.methods.items():
        by_class: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
        for row in found.classes:
            by_class[row["class"]].append(row)
        for name, parts in by_class.items():
            means = {key: _mean([part[key] for part in parts]) for key in ("precision", "recall", "f1")}
            examples = [part["examples"] for part in parts]
            clients = sum(count > 0 for count in examples)
            rows.append({"method": method, "class": name, **means, "clients": clients, "examples": sum(examples)})
    note = "Means over clients. Clients: those with test examples of the class."
    return Table("Precision, recall and F1 by class", columns, rows, note)


def client_class_table(partition: Partition) -> Table:
    """Return precision, recall and F1 of each client and class by the first method; no rows if they are many."""
    method, found = next(iter(partition.methods.items()), ("", None))
    rows = found.classes if found and len(found.classes) <= MOST_CLASS_ROWS else []
    return Table(f"Clients and classes, {method}", (Column("client", "client", NAME), *CLASS_COLUMNS), rows)


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
