"""Blocks that need a run's folder: split, similarity and weights in cluster order, bytes by tensor."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.spatial.distance import squareform

from trifed.reports.comparison import plots as panels
from trifed.reports.comparison.sections import WIDTH, Block
from trifed.reports.comparison.tables import manifest_grid, matrix_grid, split_grid
from trifed.reports.format import plural, size
from trifed.reports.results import Details, Matrix, Partition
from trifed.reports.style import Style, short
from trifed.reports.tables import Grid

TITLES = {
    "similarity_data": "Similarity of data",
    "similarity_model": "Similarity of models",
    "weights": "Weights of the average",
}
MOST_LABELS = 20
ROW_INCHES = 0.2


def folder_blocks(partition: Partition, details: Details) -> list[Block]:
    """Everything that the run folders of one partition add."""
    blocks = [_split_block(details.split)] if details.split else []
    for method, matrices in details.matrices.items():
        order = cluster_order(matrices)
        names = [partition.clients[place] for place in order]
        for name in [known for known in TITLES if known in matrices]:
            title = f"{TITLES[name]}, {method}, round {details.round}"
            blocks.append(_heat_block(title, matrices[name], order, names))
    blocks += [_manifest_block(method, found) for method, found in details.manifest.items()]
    return blocks


def cluster_order(matrices: dict[str, Matrix]) -> list[int]:
    """Clients so that alike ones are neighbours: average linkage on the mean similarity, else on the weights."""
    found = [matrix for name, matrix in matrices.items() if name.startswith("similarity")]
    similarity = np.nan_to_num(np.mean(found or list(matrices.values()), axis=0))
    if len(similarity) < 3:
        return list(range(len(similarity)))
    distance = similarity.max() - (similarity + similarity.T) / 2
    np.fill_diagonal(distance, 0.0)
    tree = linkage(squareform(distance, checks=False), "average", optimal_ordering=True)
    return [int(place) for place in leaves_list(tree)]


def _heat_block(title: str, matrix: Matrix, order: list[int], names: list[str]) -> Block:
    def draw(figure: Figure, style: Style) -> None:
        axes = figure.subplots()
        panels.heat(figure, axes, matrix, order, style)
        panels.name_rows(axes, names)

    ordered = matrix[np.ix_(order, order)]
    grid = matrix_grid(title, ordered, names)
    note = "Rows and columns in cluster order, alike clients side by side; the diagonal is not in the scale."
    return Block(
        Grid(title, grid.columns, grid.rows, note),
        draw,
        f"Heat map of {len(names)} × {len(names)} clients in cluster order. {_nearest(ordered, names)}",
        (WIDTH, 3.4),
    )


def _nearest(matrix: Matrix, names: list[str]) -> str:
    """The pair with the largest entry off the diagonal."""
    if len(names) < 2:
        return ""
    off = np.where(np.eye(len(matrix), dtype=bool), -np.inf, matrix)
    row, column = np.unravel_index(int(off.argmax()), off.shape)
    return f"Largest off the diagonal: {names[row]} and {names[column]}, {off[row, column]:.2f}."


def _split_block(split: dict[str, Any]) -> Block:
    labels, clients = split["label_names"], split["clients"]
    counts = np.array([[client["train_labels"].get(label, 0) for label in labels] for client in clients], float)

    def draw(figure: Figure, style: Style) -> None:
        axes = figure.subplots()
        panels.label_counts(figure, axes, counts, style)
        panels.name_rows(axes, [client["name"] for client in clients])
        if len(labels) <= MOST_LABELS:
            axes.set_xticks(range(len(labels)), [short(label, 16) for label in labels], rotation=60, ha="right")
        else:
            axes.set_xlabel(f"{len(labels)} labels")

    grid = split_grid(split)
    sizes = [client["train"] for client in clients]
    held = [len(client["train_labels"]) for client in clients]
    note = (
        f"{plural(len(clients), 'client')}, {plural(len(labels), 'label')}; a client has {min(sizes)} to "
        f"{max(sizes)} training examples of {min(held)} to {max(held)} labels."
    )
    rows = min(len(clients), panels.MOST_NAMED)
    inches = (WIDTH, max(2.2, 0.8 + ROW_INCHES * rows + (1.0 if len(labels) <= MOST_LABELS else 0.2)))
    title = "The split: clients and labels"
    return Block(Grid(title, grid.columns, grid.rows, note), draw, f"Heat map of clients × labels. {note}", inches)


def _manifest_block(method: str, manifest: dict[str, tuple[float, float, float, float]]) -> Block:
    grid = manifest_grid(manifest)
    totals = [sum(row[place] for row in manifest.values()) for place in range(4)]
    ways = zip(("once up", "a round up", "once down", "a round down"), totals, strict=True)
    said: Iterable[str] = (f"{size(count)} {way}" for way, count in ways if count)
    note = f"Per client: {', '.join(said)}."
    return Block(Grid(f"Bytes by tensor, {method}", grid.columns, grid.rows, note), folded=True)
