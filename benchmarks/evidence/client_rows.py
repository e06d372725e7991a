"""Tables of data sets that have no column for the wanted clients: the rows, and a column `client`.

Each function takes the rows of a data set and a seed, and returns the rows that are used. Where clients are drawn,
the seed draws them; speakers are the same with every seed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pandas as pd

TASKS = (
    ("airplane", "automobile", "ship", "truck"), ("cat", "deer", "horse"), ("bird", "dog", "frog"),
)  # fmt: skip
"""The three tasks that CIFAR-10 is divided into in the literature of federated LoRA."""
EACH = 3
"""Clients of a domain, and of a task of images."""
KIND = 2
"""Clients of a kind of instructions."""
SPEAKERS = 10


def by_domain(rows: pd.DataFrame, seed: int, each: int = EACH) -> pd.DataFrame:
    """Return the rows with a column `client`: every domain dealt out evenly to `each` clients."""
    return dealt_out(rows.drop_duplicates("text"), "domain", seed, each)


def dealt_out(rows: pd.DataFrame, column: str, seed: int, each: int) -> pd.DataFrame:
    """Return the rows with a column `client`: those of each value of a column, evenly to `each` clients."""
    shuffled = rows.sample(frac=1, random_state=seed)
    number = shuffled.groupby(column).cumcount() % each
    return shuffled.assign(client=shuffled[column] + "-" + number.astype(str))


def drifting(rows: pd.DataFrame, seed: int, clients: int = 10, size: int = 800) -> pd.DataFrame:
    """Return rows in order of time: each client's last 40 % have the mean of its and another client's shares."""
    rows = rows.drop_duplicates("text")
    rng = np.random.default_rng(seed)
    kinds = sorted(rows["label"].unique())
    shares = rng.dirichlet(np.full(len(kinds), 0.5), clients)
    later = (shares + np.roll(shares, 1, axis=0)) / 2
    left = {kind: rows[rows["label"] == kind].sample(frac=1, random_state=seed) for kind in kinds}
    parts = []
    for client in range(clients):
        for part, wanted in ((shares[client], round(0.6 * size)), (later[client], round(0.4 * size))):
            drawn = []
            for kind, count in zip(kinds, rng.multinomial(wanted, part), strict=True):
                drawn.append(left[kind].head(count))
                left[kind] = left[kind].iloc[count:]
            mixed = pd.concat(drawn).sample(frac=1, random_state=seed)
            parts.append(mixed.assign(client=f"client-{client:02d}"))
    return pd.concat(parts)


def pictures(rows: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Return the images with a column `client`: those of each of the three tasks, evenly to three clients."""
    task = {name: f"task-{place + 1}" for place, names in enumerate(TASKS) for name in names}
    return dealt_out(rows.assign(task=rows["label"].map(task)), "task", seed, EACH)


def speakers(rows: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Return what the speakers with most to say speak, each a client."""
    rows = rows.drop_duplicates("text").rename(columns={"speaker": "client"})
    most = rows["text"].str.len().groupby(rows["client"]).sum().nlargest(SPEAKERS).index
    return rows[rows["client"].isin(most)]


def instructions(rows: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Return instructions with a column `client`: those of each kind, evenly to two clients."""
    return dealt_out(rows.drop_duplicates(["instruction", "input"]), "task", seed, KIND)


MAKERS: Mapping[str, Callable[[pd.DataFrame, int], pd.DataFrame]] = {
    made.__name__: made for made in (by_domain, drifting, pictures, speakers, instructions)
}
"""By the name that `DataSet.table` gives."""
