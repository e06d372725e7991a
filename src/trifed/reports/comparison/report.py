"""The report on a run or a comparison, before it has a format, and its tables for a terminal."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from rich.columns import Columns
from rich.console import Group, RenderableType
from rich.text import Text

from trifed.reports.comparison import plots, tables
from trifed.reports.comparison.advice import advice_on
from trifed.reports.comparison.first import first_block, outcome
from trifed.reports.comparison.metric_tables import (
    class_table,
    client_class_table,
    metric_curve_table,
    metric_tables,
)
from trifed.reports.comparison.tables import main_table
from trifed.reports.comparison.verdict import cautions, ranked, study_verdict, verdict
from trifed.reports.document import WIDTH, Block, Document, Section, settings_section
from trifed.reports.figures import draw_figure
from trifed.reports.format import control_meanings, listing, percent, plural
from trifed.reports.results import Details, Matrix, Partition, Source, Study
from trifed.reports.tables import to_terminal

MOST_UNFOLDED, MOST_MISSING = 12, 8
SIDE_BY_SIDE = (
    "method", "mean", "interval", "worst", "best", "up_per_round", "down_per_round", "once_up", "once_down",
    "total_bytes", "rounds_to_target", "bytes_to_target", "perplexity",
)  # fmt: skip
MORE = (
    "method", "weighted_mean", "sd", "mean_trained", "mean_received", "learning_rate", "rounds", "kept_round",
    "seeds", "seconds", "fedavg_lora_would_send", "rise_in_last_quarter",
)  # fmt: skip
SENT = ("method", "up_per_round", "down_per_round", "once_up", "once_down", "total_bytes")
CURVES = ("method", "round", "mean", "worst", "best", "valid_mean", "training_loss")
MATRICES = {
    "similarity_data": "Similarity of data",
    "similarity_model": "Similarity of models",
    "weights": "Weights of the average",
}
ALIKE = 0.01
"""Largest difference between the entries of a matrix, as a share of the largest, that is not drawn."""
MATRIX_NOTE = "Rows and columns are in cluster order: neighbours are similar. The scale omits the diagonal."
RUN_OVERVIEW = ("method", "mean", "worst", "best", "up_per_round", "total_bytes", "fedavg_lora_would_send")
ACCURACY = ("method", "learning_rate", "mean", "sd", "interval", "worst", "best")
TRAFFIC = ("method", "up_per_round", "down_per_round", "once_up", "once_down", "bytes_to_target", "seconds")


def render_result(source: Source) -> RenderableType:
    """Render a run's result for a terminal: its clients, its methods and controls, and the verdict."""
    parts: list[RenderableType] = []
    for name, partition in source.study.results.items():
        clients = tables.client_table(partition, source.details.get(name, Details()), controls=False)
        overview = main_table({name: partition}).only(*RUN_OVERVIEW).without_empty()
        parts += [to_terminal(clients), to_terminal(overview)]
        parts += [Text(text, style="dim") for text in [control_meanings(partition.controls)] if text]
        parts += map(to_terminal, metric_tables(partition))
    advice = advice_on(source).text
    return Group(*parts, Text(study_verdict(source.study), style="bold"), Text(advice))


def render_comparison(data: dict[str, Any]) -> RenderableType:
    """Render the contents of comparison.json: tables and verdict of each partition, and the missing runs."""
    study = Study.model_validate(data)
    parts: list[RenderableType] = []
    for name, partition in study.results.items():
        seeds = f"clients {len(partition.clients)}, seeds {len(partition.seeds)}"
        columns = (*ACCURACY, "seeds") if partition.unequal_seeds else ACCURACY
        accuracy = main_table({name: partition}).only(*columns, title=f"{name}: test {partition.metric}, {seeds}")
        sent = main_table({name: partition}, controls=False).only(
            *TRAFFIC, title="What a client sends and receives"
        )
        parts += [
            # Side by side where the terminal is wide enough: no number may fall off its edge.
            Columns([to_terminal(accuracy.without_empty()), to_terminal(sent.without_empty())]),
            to_terminal(tables.difference_table(partition)),
            *map(to_terminal, metric_tables(partition)),
            Text(verdict(partition)),
        ]
    lines = [caution.text for caution in cautions(Source(Path(), "comparison", study, {}))]
    if study.missing:
        lines.append(_to_do([missing.state for missing in study.missing]))
    lines += [f"  {m.partition} · {m.method} · seed {m.seed}: {m.state}" for m in study.missing[:MOST_MISSING]]
    if len(study.missing) > MOST_MISSING:
        lines.append(f"  and {len(study.missing) - MOST_MISSING} more")
    return Group(*parts, *map(Text, lines))


def _to_do(states: list[str]) -> str:
    """Return the heading of the runs that are not finished."""
    runs = plural(len(states), "run")
    if any(state.startswith(("running", "waiting")) for state in states):
        return f"{runs} to do:"
    return f"{runs} missing; the same command without --show runs what is missing:"


def comparison_document(source: Source) -> Document:
    """Return everything that a report says about a run or a comparison."""
    study = source.study
    results = [item for partition in study.results.values() for item in partition.methods.items()]
    advice = advice_on(source)
    return Document(
        title=study.name,
        subtitle=_subtitle(source),
        verdict=study_verdict(study),
        cautions=cautions(source),
        missing=_missing(source),
        main=main_table(study.results),
        sections=list(_sections(source)),
        methods=tuple(study.methods),
        resume_command=source.resume_command,
        citations={method: result.citation for method, result in results if result.citation},
        outcome=outcome(study),
        recommendation=advice.text,
        advice=advice.code,
        first=first_block(source),
    )


def figures_of(document: Document) -> dict[str, Figure]:
    """Return the figures of a report, by the titles of their tables; those of several partitions by theirs too."""
    first = [Section("", blocks=[document.first])] if document.first else []
    parts = [*first, *document.sections]
    drawn = [(section.title, block) for section in parts for block in section.blocks if block.plot]
    several = len({block.table.title for _, block in drawn}) < len(drawn)
    figures = {}
    for section, block in drawn:
        own = f"{section}: {block.table.title}" if several and section else block.table.title
        if block.plot:
            figures[own] = draw_figure(block.plot, document.methods, (WIDTH, block.height), own)
    return figures


def _subtitle(source: Source) -> str:
    """Return what was run: of a run its method, data and sites; of a comparison counts."""
    study = source.study
    if source.kind == "run":
        first, *others = study.methods
        places = [f"{name}, {plural(len(found.clients), 'site')}" for name, found in study.results.items()]
        beside = f" beside {listing(others)}" if others else ""
        return f"Run of {first}{beside}: {'; '.join(places)}, seed {study.seeds[0]}"
    clients = {len(partition.clients) for partition in study.results.values() if partition.clients}
    counts = {"method": len(study.methods), "partition": len(study.partitions)}
    counts |= {"client": clients.pop()} if len(clients) == 1 else {}
    return ", ".join(plural(count, noun) for noun, count in {**counts, "seed": len(study.seeds)}.items())


def _missing(source: Source) -> list[str]:
    """Return the runs that are not finished; those of a comparison by partition and state."""
    study = source.study
    if source.kind == "run":
        return [f"{item.method}: {item.state}" for item in study.missing]
    seeds: defaultdict[tuple[str, str], defaultdict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for item in study.missing:
        seeds[item.partition, item.state][item.method].append(str(item.seed))
    return [
        f"{partition}, {state}: "
        + (
            "all methods and seeds"
            if sum(map(len, methods.values())) == len(study.methods) * len(study.seeds)
            else ", ".join(f"{method} (seed {listing(numbers)})" for method, numbers in methods.items())
        )
        for (partition, state), methods in seeds.items()
    ]


def _sections(source: Source) -> Iterator[Section]:
    study, several = source.study, len(source.study.results) > 1
    if several:
        yield Section("All partitions", blocks=_overview(study))
    for name, partition in study.results.items():
        details = source.details.get(name, Details())
        blocks = [*_numbers(name, partition), *_figures(partition, details), *_from_folders(partition, details)]
        yield Section(name, [verdict(partition)] if several else [], blocks)
    if study.tuning:
        named = " or ".join(dict.fromkeys(tuning.deciding.name for tuning in study.tuning.values()))
        note = f"Each method's learning rate is the one with the best {named} on validation data."
        borrowed = [
            f"{name} uses the learning rates of {partition.tuned_on}."
            for name, partition in study.results.items()
            if partition.tuned_on not in (None, name)
        ]
        yield Section("Learning rates", [note, *borrowed], list(_tuning(study)))
    yield from settings_section(study.configuration, study.environment)


def _overview(study: Study) -> list[Block]:
    """Return all partitions in one table and one figure."""
    means = main_table(study.results).only(
        "partition", "method", "mean", "interval", title="Means with their intervals"
    )
    alt = f"Marks with intervals: mean test accuracy of each method on {plural(len(study.results), 'partition')}."
    height = 1.0 + (0.25 + 0.1 * len(study.methods)) * len(study.results)
    return [
        Block(tables.overview_table(study)),
        Block(means, partial(plots.overview, study=study), alt, height),
    ]


def _numbers(name: str, partition: Partition) -> Iterator[Block]:
    methods, privacy = main_table({name: partition}, controls=False), tables.privacy_table(partition)
    yield Block(main_table({name: partition}).only(*SIDE_BY_SIDE).without_empty())
    yield Block(methods.only(*MORE, title="More on each method").without_empty())
    yield from map(Block, metric_tables(partition))
    for further in (metric_curve_table(partition), class_table(partition), client_class_table(partition)):
        if further.rows:
            yield Block(further, folded=len(further.rows) > MOST_UNFOLDED)
    if privacy.rows:
        yield Block(privacy)
    if partition.differences:
        yield Block(tables.difference_table(partition), folded=len(partition.differences) > MOST_UNFOLDED)


def _figures(partition: Partition, details: Details) -> Iterator[Block]:
    """Yield the figures of a partition that has a result, each with its numbers."""
    if not ranked(partition):
        return
    methods, metric = list(partition.methods.values()), f"mean test {partition.metric}"
    means = "; ".join(f"{name} {percent(mean)} %" for name, _, mean in ranked(partition))
    ends = f"Mean test {partition.metric} at the end: {means}."
    bars = sum(2 + bool(f.bytes.once_up + f.bytes.once_down) if f.bytes.total else 1 for f in methods)
    yield Block(
        main_table({"": partition}, controls=False).only(*SENT, title="What one client sends and receives"),
        partial(plots.sent, partition=partition),
        "Bars on a log scale: bytes of one client by method, up and down a round, and once.",
        0.9 + 0.24 * bars + 0.12 * len(methods),
    )
    curve = tables.curve_table(partition)
    alt = f"Lines: {metric} over rounds. {ends}"
    yield Block(curve.only(*CURVES), partial(plots.curves, partition=partition), alt)
    if any(point.bytes for found in methods for point in found.curve):
        yield Block(
            curve.only("method", "round", "bytes", "mean", title="Accuracy against bytes sent"),
            partial(plots.curves_over_bytes, partition=partition),
            f"Lines: {metric} against all bytes sent so far, on a log scale. {ends}",
        )
    yield Block(
        main_table({"": partition}).only("method", "worst", "mean", "best", title="Worst and best client"),
        partial(plots.worst_to_best, partition=partition),
        f"Bars from the worst to the best client of each method. {ends}",
        0.9 + 0.27 * (len(methods) + len(partition.controls)),
    )
    if any(accuracy is not None for found in methods for accuracy in found.client_accuracy):
        rows = min(len(partition.clients), plots.MOST_NAMED)
        yield Block(
            tables.client_table(partition, details),
            partial(plots.clients, partition=partition),
            f"Marks: test {partition.metric} of {len(partition.clients)} clients by method. {ends}",
            1.0 + min(0.32, 0.16 + 0.05 * len(methods)) * rows,
        )


def _from_folders(partition: Partition, details: Details) -> Iterator[Block]:
    """Yield the blocks whose numbers only the runs' own folders hold."""
    if details.split:
        yield _split(details.split)
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
    for method, manifest in details.manifest.items():
        yield Block(tables.manifest_table(f"Bytes by tensor, {method}", manifest), folded=True)


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
    sizes = [client["train"] for client in clients]
    note = (
        f"{plural(len(clients), 'client')} with {min(sizes)} to {max(sizes)} training examples each; "
        f"{plural(len(labels), 'label')}."
    )
    names = [client["name"] for client in clients]
    plot = partial(plots.label_counts, counts=counts, names=names, labels=labels)
    height = 0.8 + 0.2 * min(len(clients), plots.MOST_NAMED) + (1.0 if len(labels) <= plots.MOST_LABELS else 0.2)
    alt = f"Heat map of training examples by client and label. {note}"
    return Block(tables.split_table(split, note), plot, alt, max(2.2, height))


def _tuning(study: Study) -> Iterable[Block]:
    """Yield one block for each partition on which learning rates were searched."""
    for name, tuning in study.tuning.items():
        chosen = "; ".join(f"{method} {rates.chosen}" for method, rates in tuning.methods.items())
        alt = f"Lines: validation {tuning.deciding.name} over learning rates. Chosen: {chosen}."
        yield Block(tables.tuning_table(study, name), partial(plots.learning_rates, tuning=tuning), alt)
