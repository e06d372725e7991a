"""Sections of a report on a run or a comparison: each table with its figure, and the figure in words."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import numpy as np
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.spatial.distance import squareform

from trifed.reports.comparison import plots
from trifed.reports.comparison.tables import (
    client_table,
    curve_table,
    difference_table,
    main_table,
    manifest_table,
    matrix_table,
    overview_table,
    privacy_table,
    split_table,
    tuning_table,
)
from trifed.reports.comparison.verdict import ranked
from trifed.reports.document import HEIGHT, WIDTH, Block
from trifed.reports.format import percent, plural
from trifed.reports.results import Details, Matrix, Partition, Study

MOST_UNFOLDED = 12
SIDE_BY_SIDE = (
    "method", "mean", "interval", "worst", "best", "up_per_round", "down_per_round", "once_up", "once_down",
    "total_bytes", "rounds_to_target", "bytes_to_target", "perplexity",
)  # fmt: skip
MORE = (
    "method", "weighted_mean", "sd", "mean_trained", "mean_received", "learning_rate", "rounds", "seeds",
    "seconds", "fedavg_lora_would_send", "rise_in_last_quarter",
)  # fmt: skip
SENT = ("method", "up_per_round", "down_per_round", "once_up", "once_down", "total_bytes")
CURVES = ("method", "round", "mean", "worst", "best", "valid_mean", "training_loss")
MATRICES = {
    "similarity_data": "Similarity of data",
    "similarity_model": "Similarity of models",
    "weights": "Weights of the average",
}
MATRIX_NOTE = "Rows and columns are in cluster order: neighbours are similar. The scale omits the diagonal."


def partition_blocks(name: str, partition: Partition, details: Details) -> Iterable[Block]:
    """Return one partition's tables, then its figures, then what the run folders add."""
    methods = main_table({name: partition}, controls=False)
    yield Block(main_table({name: partition}).only(*SIDE_BY_SIDE).without_empty())
    yield Block(methods.only(*MORE, title="More on each method").without_empty())
    privacy = privacy_table(partition)
    if privacy.rows:
        yield Block(privacy)
    if partition.differences:
        yield Block(difference_table(partition), folded=len(partition.differences) > MOST_UNFOLDED)
    if ranked(partition):
        yield from _figures(partition, details)
    yield from _folder_blocks(partition, details)


def _figures(partition: Partition, details: Details) -> Iterable[Block]:
    means = "; ".join(f"{name} {percent(mean)} %" for name, _, mean in ranked(partition))
    ends = f"Mean test {partition.metric} at the end: {means}."
    sent = main_table({"": partition}, controls=False).only(*SENT, title="What one client sends and receives")
    bars = sum(
        2 + bool(f.bytes.once_up + f.bytes.once_down) if f.bytes.total else 1 for f in partition.methods.values()
    )
    alt = "Bars on a log scale: bytes of one client by method, up and down a round, and once."
    inches = (WIDTH, 0.9 + 0.24 * bars + 0.12 * len(partition.methods))
    yield Block(sent, partial(plots.sent, partition=partition), alt, inches)
    curve = curve_table(partition)
    alt = f"Lines: mean test {partition.metric} over rounds. {ends}"
    yield Block(curve.only(*CURVES), partial(plots.curves, partition=partition), alt)
    if any(point.bytes for found in partition.methods.values() for point in found.curve):
        table = curve.only("method", "round", "bytes", "mean", title="Accuracy against bytes sent")
        alt = f"Lines: mean test {partition.metric} against all bytes sent so far, on a log scale. {ends}"
        yield Block(table, partial(plots.curves_over_bytes, partition=partition), alt)
    worst = main_table({"": partition}).only("method", "worst", "mean", "best", title="Worst and best client")
    alt = f"Bars from the worst to the best client of each method. {ends}"
    inches = (WIDTH, 0.9 + 0.27 * len(worst.rows))
    yield Block(worst, partial(plots.worst_to_best, partition=partition), alt, inches)
    if any(any(a is not None for a in found.client_accuracy) for found in partition.methods.values()):
        rows = min(len(partition.clients), plots.MOST_NAMED)
        inches = (WIDTH, 1.0 + min(0.32, 0.16 + 0.05 * len(partition.methods)) * rows)
        alt = f"Marks: test {partition.metric} of {len(partition.clients)} clients by method. {ends}"
        yield Block(client_table(partition, details), partial(plots.clients, partition=partition), alt, inches)


def _folder_blocks(partition: Partition, details: Details) -> Iterable[Block]:
    if details.split:
        yield _split_block(details.split)
    for method, matrices in details.matrices.items():
        order = cluster_order(matrices)
        names = [partition.clients[place] for place in order]
        for name in [known for known in MATRICES if known in matrices]:
            title = f"{MATRICES[name]}, {method}, round {details.round}"
            matrix = matrices[name][np.ix_(order, order)]
            alt = f"Heat map of {len(names)} × {len(names)} clients in cluster order."
            plot = partial(plots.similarity, matrix=matrix, names=names)
            yield Block(matrix_table(title, matrix, names, MATRIX_NOTE), plot, alt, (WIDTH, 3.4))
    for method, manifest in details.manifest.items():
        yield Block(manifest_table(f"Bytes by tensor, {method}", manifest), folded=True)


def cluster_order(matrices: dict[str, Matrix]) -> list[int]:
    """Order clients so that similar ones are neighbours, by average linkage on similarity, else on the weights."""
    found = [matrix for name, matrix in matrices.items() if name.startswith("similarity")]
    similarity = np.nan_to_num(np.mean(found or list(matrices.values()), axis=0))
    if len(similarity) < 3:
        return list(range(len(similarity)))
    distance = similarity.max() - (similarity + similarity.T) / 2
    np.fill_diagonal(distance, 0.0)
    tree = linkage(squareform(distance, checks=False), "average", optimal_ordering=True)
    return [int(place) for place in leaves_list(tree)]


def _split_block(split: dict[str, Any]) -> Block:
    labels, clients = split["label_names"], split["clients"]
    counts = np.array([[client["train_labels"].get(label, 0) for label in labels] for client in clients], float)
    sizes = [client["train"] for client in clients]
    note = (
        f"{plural(len(clients), 'client')} with {min(sizes)} to {max(sizes)} training examples each; "
        f"{plural(len(labels), 'label')}."
    )
    names = [client["name"] for client in clients]
    plot = partial(plots.label_counts, counts=counts, names=names, labels=labels)
    height = 0.8 + 0.2 * min(len(clients), plots.MOST_NAMED) + (1.0 if len(labels) <= plots.MOST_LABELS else 0.2)
    alt = f"Heat map of training examples by client and label. {note}"
    return Block(split_table(split, note), plot, alt, (WIDTH, max(2.2, height)))


def overview_blocks(study: Study) -> list[Block]:
    """Return all partitions in one table and one figure."""
    means = main_table(study.results).only(
        "partition", "method", "mean", "interval", title="Means with their intervals"
    )
    alt = f"Marks with intervals: mean test accuracy of each method on {plural(len(study.results), 'partition')}."
    inches = (WIDTH, 1.0 + (0.25 + 0.1 * len(study.methods)) * len(study.results))
    return [Block(overview_table(study)), Block(means, partial(plots.overview, study=study), alt, inches)]


def tuning_blocks(study: Study) -> Iterable[Block]:
    """Return one block for each partition on which learning rates were searched."""
    for name, tuning in study.tuning.items():
        chosen = "; ".join(f"{method} {rates.chosen}" for method, rates in tuning.methods.items())
        alt = f"Lines: validation accuracy over learning rates. Chosen: {chosen}."
        yield Block(tuning_table(study, name), partial(plots.learning_rates, tuning=tuning), alt, (WIDTH, HEIGHT))
