"""Tables of the clients' data: as rows, JSON, a table for the terminal and plain text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.table import Table as RichTable
from rich.text import Text

from trifed.data.clients import Examples, FederatedData
from trifed.data.hashes import content_hash
from trifed.data.tags import TAGS, tag_counts

MOST_COLUMNS = 8
"""The most labels that have a column each; more labels are summarised in one cell."""

_BAR_WIDTH = 12


@dataclass(frozen=True)
class SplitRow:
    """One client's sizes, and the count of each label in its training part, (n_labels,)."""

    client: str
    train: int
    valid: int
    test: int
    counts: tuple[int, ...]


def split_table(data: FederatedData) -> list[SplitRow]:
    """Return one row per client, in their order."""
    n_labels = len(data.label_names)
    return [
        SplitRow(
            client.name,
            len(client.train),
            len(client.valid),
            len(client.test),
            tuple(_label_counts(client.train, n_labels)),
        )
        for client in data.clients
    ]


def _label_counts(examples: Examples, n_labels: int) -> list[int]:
    """Return the number of examples with each label, or of words with each tag, (n_labels,)."""
    if TAGS in examples.inputs:
        return tag_counts(examples.inputs[TAGS], n_labels)
    counts: list[int] = np.bincount(examples.labels, minlength=n_labels).tolist()
    if examples.targets is not None and examples.targets.dtype == bool:
        counts = examples.targets.sum(axis=0).tolist()
    return counts


def split_to_json(data: FederatedData) -> dict[str, Any]:
    """Return the split as plain values for JSON: sizes and label counts of each client, notes, content hash."""
    return {
        "content_hash": content_hash(data),
        "label_names": list(data.label_names),
        "clients": [
            {
                "name": row.client,
                "train": row.train,
                "valid": row.valid,
                "test": row.test,
                "train_labels": {
                    label: count for label, count in zip(data.label_names, row.counts, strict=True) if count
                },
            }
            for row in split_table(data)
        ],
        "global_test": None if data.global_test is None else len(data.global_test),
        "notes": list(data.notes),
    }


def render_split(data: FederatedData) -> RichTable:
    """Return the split as a table for the terminal."""
    header, rows = _cells(data, bar="█")
    table = RichTable(title=Text(_title(data)), caption=Text("\n".join(data.notes)) if data.notes else None)
    for i, name in enumerate(header):
        table.add_column(Text(name), justify="right" if _is_number(rows, i) else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def render_split_text(data: FederatedData) -> str:
    """Return the split as aligned plain text, followed by the notes."""
    header, rows = _cells(data, bar="#")
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    right = [_is_number(rows, i) for i in range(len(header))]
    lines = [
        "  ".join(
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(row, widths, right, strict=True)
        ).rstrip()
        for row in [header, *rows]
    ]
    return "\n".join([_title(data), "", *lines, *(["", *data.notes] if data.notes else [])])


def _title(data: FederatedData) -> str:
    total = sum(row.train + row.valid + row.test for row in split_table(data))
    test = "" if data.global_test is None else f", {len(data.global_test)} in the global test set"
    clients, labels = _counted(len(data.clients), "client"), _counted(len(data.label_names), "label")
    return f"{clients}, {labels}, {total} examples{test}"


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _cells(data: FederatedData, bar: str) -> tuple[list[str], list[list[str]]]:
    """Return the header and one row of cells per client, with a bar of its size relative to the largest client."""
    rows = split_table(data)
    most = max((row.train for row in rows), default=0) or 1
    few = len(data.label_names) <= MOST_COLUMNS
    labels = data.label_names if few else ["labels", "most frequent"]
    body = []
    for row in rows:
        used = sum(count > 0 for count in row.counts)
        counts = map(str, row.counts) if few else (str(used), _top(row.counts, data.label_names))
        sizes = map(str, (row.train, row.valid, row.test))
        body.append([row.client, *sizes, *counts, bar * -(-_BAR_WIDTH * row.train // most)])
    return ["client", "train", "valid", "test", *labels, ""], body


def _top(counts: Sequence[int], label_names: Sequence[str], k: int = 3) -> str:
    order = sorted((i for i, count in enumerate(counts) if count), key=lambda i: (-counts[i], i))[:k]
    return ", ".join(f"{label_names[i]} {100 * counts[i] / sum(counts):.0f}%" for i in order)


def _is_number(rows: Sequence[Sequence[str]], column: int) -> bool:
    return all(row[column].isdigit() for row in rows)
