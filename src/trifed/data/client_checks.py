"""Checks that each client has enough examples and classes, before and after they are split into parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from trifed.common.errors import DataError
from trifed.data.settings import DataSettings

Rows = NDArray[np.int64]

if TYPE_CHECKING:
    from trifed.data.clients import ClientData


def listed(names: Sequence[str]) -> str:
    """Return the first eight names, and the number of the others."""
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def usable_rows(
    rows: Mapping[str, Rows], classes: Rows | None, settings: DataSettings, notes: list[str]
) -> dict[str, Rows]:
    """Return each client's rows, with none for a client that has too few, where that is allowed.

    Args:
        rows: Each client's rows, by its name.
        classes: Class of each row of the table, (n,); None for a task without classes.
        settings: The settings.
        notes: A sentence about the clients without data is added.

    Raises:
        DataError: Clients have too few examples, or examples of one class only.
    """
    least = max(1, settings.clients.min_examples)
    small = [name for name, mine in rows.items() if len(mine) < least]
    large = [] if classes is None else [name for name in rows if name not in small]
    alike = [name for name in large if classes is not None and len(np.unique(classes[rows[name]])) == 1]
    counts = listed([f"{name} ({len(rows[name])})" for name in small])
    rules = [
        (
            small and not settings.allow_empty_clients,
            f"clients with fewer than {least} examples: {counts}. Lower data.clients.min_examples, use fewer "
            "clients, or set data.allow_empty_clients = true to keep them without data.",
        ),
        (
            alike and not settings.allow_single_class,
            f"clients with one label only: {listed(alike)}. Name another column as data.label, choose a milder "
            "split (a larger data.clients.alpha or data.clients.labels_per_client), or set "
            "data.allow_single_class = true.",
        ),
    ]
    problems = [message for wrong, message in rules if wrong]
    if problems:
        raise DataError("\n".join(problems))
    if small:
        notes.append(f"kept without data, for having fewer than {least} examples: {counts}")
    return {name: mine[:0] if name in small else mine for name, mine in rows.items()}


def check_held_out(
    clients: Sequence[ClientData], settings: DataSettings, label_names: Sequence[str], notes: list[str]
) -> None:
    """Check what the split has left each client to train, to validate and to test on.

    Args:
        clients: The clients.
        settings: The settings.
        label_names: Names of the labels, by index.
        notes: Sentences are added about clients without a validation example, and about labels that only held-out
            examples of a client have.

    Raises:
        DataError: Clients have no test example, or training examples of one label only.
    """
    stratified = settings.holdout == "stratified"
    reason = (
        "no label occurs there twice and one example of each stays in training"
        if stratified
        else "one example stays in training"
    )
    untested = [client.name for client in clients if len(client.train) and not len(client.test)]
    if untested and settings.test_fraction > 0:
        raise DataError(
            f"data.test_fraction: no example can be held out for {listed(untested)}, because {reason}. Use fewer "
            "clients or more examples, or set data.test_fraction = 0 and name a data.test."
        )
    unchecked = [client.name for client in clients if len(client.train) and not len(client.valid)]
    if unchecked and settings.valid_fraction > 0:
        notes.append(f"no example to spare for validation: {listed(unchecked)}")
    if stratified:
        return  # each label has an example in training
    alike, unseen = [], []
    for client in clients:
        trained, *held_out = (set(part.labels.tolist()) for part in (client.train, client.valid, client.test))
        alone = sorted(set().union(*held_out) - trained)
        if alone:
            unseen.append(f"{client.name} ({listed([label_names[label] for label in alone])})")
        if alone and len(trained) == 1:
            alike.append(client.name)
    if alike and not settings.allow_single_class:
        raise DataError(
            f"data.holdout: got '{settings.holdout}', which leaves training examples of one label only to "
            f"{listed(alike)}. Set it to 'stratified', hold out fewer examples, or set "
            "data.allow_single_class = true."
        )
    if unseen:
        notes.append(f"labels that only held-out examples of a client have: {listed(unseen)}")
