"""The sections of the report on a run or a comparison."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from trifed.reports.comparison import plots, tables
from trifed.reports.comparison.metric_tables import (
    class_table,
    client_class_table,
    metric_curve_table,
    metric_tables,
)
from trifed.reports.comparison.ranking_tables import ranking_sections
from trifed.reports.comparison.tables import main_table
from trifed.reports.comparison.verdict import ranked, seals, verdict
from trifed.reports.document import Block, Section, settings_section
from trifed.reports.format import listing, plural
from trifed.reports.results import Details, Matrix, Partition, Source, Study

MOST_UNFOLDED = 12
SIDE_BY_SIDE = (
    "method", "mean", "interval", "worst", "best", "up_per_round", "down_per_round", "once_up", "once_down",
    "total_bytes", "fedavg_lora_would_send", "rounds_to_target", "bytes_to_target", "perplexity",
)  # fmt: skip
MORE = (
    "method", "weighted_mean", "sd", "mean_trained", "mean_received", "learning_rate", "rounds", "kept_round",
    "seeds", "seconds", "bits", "fedavg_lora_would_send", "fedavg_lora_would_send_at_32_bits",
    "rise_in_last_quarter",
)  # fmt: skip
SENT = ("method", "up_per_round", "down_per_round", "once_up", "once_down", "total_bytes")
CURVES = ("method", "round", "mean", "worst", "best", "valid_mean", "training_loss")
MATRICES = {
    "similarity_data": "Similarity of data",
    "similarity_model": "Similarity of models",
    "weights": "Weights of the average",
}
BAND_NOTE = "The shaded area reaches from the worst to the best client of {}."
ALIKE = 0.01
"""Largest difference between the entries of a matrix, as a share of the largest, that is not drawn."""
MATRIX_NOTE = "Rows and columns are in cluster order: neighbours are similar. The scale omits the diagonal."


def sections_of(source: Source) -> Iterator[Section]:
    """Yield the sections: of one data set by topic; of several the ranking first, and each data set folded."""
    study, several = source.study, len(source.study.results) > 1
    if several:
        yield from ranking_sections(study)
        yield Section("Methods", blocks=[Block(tables.methods_table(study))])
    for name, partition in study.results.items():
        topics = list(_topics(study, name, partition, source.details.get(name, Details())))
        if several:
            notes = [verdict(partition), *(note for topic in topics for note in topic.notes)]
            yield Section(name, notes, [block for topic in topics for block in topic.blocks], folded=True)
        else:
            yield from topics
    if study.tuning:
        named = " or ".join(dict.fromkeys(tuning.deciding.name for tuning in study.tuning.values()))
        note = f"Each method's learning rate is the one with the best {named} on validation data."
        borrowed = [
            f"{name} uses the learning rates of {partition.tuned_on}."
            for name, partition in study.results.items()
            if partition.tuned_on not in (None, name)
        ]
        yield Section("Learning rates", [note, *borrowed], list(_tuning(study)), folded=several)
    yield from settings_section(study.configuration, study.environment)


def _topics(study: Study, name: str, partition: Partition, details: Details) -> Iterator[Section]:
    """Yield the sections of one data set that have anything to show."""
    explained = [Block(tables.methods_table(study))] if len(study.results) == 1 and partition.methods else []
    topics = {
        "Clients": list(_clients(partition, details)),
        "Methods": [*_methods(name, partition), *explained],
        "Bytes": list(_bytes(partition, details)),
        "Similarity": list(_similarity(partition, details)),
        "Privacy": [Block(table) for table in [tables.privacy_table(partition)] if table.rows],
        "Details": list(_more(name, partition)),
    }
    notes = {
        "Clients": ["A client is one site with its own data."],
        "Privacy": _on_privacy(partition, details),
    }
    for title, blocks in topics.items():
        if blocks or (title == "Privacy" and partition.methods):
            yield Section(title, notes.get(title, []), blocks)


def _clients(partition: Partition, details: Details) -> Iterator[Block]:
    """Yield each client's result, the worst and the best one, and the split."""
    ends = _ends(partition)
    count = len(partition.methods)
    if any(value is not None for found in partition.methods.values() for value in found.client_accuracy):
        rows = len(partition.clients)
        table = tables.client_table(partition, details)
        yield (
            Block(table, folded=True)
            if rows > plots.MOST_NAMED
            else Block(
                table,
                partial(plots.clients, partition=partition),
                f"Marks: test {partition.metric} of {len(partition.clients)} clients by method. {ends}",
                1.0 + min(0.32, 0.16 + 0.05 * count) * rows,
            )
        )
    if ranked(partition):
        yield Block(
            main_table({"": partition}).only("method", "worst", "mean", "best", title="Worst and best client"),
            partial(plots.worst_to_best, partition=partition),
            f"Bars from the worst to the best client of each method. {ends}",
            0.9 + 0.27 * (count + len(partition.controls)),
        )
    if details.split:
        yield _split(details.split)


def _methods(name: str, partition: Partition) -> Iterator[Block]:
    """Yield the methods side by side, their curves and their differences."""
    yield Block(main_table({name: partition}).only(*SIDE_BY_SIDE).without_empty())
    if not ranked(partition):
        return
    alt = f"Lines: mean test {partition.metric} over rounds. {_ends(partition)}"
    curves = replace(
        tables.curve_table(partition).only(*CURVES), note=BAND_NOTE.format(next(iter(partition.methods)))
    )
    yield Block(curves, partial(plots.curves, partition=partition), alt)
    if partition.differences:
        yield Block(tables.difference_table(partition), folded=len(partition.differences) > MOST_UNFOLDED)


def _bytes(partition: Partition, details: Details) -> Iterator[Block]:
    """Yield what one client sends and receives, accuracy against bytes, and bytes by tensor."""
    methods = list(partition.methods.values())
    if not ranked(partition):
        return
    bars = sum(2 + bool(f.bytes.once_up + f.bytes.once_down) if f.bytes.total else 1 for f in methods)
    yield Block(
        main_table({"": partition}, controls=False).only(*SENT, title="What one client sends and receives"),
        partial(plots.sent, partition=partition),
        "Bars on a log scale: bytes of one client by method, up and down a round, and once.",
        0.9 + 0.24 * bars + 0.12 * len(methods),
    )
    if any(point.bytes for found in methods for point in found.curve):
        yield Block(
            tables.curve_table(partition).only(
                "method", "round", "bytes", "mean", title="Accuracy against bytes sent"
            ),
            partial(plots.curves_over_bytes, partition=partition),
            f"Lines: mean test {partition.metric} against all bytes so far, on a log scale. {_ends(partition)}",
        )
    for method, manifest in details.manifest.items():
        yield Block(tables.manifest_table(f"Bytes by tensor, {method}", manifest), folded=True)


def _more(name: str, partition: Partition) -> Iterator[Block]:
    """Yield further numbers of each method, further metrics, and scores of each class."""
    results = {name: partition}
    more = main_table(results, controls=False).only(*MORE, title="More on each method").without_empty()
    yield Block(replace(more, note=tables.plain_note(results)))
    yield from map(Block, metric_tables(partition))
    for further in (metric_curve_table(partition), class_table(partition), client_class_table(partition)):
        if further.rows:
            yield Block(further, folded=len(further.rows) > MOST_UNFOLDED)


def _on_privacy(partition: Partition, details: Details) -> list[str]:
    """Return what the server saw, and whether noise was added."""
    sharing = [name for name, found in partition.methods.items() if found.bytes.total]
    if not sharing:
        return ["Nothing left a client."]
    noised = any(partition.methods[name].privacy for name in sharing)
    sealed = seals(partition)
    few = f"Uploads of so few examples that they may reveal them: {listing([*dict.fromkeys(details.warned)])}."
    return [
        *([sealed] if sealed else ["The server saw each client's own uploads; the run was not sealed."]),
        *([] if noised else ["No noise was added, so that no privacy budget bounds what an upload reveals."]),
        *([few] if details.warned else []),
    ]


def _ends(partition: Partition) -> str:
    means = "; ".join(f"{name} {partition.shown(mean)}" for name, _, mean in ranked(partition))
    return f"Mean test {partition.metric} at the end: {means}."


def _similarity(partition: Partition, details: Details) -> Iterator[Block]:
    """Yield the matrices of clients; those in which all clients are alike as a sentence."""
    for method, matrices in details.matrices.items():
        order = cluster_order(matrices)
        names = [partition.clients[place] for place in order]
        for name in [known for known in MATRICES if known in matrices]:
            title = f"{MATRICES[name]}, {method}, round {details.round}"
            matrix = matrices[name][np.ix_(order, order)]
            if alike := _alike(matrix):
                yield Block(tables.matrix_table(title, matrix, names, alike), folded=True)
                continue
            alt = f"Heat map of {len(names)} × {len(names)} clients in cluster order."
            plot = partial(plots.similarity, matrix=matrix, names=names)
            yield Block(tables.matrix_table(title, matrix, names, MATRIX_NOTE), plot, alt, 3.4)


def _alike(matrix: Matrix) -> str:
    """Return a sentence on a matrix whose entries differ too little for a picture; empty for any other."""
    off = matrix[~np.eye(len(matrix), dtype=bool)]
    if not len(off) or not np.isfinite(off).all() or np.ptp(off) > ALIKE * np.abs(off).max():
        return ""
    own = np.diag(matrix).mean()
    beside = "" if abs(own - off.mean()) <= ALIKE * np.abs(off).max() else f", and on it {own:.3g} in the mean"
    return f"All clients are alike here: every entry off the diagonal is {off.mean():.3g}{beside}."


def cluster_order(matrices: dict[str, Matrix]) -> list[int]:
    """Order clients so that similar ones are neighbours, by average linkage on similarity, else on the weights."""
    found = [matrix for name, matrix in matrices.items() if name.startswith("similarity")]
    similarity = np.nan_to_num(np.mean(found or list(matrices.values()), axis=0))
    if len(similarity) < 3:
        return list(range(len(similarity)))
    from scipy.cluster.hierarchy import leaves_list, linkage  # takes long to import
    from scipy.spatial.distance import squareform

    distance = similarity.max() - (similarity + similarity.T) / 2
    np.fill_diagonal(distance, 0.0)
    tree = linkage(squareform(distance, checks=False), "average", optimal_ordering=True)
    return [int(place) for place in leaves_list(tree)]


def _split(split: dict[str, Any]) -> Block:
    labels, clients = split["label_names"], split["clients"]
    counts = np.array([[client["train_labels"].get(label, 0) for label in labels] for client in clients], float)
    sizes = sorted({client["train"] for client in clients})
    count = " to ".join(f"{size}" for size in dict.fromkeys((sizes[0], sizes[-1])))
    note = f"{plural(len(clients), 'client')} with {count} training examples each; {plural(len(labels), 'label')}."
    if (counts == counts[:1]).all():
        same = (
            "All clients have equally many examples of each label."
            if len(labels) > 1
            else "All are of equal size."
        )
        return Block(tables.split_table(split, f"{note} {same}"), folded=True)
    names = [client["name"] for client in clients]
    if len(labels) == 1:
        return Block(tables.split_table(split, note), folded=True)
    plot = partial(plots.label_counts, counts=counts, names=names, labels=labels)
    height = (
        0.8
        + (0.2 * len(clients) if len(clients) <= plots.MOST_NAMED else 2.4)
        + (1.0 if len(labels) <= plots.MOST_LABELS else 0.2)
    )
    alt = f"Heat map of training examples by client and label. {note}"
    return Block(tables.split_table(split, note), plot, alt, max(2.2, height))


def _tuning(study: Study) -> Iterable[Block]:
    """Yield one block for each partition on which learning rates were searched."""
    for name, tuning in study.tuning.items():
        chosen = "; ".join(f"{method} {rates.chosen}" for method, rates in tuning.methods.items())
        alt = f"Lines: validation {tuning.deciding.name} over learning rates. Chosen: {chosen}."
        yield Block(tables.tuning_table(study, name), partial(plots.learning_rates, tuning=tuning), alt)
