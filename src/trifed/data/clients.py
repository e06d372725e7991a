"""Data sets of clients from a table: rows are assigned to clients, and each client's rows are split into parts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trifed.common.errors import DataError
from trifed.data.client_checks import check_held_out, listed, usable_rows
from trifed.data.columns import spelling
from trifed.data.partition import assign_clients, split_rows
from trifed.data.roles import TEXTS, Roles
from trifed.data.settings import DataSettings
from trifed.data.sources import ONE_LABEL, Table, read_table, read_test
from trifed.data.tags import TAGS, tag_names, tag_numbers
from trifed.data.targets import label_matrix

Rows = NDArray[np.int64]

SAMPLE_STREAM = 102
CAP_STREAM = 103
HOLDOUT_STREAM = 104


@dataclass(frozen=True)
class Examples:
    """Inputs of n examples and their labels.

    Attributes:
        inputs: Values by role ("text", "text_pair", "image", …), (n,) each.
        labels: Indices into `FederatedData.label_names`, (n,); all 0 with `targets`.
        targets: Labels that are no classes: numbers, (n, 1), float64, or whether an example has each label,
            (n, n_labels), bool. None if the labels are classes.
    """

    inputs: Mapping[str, list[Any]]
    labels: NDArray[np.int64]
    targets: NDArray[Any] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def texts(self) -> list[str]:
        """Texts, (n,)."""
        return self.inputs["text"]

    @property
    def pairs(self) -> list[str] | None:
        """Second texts, (n,), if there are any."""
        return self.inputs.get("text_pair")


@dataclass(frozen=True)
class ClientData:
    """One client's examples.

    With `data.holdout = "stratified"` every class of `valid` and `test` also occurs in `train`. With "random" and
    "last" some may not.
    """

    name: str
    train: Examples
    valid: Examples
    test: Examples


@dataclass(frozen=True)
class FederatedData:
    """The data of all clients.

    Attributes:
        clients: The clients.
        label_names: Names of the labels, by index.
        global_test: The separate test set of all clients, if there is one.
        notes: Sentences about rows that were dropped or changed.
    """

    clients: list[ClientData]
    label_names: list[str]
    global_test: Examples | None = None
    notes: list[str] = field(default_factory=list)


def text_examples(texts: Sequence[str], pairs: Sequence[str] | None, labels: NDArray[np.int64]) -> Examples:
    """Return examples of texts, optionally with second texts, (n,) each."""
    inputs = {"text": list(texts)} | ({} if pairs is None else {"text_pair": list(pairs)})
    return Examples(inputs, labels)


def make_clients(settings: DataSettings, seed: int, roles: Roles = TEXTS) -> FederatedData:
    """Read the table, assign its rows to clients and split each client's examples.

    Args:
        settings: The settings; equal settings, files and seeds give equal results.
        seed: The run's seed, not negative.
        roles: The columns that a task's model reads.

    Raises:
        DataError: An error of `read_table` or `assign_clients`, clients with too few examples or one label only,
            or labels of the global test set that no client trains on.
    """
    table, test, notes = _read(settings, roles)
    if settings.clients.split == "files":
        notes.insert(
            0, "each file or subfolder is a client (data.clients.split); another split deals its rows out"
        )
    rows = _drawn(np.arange(len(table)), settings.max_examples, [seed, SAMPLE_STREAM])
    if len(rows) < len(table):
        notes.append(f"kept {len(rows)} of {len(table)} rows, drawn at random (data.max_examples)")
        table = table.subset(rows)
    table, labels, label_names = _indexed(table, settings.labels)
    ids, names = assign_clients(labels, table.groups, settings.clients, seed, table.group_names)
    by_client = {name: np.flatnonzero(ids == i) for i, name in enumerate(names)}
    clients = _split_clients(table, labels, label_names, by_client, settings, seed, notes)
    global_test = None if test is None else _global_test(test, clients, label_names)
    return FederatedData(clients, label_names, global_test, notes)


def make_client(settings: DataSettings, seed: int, roles: Roles, name: str, number: int) -> FederatedData:
    """Read one client's own table and split its examples as those of client `number` of a run.

    Args:
        settings: The client's settings.
        seed: The run's seed, not negative.
        roles: The columns that a task's model reads.
        name: The client's name.
        number: The client's number in the run, from 0.

    Raises:
        DataError: An error of `read_table`, or a client with too few examples or one label only.
    """
    table, _, notes = _read(settings, roles)
    table, labels, label_names = _indexed(table, settings.labels)
    rows = {name: np.arange(len(table))}
    clients = _split_clients(table, labels, label_names, rows, settings, seed, notes, number)
    return FederatedData(clients, label_names, None, notes)


def _read(settings: DataSettings, roles: Roles) -> tuple[Table, Table | None, list[str]]:
    """Return the table, the global test set, and notes about the rows that were left out of both."""
    table, test = read_table(settings, roles), read_test(settings, roles)
    skipped = table.skipped + (test.skipped if test else 0)
    notes = [f"left out {_row_count(skipped)} that cannot be read (data.skip_broken)"] if skipped else []
    if settings.drop_duplicates:
        table = _without_duplicates(table, notes)
    if test is not None:
        test = _without_known_rows(test, table, settings, notes)
    return table, test, notes


def _row_count(count: int, kind: str = "") -> str:
    return f"{count} {kind}row{'s' * (count > 1)}"


def _split_clients(
    table: Table,
    labels: NDArray[np.int64],
    label_names: Sequence[str],
    rows: Mapping[str, Rows],
    settings: DataSettings,
    seed: int,
    notes: list[str],
    first: int = 0,
) -> list[ClientData]:
    """Cap, check and split each client's rows; `first` is the number of the first client in the run."""
    limit = settings.clients.max_examples
    capped = {
        name: _drawn(mine, limit, [seed, CAP_STREAM, number])
        for number, (name, mine) in enumerate(rows.items(), first)
    }
    clients = []
    classes = labels if settings.label and TAGS not in table.inputs and table.targets is None else None
    for number, (name, mine) in enumerate(usable_rows(capped, classes, settings, notes).items(), first):
        rng = np.random.default_rng([seed, HOLDOUT_STREAM, number])
        fractions = (settings.valid_fraction, settings.test_fraction)
        parts = split_rows(labels[mine], *fractions, rng, settings.holdout)
        examples = (_examples(table.subset(mine[part]), labels[mine[part]]) for part in parts)
        clients.append(ClientData(name, *examples))
    check_held_out(clients, settings, label_names, notes)
    return clients


def _indexed(table: Table, names: Sequence[str] | None) -> tuple[Table, NDArray[np.int64], list[str]]:
    """Return the table, each row's label as a number, (n,), and the names of the labels.

    Of sentences with tags the names are those of the tags, which are numbers then. Labels that are lists or
    numbers become arrays, as in `Examples`. All rows of both have the label 0.
    """
    zeros = np.zeros(len(table), np.int64)
    if TAGS in table.inputs:
        rows = table.inputs[TAGS]
        known = tag_names(rows) if names is None else list(names)
        inputs = {**table.inputs, TAGS: tag_numbers(rows, known, "data.labels")}
        return replace(table, inputs=inputs), zeros, known
    if table.targets is None:
        return table, *index_labels(table.labels, names)
    targets: NDArray[Any]
    label_names = [ONE_LABEL]
    if len(table) and isinstance(table.targets[0], tuple):
        targets, label_names = label_matrix(table.targets, names)
    else:
        targets = np.array(table.targets, np.float64).reshape(-1, 1)
    return replace(table, targets=list(targets)), zeros, label_names


def _examples(table: Table, labels: NDArray[np.int64]) -> Examples:
    targets = None if not table.targets else np.array(table.targets)
    return Examples(table.inputs, labels, targets)


def index_labels(
    labels: list[str] | list[int], names: Sequence[str] | None = None
) -> tuple[NDArray[np.int64], list[str]]:
    """Return each label's index, (n,), and the names in order: sorted texts, sorted integers, or `names`.

    Raises:
        DataError: A label is not in `names`.
    """
    keys: list[Any] = list(labels) if names is None else list(map(str, labels))
    order = sorted(set(keys)) if names is None else list(names)
    index = {key if names is None else spelling(key): i for i, key in enumerate(order)}
    if len(index) < len(order):
        raise DataError(f"data.labels: got one label twice in {listed(list(map(str, order)))}; leave one out")
    unknown = sorted(set(keys) - set(index))
    if unknown:
        raise DataError(f"data.labels: got other labels, {listed(unknown)}; add them, or correct the rows")
    return np.array([index[key] for key in keys], dtype=np.int64), list(map(str, order))


def _keys(table: Table) -> list[tuple[Any, ...]]:
    return list(zip(*table.inputs.values(), strict=True))


def _without_duplicates(table: Table, notes: list[str]) -> Table:
    """Return the first of equal rows of each client, or of the whole table if it does not name clients.

    What another client has too stays: a site does not know it.
    """
    groups, labels = table.groups or [""] * len(table), table.targets or table.labels
    first: dict[tuple[Any, ...], int] = {}
    dropped, contradicted = Counter[str](), 0
    for row, (group, key) in enumerate(zip(groups, _keys(table), strict=True)):
        kept = first.setdefault((group, key), row)
        dropped[group] += kept != row
        contradicted += labels[kept] != labels[row]
    if not dropped.total():
        return table
    of_clients = listed([f"{name} {count}" for name, count in sorted(dropped.items()) if count and name])
    other = f" ({contradicted} of them had another label than the row kept)" if contradicted else ""
    counted = f": {of_clients}" if of_clients else ""
    notes.append(f"dropped {_row_count(dropped.total(), 'duplicate ')}{counted}{other}")
    return table.subset(np.array(list(first.values()), dtype=np.int64))


def _without_known_rows(test: Table, table: Table, settings: DataSettings, notes: list[str]) -> Table:
    known = set(_keys(table))
    new = np.array([row for row, key in enumerate(_keys(test)) if key not in known], dtype=np.int64)
    shared = len(test) - len(new)
    if shared and not settings.drop_duplicates:
        notes.append(f"{shared} rows of the global test set also occur in the table (drop_duplicates is off)")
        return test
    if shared == len(test):
        raise DataError(
            f"data.test = {settings.test!r}: all {shared} rows also occur in data.source; expected unseen "
            "examples. Name a separate test set, or remove data.test."
        )
    if shared:
        notes.append(f"dropped {_row_count(shared)} of the global test set that also occur in the table")
    return test.subset(new)


def _drawn(rows: Rows, limit: int | None, stream: list[int]) -> Rows:
    """Return at most `limit` of the rows, (n,), drawn at random, in ascending order."""
    if limit is None or limit >= len(rows):
        return rows
    return np.sort(np.random.default_rng(stream).choice(rows, limit, replace=False))


def _global_test(test: Table, clients: Sequence[ClientData], label_names: Sequence[str]) -> Examples:
    if TAGS in test.inputs:
        inputs = {**test.inputs, TAGS: tag_numbers(test.inputs[TAGS], label_names, "data.test")}
        return Examples(inputs, np.zeros(len(test), np.int64))
    if test.targets is not None:
        return _examples(*_indexed(test, label_names)[:2])
    trained = {label_names[label] for client in clients for label in np.unique(client.train.labels)}
    counts = Counter(str(label) for label in test.labels)
    unknown = sorted(set(counts) - trained)
    if unknown:
        raise DataError(
            f"labels of the global test set that are in no client's training data: {listed(unknown)} "
            f"({sum(counts[label] for label in unknown)} of {len(test)} rows). Correct the labels, remove those "
            "rows, or keep more training examples (data.max_examples, data.clients.max_examples)."
        )
    return Examples(test.inputs, index_labels(test.labels, label_names)[0])
