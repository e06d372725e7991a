"""The grids of a report: methods side by side, curves, clients, split, bytes by tensor, settings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from trifed.reports.format import control_label, listing
from trifed.reports.results import Details, Matrix, Partition, Spread, Study
from trifed.reports.tables import Column, Grid

MAIN = (
    Column("partition", "partition"),
    Column("method", "method"),
    Column("mean", "mean, %", "percent"),
    Column("interval", "95 %", "interval"),
    Column("worst", "worst", "percent"),
    Column("best", "best", "percent"),
    Column("weighted_mean", "by examples", "percent"),
    Column("sd", "sd over seeds", "percent"),
    Column("up_per_round", "up a round", "bytes"),
    Column("down_per_round", "down a round", "bytes"),
    Column("once_up", "up once", "bytes"),
    Column("once_down", "down once", "bytes"),
    Column("total_bytes", "sent in all", "bytes"),
    Column("rounds_to_target", "rounds to target", "number"),
    Column("bytes_to_target", "bytes to target", "bytes"),
    Column("perplexity", "perplexity", "number"),
    Column("mean_trained", "as trained", "percent"),
    Column("mean_received", "as received", "percent"),
    Column("learning_rate", "learning rate", "number"),
    Column("rounds", "rounds", "count"),
    Column("seeds", "seeds", "count"),
    Column("seconds", "seconds", "number"),
)


def main_grid(results: Mapping[str, Partition]) -> Grid:
    """One row a partition and method, then one a control; all numbers of the result."""
    rows = []
    for name, partition in results.items():
        rows += [_method_row(name, method, partition) for method in partition.methods]
        rows += [_control_row(name, control, spread) for control, spread in partition.controls.items()]
    note = (
        "Worst and best are clients. Bytes are per client, headers counted; 'sent in all' is of all clients and "
        "rounds, up and down."
    )
    targets = sorted({partition.target for partition in results.values() if partition.target is not None})
    if targets:
        note += f" Target: a mean accuracy of {listing([f'{100 * target:.0f} %' for target in targets])}."
    return Grid("Methods and controls side by side", MAIN, rows, note)


def _method_row(place: str, method: str, partition: Partition) -> list[Any]:
    found = partition.methods[method]
    sent = found.bytes
    rounds = max((point.round for point in found.curve), default=None)
    return [
        place, method, found.mean, found.interval, found.worst, found.best, found.weighted_mean, found.sd,
        sent.up_per_round, sent.down_per_round, sent.once_up, sent.once_down, sent.total,
        found.rounds_to_target, found.bytes_to_target, found.perplexity, found.mean_trained, found.mean_received,
        found.learning_rate, rounds, len(partition.seeds), found.seconds,
    ]  # fmt: skip


def _control_row(place: str, control: str, spread: Spread) -> list[Any]:
    row = [place, f"({control_label(control)})", spread.mean, spread.interval, spread.worst, spread.best]
    return row + [None] * (len(MAIN) - len(row))


def difference_grid(partition: Partition) -> Grid:
    """Paired differences between methods, in points."""
    columns = (
        Column("difference", "difference"),
        Column("mean", "points", "points"),
        Column("interval", "95 %", "points interval"),
    )
    rows = [[name, found.mean, found.interval] for name, found in partition.differences.items()]
    return Grid("Differences, paired over clients", columns, rows)


def curve_grid(partition: Partition) -> Grid:
    """One row a method and evaluated round."""
    columns = (
        Column("method", "method"),
        Column("round", "round", "count"),
        Column("mean", "mean, %", "percent"),
        Column("worst", "worst", "percent"),
        Column("best", "best", "percent"),
        Column("valid_mean", "validation", "percent"),
        Column("training_loss", "training loss", "number"),
        Column("bytes", "sent so far", "bytes"),
    )
    rows = [
        [method, p.round, p.mean, p.worst, p.best, p.valid_mean, p.training_loss, p.bytes]
        for method, found in partition.methods.items()
        for p in found.curve
    ]
    return Grid("Accuracy over rounds", columns, rows)


def client_grid(partition: Partition, details: Details | None) -> Grid:
    """One row a client: its examples, and its accuracy under every method and control."""
    split = {client["name"]: client for client in details.split["clients"]} if details and details.split else {}
    shown: list[tuple[str, str, Spread]] = [
        *((name, name, found) for name, found in partition.methods.items()),
        *((name, f"({control_label(name)})", found) for name, found in partition.controls.items()),
    ]
    shown = [item for item in shown if len(item[2].client_accuracy) == len(partition.clients)]
    columns = [Column("client", "client")]
    columns += [Column(part, part, "count") for part in ("train", "test")] if split else []
    before = details.before if details else {}
    columns += [Column("before", "before", "percent")] if before else []
    columns += [Column(key, label, "percent") for key, label, _ in shown]
    rows = []
    for place, client in enumerate(partition.clients):
        sizes = [split.get(client, {}).get(part) for part in ("train", "test")] if split else []
        start = [before.get(client)] if before else []
        rows.append([client, *sizes, *start, *(found.client_accuracy[place] for _, _, found in shown)])
    return Grid(f"Test {partition.metric} of each client, %", columns, rows)


def overview_grid(study: Study) -> Grid:
    """One row a partition: the mean of every method and control."""
    controls = list(dict.fromkeys(name for p in study.results.values() for name in p.controls))
    columns = [Column("partition", "partition")]
    columns += [Column(name, name, "percent") for name in study.methods]
    columns += [Column(name, f"({control_label(name)})", "percent") for name in controls]
    rows: list[list[Any]] = []
    for name, partition in study.results.items():
        found = [partition.methods.get(method) for method in study.methods]
        found_controls = [partition.controls.get(control) for control in controls]
        rows.append([name, *(item.mean if item else None for item in [*found, *found_controls])])
    return Grid("Mean test accuracy, %", columns, rows)


def split_grid(split: dict[str, Any]) -> Grid:
    """Clients × labels: training examples of each label."""
    labels = split["label_names"]
    columns = [
        Column("client", "client"),
        *(Column(part, part, "count") for part in ("train", "valid", "test")),
        *(Column(label, label, "count") for label in labels),
    ]
    rows = [
        [c["name"], c["train"], c["valid"], c["test"], *(c["train_labels"].get(label, 0) for label in labels)]
        for c in split["clients"]
    ]
    return Grid("Training examples of each label", columns, rows)


def matrix_grid(title: str, matrix: Matrix, names: Sequence[str]) -> Grid:
    """A client × client matrix."""
    columns = [Column("client", "client"), *(Column(name, name, "number") for name in names)]
    rows = [[name, *map(float, row)] for name, row in zip(names, matrix, strict=True)]
    return Grid(title, columns, rows)


def manifest_grid(manifest: dict[str, tuple[float, float, float, float]]) -> Grid:
    """Bytes per client of every tensor that travels."""
    columns = (
        Column("tensor", "tensor"),
        Column("once_up", "up once", "bytes"),
        Column("up_per_round", "up a round", "bytes"),
        Column("once_down", "down once", "bytes"),
        Column("down_per_round", "down a round", "bytes"),
    )
    return Grid("Bytes by tensor", columns, [[name, *counts] for name, counts in manifest.items()])


def tuning_grid(study: Study) -> Grid:
    """Every learning rate that was tried, with its accuracy on validation data."""
    columns = (
        Column("partition", "partition"),
        Column("method", "method"),
        Column("learning_rate", "learning rate"),
        Column("validation", "validation, %", "percent"),
        Column("chosen", "chosen"),
    )
    rows = [
        [name, method, rate, accuracy, "chosen" if _same_rate(rate, rates.chosen) else None]
        for name, tuning in study.tuning.items()
        for method, rates in tuning.methods.items()
        for rate, accuracy in rates.grid.items()
    ]
    return Grid("Learning rates tried", columns, rows)


def _same_rate(text: str, chosen: float | None) -> bool:
    try:
        return chosen is not None and abs(float(text) - chosen) <= 1e-9 * abs(chosen)
    except ValueError:
        return False


def settings_grid(title: str, values: dict[str, Any]) -> Grid:
    """A nested dictionary as dotted names and values."""
    columns = (Column("name", "name"), Column("value", "value"))
    return Grid(title, columns, [[name, value] for name, value in _dotted(values, "")])


def _dotted(values: dict[str, Any], prefix: str) -> Iterable[tuple[str, str]]:
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield from _dotted(value, f"{prefix}{name}.")
        elif value is not None:
            shown = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
            yield f"{prefix}{name}", shown if shown else "none"
