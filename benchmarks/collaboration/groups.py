"""Clients in planted groups, cut from public data sets: who should learn from whom is known.

Each setting is one table with the columns text, label and client, in a Parquet file that `trifed run` reads with
`split = "column"`. Clients of one group draw from one distribution and share no example.

- `tasks`: SST-2, QNLI, MRPC and QQP, one group each; all have two labels, which mean something else in each.
- `named-tasks`: the same with labels of their own names, so that no two tasks share one.
- `domains`: four domains of CLINC150; groups share no label.
- `intents`: BANKING77, three mixes of its 77 intents, drawn from a Dirichlet distribution; labels overlap.
- `topics`: AG News, three mixes of its four topics; everything learned about a topic holds everywhere.
- `unrelated`: eight domains of CLINC150, one client each: nobody has a partner.
- `alike`: nine clients of BANKING77 without any difference.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

Table = pd.DataFrame
CLIENTS = 3
"""Clients a group."""

TASKS = ("glue_sst2", "glue_qnli", "glue_mrpc", "glue_qqp")
DOMAINS, LONERS, ALIKE = 4, 8, 9
INTENT_MIXES, INTENT_ALPHA = 3, 0.2
TOPIC_MIXES = ((0.45, 0.45, 0.05, 0.05), (0.05, 0.05, 0.45, 0.45), (0.45, 0.05, 0.05, 0.45))


def plant(setting: str, data: Path, examples: int, seed: int) -> Table:
    """A setting with `examples` rows a client: text, label, client, group. `data`: folder of the data sets."""
    rng = np.random.default_rng([seed, 4])
    parts: list[Table] = []
    for group, table in SETTINGS[setting](data, examples, rng):
        parts.append(table.assign(client=f"client-{len(parts):02d}", group=group))
    return pd.concat(parts, ignore_index=True)[["text", "label", "client", "group"]]


def read(data: Path, name: str) -> Table:
    """One data set, labels as text; of two texts one, with the mark that BERT's kin read between them."""
    table = pd.read_parquet(data / name / "train.parquet")
    if "text_pair" in table:
        table["text"] = table["text"] + " [SEP] " + table["text_pair"]
    table["label"] = table["label"].astype(str)
    return table.drop_duplicates("text").reset_index(drop=True)


def _deal(table: Table, clients: int, examples: int, rng: np.random.Generator) -> Iterator[Table]:
    order = rng.permutation(len(table))
    for client in range(clients):
        yield table.iloc[order[client * examples : (client + 1) * examples]]


def _tasks(
    data: Path, examples: int, rng: np.random.Generator, named: bool = False
) -> Iterator[tuple[int, Table]]:
    for group, name in enumerate(TASKS):
        table = read(data, name)
        # Two labels for all: the tasks' own names would tell the groups apart without a look at the texts.
        places = pd.factorize(table["label"], sort=True)[0]
        table["label"] = [f"{name} {place}" if named else str(place) for place in places]
        yield from ((group, part) for part in _deal(table, CLIENTS, examples, rng))


def _domains(data: Path, examples: int, rng: np.random.Generator) -> Iterator[tuple[int, Table]]:
    table = read(data, "clinc150")
    for group, domain in enumerate(rng.permutation(sorted(table["domain"].unique()))[:DOMAINS]):
        for part in _deal(table[table["domain"] == domain], CLIENTS, examples, rng):
            yield group, part


def _unrelated(data: Path, examples: int, rng: np.random.Generator) -> Iterator[tuple[int, Table]]:
    table = read(data, "clinc150")
    for group, domain in enumerate(rng.permutation(sorted(table["domain"].unique()))[:LONERS]):
        yield group, next(_deal(table[table["domain"] == domain], 1, examples, rng))


def _intents(data: Path, examples: int, rng: np.random.Generator) -> Iterator[tuple[int, Table]]:
    table = read(data, "banking77")
    names = sorted(table["label"].unique())
    yield from _mixed(table, names, rng.dirichlet([INTENT_ALPHA] * len(names), INTENT_MIXES), examples, rng)


def _topics(data: Path, examples: int, rng: np.random.Generator) -> Iterator[tuple[int, Table]]:
    table = read(data, "ag_news")
    yield from _mixed(table, sorted(table["label"].unique()), np.array(TOPIC_MIXES), examples, rng)


def _mixed(
    table: Table, names: list[str], mixes: NDArray[np.float64], examples: int, rng: np.random.Generator
) -> Iterator[tuple[int, Table]]:
    """Three clients a mix; a label that runs out is made up for by the mix's other labels."""
    left = {name: list(rng.permutation(np.flatnonzero(table["label"] == name))) for name in names}
    for group, mix in enumerate(mixes):
        for _ in range(CLIENTS):
            rows = []
            while len(rows) < examples:
                there = np.array([len(left[name]) > 0 for name in names])
                chances = (mix + 1e-6) * there
                rows.append(left[names[rng.choice(len(names), p=chances / chances.sum())]].pop())
            yield group, table.iloc[rows]


def _alike(data: Path, examples: int, rng: np.random.Generator) -> Iterator[tuple[int, Table]]:
    yield from ((0, part) for part in _deal(read(data, "banking77"), ALIKE, examples, rng))


SETTINGS: dict[str, Callable[[Path, int, np.random.Generator], Iterator[tuple[int, Table]]]] = {
    "tasks": _tasks,
    "named-tasks": partial(_tasks, named=True),
    "domains": _domains,
    "intents": _intents,
    "topics": _topics,
    "unrelated": _unrelated,
    "alike": _alike,
}
