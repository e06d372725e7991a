"""Tables of a run or a comparison: methods side by side, curves, clients, split, bytes, learning rates."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from trifed.methods.explanations import explanation
from trifed.methods.local import ALONE
from trifed.reports.format import control_label, control_meanings, listing, percent, size
from trifed.reports.privacy import PRIVACY_COLUMNS, privacy_row
from trifed.reports.results import Details, Manifest, Matrix, Partition, Spread, Study
from trifed.reports.tables import NAME, Column, Table, as_ratios

PARTITION, METHOD = Column("partition", "partition", NAME), Column("method", "method", NAME)
ENDS = (
    Column("mean", "mean, %", "percent"),
    Column("worst", "worst", "percent"),
    Column("best", "best", "percent"),
)
TRAFFIC = (
    Column("up_per_round", "up a round", "bytes"),
    Column("down_per_round", "down a round", "bytes"),
    Column("once_up", "up once", "bytes"),
    Column("once_down", "down once", "bytes"),
)
PLAIN_LORA = ("fedavg_lora_would_send", "fedavg_lora_would_send_at_32_bits")
MAIN = (
    PARTITION,
    METHOD,
    ENDS[0],
    Column("interval", "95 %", "interval"),
    *ENDS[1:],
    Column("weighted_mean", "by examples", "percent"),
    Column("sd", "sd over seeds", "percent"),
    *TRAFFIC,
    Column("total_bytes", "sent in all", "bytes"),
    Column("rounds_to_target", "rounds to target", "number"),
    Column("bytes_to_target", "bytes to target", "bytes"),
    Column("perplexity", "perplexity", "number"),
    Column("mean_trained", "as trained", "percent"),
    Column("mean_received", "as received", "percent"),
    Column("learning_rate", "learning rate", "number"),
    Column("rounds", "rounds", "count"),
    Column("kept_round", "models of round", "number"),
    Column("seeds", "seeds", "count"),
    Column("seconds", "seconds", "number"),
    Column("bits", "bits a number", "count"),
    Column("fedavg_lora_would_send", "plain LoRA, same bits", "bytes"),
    Column("fedavg_lora_would_send_at_32_bits", "plain LoRA, 32 bits", "bytes"),
    Column("rise_in_last_quarter", "rise in last quarter", "points"),
)


def main_table(results: Mapping[str, Partition], controls: bool = True) -> Table:
    """Return all numbers: for each partition one row a method, then one row a control unless left out."""
    rows = [row for name, partition in results.items() for row in _main_rows(name, partition, controls)]
    targets = sorted({partition.target for partition in results.values() if partition.target is not None})
    reach = f" Target: a mean accuracy of {listing([f'{percent(target)} %' for target in targets])}."
    note = (
        "Worst and best are clients. Bytes are per client, headers included; 'sent in all' is the sum over "
        f"clients and rounds, up and down.{reach if targets else ''}"
    )
    shown = (
        dict.fromkeys(name for partition in results.values() for name in partition.controls) if controls else ()
    )
    notes = [note, plain_note(results), _baseline_note(results), control_meanings(shown)]
    note = " ".join(filter(None, notes))
    return _in_its_unit(Table("Methods and controls side by side", MAIN, rows, note), *results.values())


def _in_its_unit(table: Table, *partitions: Partition) -> Table:
    """Return a table as it is, or without percentages if the metric in the place of accuracy is none."""
    ratios = bool(partitions) and not any(partition.is_percentage for partition in partitions)
    return as_ratios(table) if ratios else table


def plain_note(results: Mapping[str, Partition]) -> str:
    """Return what the bytes of plain LoRA are, if there are any."""
    there = any(one.fedavg_lora_would_send for found in results.values() for one in found.methods.values())
    return (
        "Plain LoRA: what fedavg-lora would send in the same rounds, at the method's own bits a number (sealed if "
        "the run is sealed) and at 32 (not sealed)."
        if there
        else ""
    )


def _baseline_note(results: Mapping[str, Partition]) -> str:
    """Return what the row "alone" is, if there is one."""
    there = any(ALONE in partition.methods for partition in results.values())
    return (
        "The row alone is separate training with the first method: nothing shared, the same adapter, learning "
        "rate and personalization."
        if there
        else ""
    )


def _main_rows(place: str, partition: Partition, controls: bool) -> Iterator[dict[str, Any]]:
    for method, found in partition.methods.items():
        yield {
            **dict(found),
            **dict(found.bytes),
            "partition": place,
            "method": method,
            "total_bytes": found.bytes.total,
            "rounds": max((point.round for point in found.curve), default=None),
            "seeds": len(found.seeds or partition.seeds),
            "rise_in_last_quarter": found.plateau.rise_in_last_quarter if found.plateau else None,
            **({} if found.bytes.total else dict.fromkeys(PLAIN_LORA)),  # nothing to compare with them
        }
    for control, spread in partition.controls.items() if controls else ():
        yield {"partition": place, "method": f"({control_label(control)})", **dict(spread)}


def difference_table(partition: Partition) -> Table:
    """Return paired differences between methods, in points; with the number of seeds where methods lack some."""
    columns = (
        Column("difference", "difference", NAME),
        Column("mean", "points", "points"),
        Column("interval", "95 %", "points interval"),
        *([Column("seeds", "seeds of both", "count")] if partition.unequal_seeds else []),
    )
    rows = [
        {"difference": name, **dict(found), "seeds": len(found.seeds) or None}
        for name, found in partition.differences.items()
    ]
    return _in_its_unit(Table("Differences, paired over clients", columns, rows), partition)


def privacy_table(partition: Partition) -> Table:
    """Return the privacy budget of each method, with the data sets between which it holds."""
    rows = [
        {**privacy_row(line), "method": method}
        for method, found in partition.methods.items()
        for line in found.privacy
        if line["releases"]
    ]
    return Table("Privacy budget", (METHOD, *PRIVACY_COLUMNS), rows)


def curve_table(partition: Partition) -> Table:
    """Return one row for each method and evaluated round."""
    columns = (
        METHOD,
        Column("round", "round", "count"),
        *ENDS,
        Column("valid_mean", "validation", "percent"),
        Column("training_loss", "training loss", "number"),
        Column("bytes", "sent so far", "bytes"),
    )
    rows = [{"method": m, **dict(point)} for m, found in partition.methods.items() for point in found.curve]
    name = "Accuracy" if partition.is_percentage else partition.metric
    return _in_its_unit(Table(f"{name} over rounds", columns, rows), partition)


def client_table(partition: Partition, details: Details, controls: bool = True) -> Table:
    """Return one row for each client: its examples, and its accuracy by every method and control."""
    spreads: dict[str, Spread] = {**partition.methods, **(partition.controls if controls else {})}
    count = len(partition.clients)
    known = {name: s.client_accuracy for name, s in spreads.items() if len(s.client_accuracy) == count}
    split = {client["name"]: client for client in details.split["clients"]} if details.split else {}
    rows = [
        {
            **{part: split.get(client, {}).get(part) for part in ("train", "test")},
            **{name: accuracies[place] for name, accuracies in known.items()},
            "client": client,
            "before": details.before.get(client),
        }
        for place, client in enumerate(partition.clients)
    ]
    columns = (
        Column("client", "client", NAME),
        Column("train", "train", "count"),
        Column("test", "test", "count"),
        Column("before", "before", "percent"),
        *(Column(name, name, "percent") for name in partition.methods),
        *(Column(name, f"({control_label(name)})", "percent") for name in partition.controls if controls),
    )
    title = f"Test {partition.metric} of each client, %"
    return _in_its_unit(Table(title, columns, rows).without_empty(), partition)


def overview_table(study: Study) -> Table:
    """Return one row for each partition: the mean of every method and control."""
    controls = list(dict.fromkeys(name for p in study.results.values() for name in p.controls))
    columns = (
        PARTITION,
        *(Column(name, name, "percent") for name in study.methods),
        *(Column(name, f"({control_label(name)})", "percent") for name in controls),
    )
    rows = [
        {"partition": name, **{key: spread.mean for key, spread in {**p.methods, **p.controls}.items()}}
        for name, p in study.results.items()
    ]
    return Table("Mean test accuracy, %", columns, rows)


def methods_table(study: Study) -> Table:
    """Return what each method does, in a line, and its paper."""
    found = {name: one for partition in study.results.values() for name, one in partition.methods.items()}
    rows = [
        {"method": name, "does": explanation(name) or None, "paper": one.citation or None}
        for name, one in found.items()
    ]
    columns = (METHOD, Column("does", "what it does", "prose"), Column("paper", "paper", "prose"))
    return Table("What each method does", columns, rows)


def split_table(split: dict[str, Any], note: str) -> Table:
    """Return the training examples of each client and label."""
    parts = ("client", "train", "valid", "test")
    keys = {label: f"label {label}" if label in parts else label for label in split["label_names"]}
    columns = (
        Column("client", "client", NAME),
        *(Column(part, part, "count") for part in parts[1:]),
        *(Column(key, label, "count") for label, key in keys.items()),
    )
    rows = [
        {**c, "client": c["name"], **{key: c["train_labels"].get(label, 0) for label, key in keys.items()}}
        for c in split["clients"]
    ]
    return Table("The split: clients and labels", columns, rows, note)


def matrix_table(title: str, matrix: Matrix, names: Sequence[str], note: str) -> Table:
    """Return a client × client matrix."""
    keys = [f"client {name}" if name == "client" else name for name in names]
    columns = [Column(key, name, "number") for key, name in zip(keys, names, strict=True)]
    rows = [
        {"client": name, **dict(zip(keys, map(float, row), strict=True))}
        for name, row in zip(names, matrix, strict=True)
    ]
    return Table(title, (Column("client", "client", NAME), *columns), rows, note)


def manifest_table(title: str, manifest: Manifest) -> Table:
    """Return bytes per client of every tensor that travels, with their sums in the note."""
    sums = {column.label: sum(row[column.key] for row in manifest.values()) for column in TRAFFIC}
    note = ", ".join(f"{size(count)} {label}" for label, count in sums.items() if count)
    columns = (Column("tensor", "tensor"), *(TRAFFIC[place] for place in (2, 0, 3, 1)))
    return Table(
        title, columns, [{"tensor": name, **row} for name, row in manifest.items()], f"Per client: {note}."
    )


def tuning_table(study: Study, partition: str) -> Table:
    """Return every learning rate that was tried on a partition, with the deciding metric on validation data."""
    deciding = study.tuning[partition].deciding
    share = deciding.share
    columns = (
        PARTITION,
        METHOD,
        Column("learning_rate", "learning rate"),
        Column("validation", f"validation, {'%' if share else deciding.name}", "percent" if share else "number"),
        Column("chosen", "chosen"),
    )
    rows = [
        {"partition": partition, "method": method, "learning_rate": rate, "validation": value, "chosen": chosen}
        for method, rates in study.tuning[partition].methods.items()
        for rate, value in rates.grid.items()
        for chosen in ["chosen" if rates.chosen is not None and float(rate) == rates.chosen else None]
    ]
    return Table(f"Learning rates tried on {partition}", columns, rows).without_empty()
