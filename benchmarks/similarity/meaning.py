"""Which clients share, where it is known whether their labels mean the same?

    python benchmarks/similarity/meaning.py --data DIR [--seeds 1] [--out meaning.json]

Real sentences, planted cases: clients of one meaning in shifted domains or with skewed labels ought to share;
clients with swapped, permuted or unrelated labels ought not to. For each case, number of examples a client and
ratio (`shared_label_ratio` compares means, `label_meaning_ratio` contrasts too): the share of pairs
that share, of those that ought to (`alike`) and of those that ought not to (`unlike`). Features are MiniLM's,
frozen, projected to 64 dimensions and summarised as a client does it. Results go to meaning.json.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from bench import embed, shared_model
from numpy.typing import NDArray

from trifed import similarity
from trifed.data import text_examples
from trifed.federation.preparation import environment

HERE = Path(__file__).parent
SIZES = (48, 200, 400)
LIMIT = 2.0
"""Two clients share below this ratio, as `aggregation.agreement` has it by default."""
Json = dict[str, Any]
Part = tuple[NDArray[np.float32], NDArray[np.int64]]


class Source:
    """Features (n, d) and labels (n,) of one data set's rows, embedded once and drawn without repetition."""

    def __init__(self, table: pd.DataFrame, most: int, seed: int) -> None:
        table = table.drop_duplicates("text").sample(frac=1, random_state=seed).head(most)
        labels = np.unique(table["label"].to_numpy(), return_inverse=True)[1].astype(np.int64)
        self.x = embed(text_examples(list(table["text"]), None, labels))
        self.y = labels
        self.left = np.arange(len(labels))

    def draw(self, size: int, rng: np.random.Generator, shares: NDArray[np.float64] | None = None) -> Part:
        """Take `size` rows, by shares of the labels (n_labels,) if given; fewer where a label runs out."""
        if shares is None:
            rows, self.left = self.left[:size], self.left[size:]
        else:
            wanted = rng.multinomial(size, shares)
            found = [self.left[self.y[self.left] == label][:n] for label, n in enumerate(wanted)]
            rows = np.concatenate(found)
            self.left = np.setdiff1d(self.left, rows, assume_unique=True)
        return self.x[rows], self.y[rows]


def read(data: Path, name: str) -> pd.DataFrame:
    table = pd.read_parquet(data / name / "train.parquet")
    if "text_pair" in table:
        table = table.assign(text=table["text"] + " " + table["text_pair"])
    return table


def cases(data: Path, seed: int) -> Mapping[str, tuple[list[Part], list[int]]]:
    """Clients of the largest size, and the meaning of each client's labels as a number, by the case's name."""
    rng, most = np.random.default_rng(seed), max(SIZES)
    found: dict[str, tuple[list[Part], list[int]]] = {}
    domains = [group for _, group in read(data, "sentiment_domains").groupby("domain")]
    by_domain = [Source(table, 3 * most, seed) for table in domains]
    parts = [source.draw(most, rng) for source in by_domain for _ in range(3)]
    found["one meaning, three domains"] = parts, [0] * 9
    found["three domains, labels of one swapped"] = _swapped(parts, range(3)), [1] * 3 + [0] * 6
    films = Source(read(data, "glue_sst2"), 17 * most, seed)
    parts = [films.draw(most, rng) for _ in range(8)]
    found["films"] = parts, [0] * 8
    found["films, labels of half swapped"] = _swapped(parts, range(4)), [1] * 4 + [0] * 4
    skewed = [films.draw(most, rng, rng.dirichlet([0.5, 0.5])) for _ in range(8)]
    found["films, Dirichlet 0.5"] = skewed, [0] * 8
    news = Source(read(data, "ag_news"), 4400, seed)
    quarters = [news.draw(most, rng, np.full(4, 0.25)) for _ in range(8)]
    turned = [(x, (y + 1) % 4) for x, y in quarters[:4]]
    found["topics"] = quarters, [0] * 8
    found["topics, labels of half permuted"] = turned + quarters[4:], [1] * 4 + [0] * 4
    pairs = [[news.draw(most // 2, rng, np.eye(4)[kinds].mean(0)) for _ in range(3)] for kinds in ([0, 1], [2, 3])]
    found["two topics against two others"] = [(x, y % 2) for part in pairs for x, y in part], [0] * 3 + [1] * 3
    entailed = Source(read(data, "glue_qnli"), 4 * most, seed)
    other = [entailed.draw(most, rng) for _ in range(4)]
    found["films against questions and answers"] = parts[:4] + other, [0] * 4 + [1] * 4
    intents = Source(read(data, "banking77"), 5000, seed)
    found["intents, Dirichlet 0.5"] = (
        [intents.draw(most, rng, rng.dirichlet(np.full(77, 0.5))) for _ in range(10)],
        [0] * 10,
    )
    return found


def _swapped(parts: list[Part], which: range) -> list[Part]:
    return [(x, 1 - y) if place in which else (x, y) for place, (x, y) in enumerate(parts)]


def shares(parts: list[Part], meanings: list[int], size: int) -> Json:
    """Share of pairs that share, of those of one meaning and of others, and the median ratio, by ratio."""
    rng, summaries = np.random.default_rng(0), []
    for place, (x, y) in enumerate(parts):
        rows = rng.permutation(len(y))[:size]
        projected = similarity.project(x[rows], dim=64, seed=1)
        summaries.append(similarity.summarise(projected, y[rows], max_components=1, seed=place))
    one, other = np.triu_indices(len(parts), 1)
    alike = np.array(meanings)[one] == np.array(meanings)[other]
    found: Json = {}
    for name in ("shared_label_ratio", "label_meaning_ratio"):
        ratio = np.nan_to_num(getattr(similarity, name)(summaries), nan=1.0)[one, other]
        found[name] = {
            kind: {"share": float((ratio[of] < LIMIT).mean()), "median": round(float(np.median(ratio[of])), 3)}
            for kind, of in (("alike", alike), ("unlike", ~alike))
            if of.any()
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--out", type=Path, default=HERE / "meaning.json")
    given = parser.parse_args()
    runs: dict[str, dict[str, list[Json]]] = {}
    for seed in range(given.seeds):
        for case, (parts, meanings) in cases(given.data, seed).items():
            for size in SIZES:
                runs.setdefault(case, {}).setdefault(str(size), []).append(shares(parts, meanings, size))
    model, base, config = shared_model()
    held = {"limit": LIMIT, "seeds": given.seeds, "environment": environment(config, base, model), "cases": {
        case: {size: mean_of(found) for size, found in sizes.items()} for case, sizes in runs.items()
    }}  # fmt: skip
    given.out.write_text(json.dumps(held, indent=1) + "\n")
    print("\n".join(table(held)))


def mean_of(found: list[Any]) -> Any:
    """Mean over seeds of the numbers of equally nested dictionaries."""
    first = found[0]
    if isinstance(first, dict):
        return {key: mean_of([each[key] for each in found]) for key in first}
    return round(float(np.mean(found)), 3)


def table(held: Json) -> list[str]:
    """Rows: case and size; per ratio the shares of pairs that share, in %, and the median ratio."""
    lines = [
        "| case | examples | pairs | share by means (median) | share by means or contrasts (median) |",
        "|---|---|---|---|---|",
    ]
    for case, sizes in held["cases"].items():
        for size, found in sizes.items():
            for kind in ("alike", "unlike"):
                if kind in found["shared_label_ratio"]:
                    cells = [
                        f"{100 * found[name][kind]['share']:.0f} % ({found[name][kind]['median']:.1f})"
                        for name in ("shared_label_ratio", "label_meaning_ratio")
                    ]
                    lines.append(f"| {case} | {size} | {kind} | {' | '.join(cells)} |")
    return lines


if __name__ == "__main__":
    main()
