"""Tables of the comparison, from results/*.jsonl alone.

    python benchmarks/evidence/tables.py [--results DIR] [--write]

--write puts the tables into README.md of this folder.
For each set: accuracy at one bit a number for all, and accuracy at equal bytes, where an arm that sends more is
taken at what the default sent in the whole run, between the evaluated rounds around it. Intervals are 95 %
bootstrap intervals over clients and test rows; differences are in pairs of test rows. Means are over the seeds
that all main arms of a set have, so that they can be compared; the sentences below a table, and the rows of arms
with one part changed, are over all seeds that both arms have. The best rival is the one with the best accuracy on
validation data.

Of language models it is the loss in nats a token, which is better the lower it is. Intervals are over clients and
their seeds, and differences are in pairs of clients.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from data_sets import SETS
from design import ALL_ARMS, CHANGED, MAIN_ARMS, RANKS
from numpy.typing import NDArray
from records import HERE, reported, results

from trifed.experiments.comparison_summary import interval, mean_over_clients

Json = dict[str, Any]
DEFAULT = "own-prior"
ALONE = ("alone", "local")
OTHERS = (DEFAULT, "alone")
"""The arms that a set's first table compares all with."""
Right = list[NDArray[np.bool_ | np.float64]]
NOT_BEHIND = 0.01
"""The default is not behind a rival if its interval excludes so much less: a point, or a hundredth of a nat."""
BEGIN, END = "<!-- tables.py writes from here -->", "<!-- to here -->"


@dataclass(frozen=True)
class Unit:
    """How the values of a metric are written."""

    mean: str
    axis: str
    times: float
    decimals: int
    lower_is_better: bool = False

    def __call__(self, value: float, sign: str = "") -> str:
        """Return a value as text; with sign "+" a difference."""
        rounded = round(self.times * value, self.decimals) + 0.0  # a difference of nothing is +0.0, not -0.0
        return f"{rounded:{sign}.{self.decimals}f}"

    def gain(self, interval: tuple[float, float]) -> tuple[float, float]:
        """Return the interval of a difference as one of a gain."""
        low, high = interval
        return (-high, -low) if self.lower_is_better else (low, high)


UNITS = {
    "accuracy": Unit("mean, % (95 %)", "test accuracy, %", 100, 1),
    "loss": Unit("loss, nats a token (95 %)", "test loss, nats a token", 1, 3, lower_is_better=True),
}


class Held:
    """The reported runs of one set, by arm and seed."""

    def __init__(self, name: str, records: Sequence[Json]) -> None:
        self.name = name
        self.metric = SETS[name].metric
        self.unit = UNITS[self.metric]
        self.runs: dict[str, dict[int, Json]] = {}
        for record in records:
            if reported(record):
                self.runs.setdefault(record["arm"], {})[record["seed"]] = record

    def mean(self, arm: str, key: str, seeds: Sequence[int] | None = None) -> float:
        """Return the mean of a value over seeds, by default over all of the arm."""
        return float(np.mean([self.runs[arm][seed][key] for seed in (self.runs[arm] if seeds is None else seeds)]))

    def seeds(self, *arms: str) -> list[int]:
        """Return the seeds that all these arms have."""
        return sorted(set.intersection(*(set(self.runs.get(arm, {})) for arm in arms))) if arms else []

    @property
    def common(self) -> list[int]:
        """The seeds that all main arms of this set have: means over them can be compared."""
        return self.seeds(*(arm for arm in self.runs if arm in MAIN_ARMS))

    def right(self, arm: str, seeds: Sequence[int]) -> Right:
        """Return which test rows are right, for each seed and client; or each client's losses, (n_seeds,)."""
        if self.metric == "loss":
            losses = [self.runs[arm][seed]["losses"] for seed in seeds]
            return [np.array([kept[client] for kept in losses]) for client in losses[0]]
        return [decoded(text) for seed in seeds for text in self.runs[arm][seed]["answers"].values()]

    def difference(
        self, arm: str, other: str, seeds: Sequence[int] | None = None
    ) -> tuple[float, tuple[float, float]] | None:
        """Return an arm's mean less another's, and its interval, in pairs; None without common seeds.

        It is over all seeds that both have, or over those of these.
        """
        seeds = [seed for seed in self.seeds(arm, other) if seeds is None or seed in seeds]
        if not seeds or arm == other:
            return None
        if arm > other:  # one computation for both directions: the interval is drawn by chance
            mean, (low, high) = self.difference(other, arm, seeds) or (0.0, (0.0, 0.0))
            return -mean, (-high, -low)
        for seed in seeds:
            mine, theirs = self.runs[arm][seed], self.runs[other][seed]
            if mine["split"] != theirs["split"] or list(reported(mine) or ()) != list(reported(theirs) or ()):
                raise SystemExit(f"{self.name}, seed {seed}: {arm} and {other} have different splits")
        right, against = self.right(arm, seeds), self.right(other, seeds)
        return mean_over_clients(right) - mean_over_clients(against), interval(right, against)

    @property
    def rivals(self) -> list[str]:
        """The rivals of the default that have runs, at their usual rank and at others."""
        usual = {arm: RANKS[arm].tuned_as if arm in RANKS else arm for arm in self.runs}
        return [arm for arm in self.runs if ALL_ARMS[usual[arm]].rival]

    def over(self, *arms: str) -> str:
        """Return the seeds of a difference, to be added to it."""
        return f" (seeds {' and '.join(map(str, self.seeds(*arms)))})" if len(self.seeds(*arms)) > 1 else ""

    def best_rival(self) -> str | None:
        """Return the rival with the best accuracy on validation data."""
        rivals = self.rivals
        sign = -1 if self.unit.lower_is_better else 1
        return max(rivals, key=lambda arm: sign * self.mean(arm, "valid", self.seeds(*rivals)), default=None)

    def better(self, arms: Sequence[str]) -> str:
        """Return the arm with the best mean on test data, over the seeds that all of them have."""
        seeds, best = self.seeds(*arms), min if self.unit.lower_is_better else max
        return best(arms, key=lambda arm: self.mean(arm, "mean", seeds))

    def points(self, found: tuple[float, tuple[float, float]] | None) -> str:
        """Return a difference and its interval, in points or nats."""
        if found is None:
            return ""
        mean, (low, high) = found
        return f"{self.unit(mean, '+')} ({self.unit(low, '+')} to {self.unit(high, '+')})"

    def at_bytes(self, arm: str, seeds: Sequence[int]) -> float | None:
        """Return an arm's mean at the bytes of the default's whole run, between the evaluated rounds around them.

        It is the last round's if the arm sent less, and None without the default's run, or if the arm's first
        evaluated round was beyond these bytes.
        """
        found = []
        for seed in (seed for seed in seeds if seed in self.runs.get(DEFAULT, {})):
            budget = self.runs[DEFAULT][seed]["bytes"]["total"]
            points = [(p["bytes"], p["mean"]) for p in self.runs[arm][seed]["curve"] if p["round"]]
            if points[0][0] > budget:
                return None
            found.append(np.interp(budget, *zip(*points, strict=True)))
        return float(np.mean(found)) if found else None


def decoded(text: str) -> NDArray[np.bool_]:
    """Return one client's answers, (n_rows,), from their text in a record."""
    size, bits = text.split(":")
    return np.unpackbits(np.frombuffer(bytes.fromhex(bits), np.uint8))[: int(size)].astype(bool)


def kilobytes_up(record: Json) -> float:
    """Return what a client sends in a round, KB, its summary spread over the rounds left out."""
    sent = record["bytes"]
    clients = len(reported(record) or {})
    return float((sent["up"] - sent["summaries"] - sent["opening_up"]) / record["rounds"] / clients / 1000)


def main_table(held: Held) -> list[str]:
    """Return the rows of a set's first table."""
    unit = held.unit
    more = [] if held.metric == "accuracy" else ["perplexity"]
    header = [
        "arm", "rate", unit.mean, *more, *(f"minus `{other}`" for other in OTHERS), "worst client",
        "KB up a round", "at equal bytes", "rising", "seeds",
    ]  # fmt: skip
    lines = [f"| {' | '.join(header)} |", f"|{'---|' * len(header)}"]
    for arm in (arm for arm in MAIN_ARMS if arm in held.runs):
        seeds = held.common
        records = [held.runs[arm][seed] for seed in seeds]
        low, high = interval(held.right(arm, seeds))
        at = held.at_bytes(arm, seeds)
        curves = [[p["mean"] for p in record["curve"] if p["round"]] for record in records]
        rising = float(np.mean([curve[-1] - curve[-2] for curve in curves if len(curve) > 1]))
        cells = [
            f"`{arm}`",
            f"{records[0]['rate']:g}",
            f"{unit(held.mean(arm, 'mean', seeds))} ({unit(low)} to {unit(high)})",
            *[f"{held.mean(arm, key, seeds):.2f}" for key in more],
            *(held.points(held.difference(arm, other, seeds)) for other in OTHERS),
            unit(held.mean(arm, "worst", seeds)),
            f"{np.mean([kilobytes_up(record) for record in records]):.1f}",
            "–" if at is None else unit(at),
            unit(rising, "+"),
            ", ".join(map(str, sorted(held.runs[arm]))),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def verdict(held: Held) -> list[str]:
    """Return the sentences that say what a set's table shows."""
    if DEFAULT not in held.runs:
        return []
    lines = []
    rival = held.best_rival()
    if rival and (found := held.difference(DEFAULT, rival)):
        low, high = held.unit.gain(found[1])
        says = "ahead" if low > 0 else "behind" if high < 0 else "not behind" if low > -NOT_BEHIND else "open"
        lines.append(f"`own-prior` minus the best of {len(held.rivals)} rivals on validation data, `{rival}`: "
                     f"{held.points(found)}: {says}{held.over(DEFAULT, rival)}.")  # fmt: skip
    known = [arm for arm in ALONE if arm in held.runs]
    if known:
        better = held.better(known)
        lines.append(f"`own-prior` minus the better of those that send nothing, `{better}`: "
                     f"{held.points(held.difference(DEFAULT, better))}{held.over(DEFAULT, better)}.")  # fmt: skip
    return lines


def changed_table(held: Held, arms: Sequence[str], base: str) -> list[str]:
    """Return rows: arms that differ from another one in one part, and their difference from it."""
    header = ["changed", held.unit.mean, f"minus `{base}`", "KB up a round", "at equal bytes", "seeds"]
    lines = [f"| {' | '.join(header)} |", f"|{'---|' * len(header)}"]
    for arm in (arm for arm in arms if arm in held.runs):
        seeds = held.seeds(arm, base) or sorted(held.runs[arm])
        sent = np.mean([kilobytes_up(record) for record in held.runs[arm].values()])
        low, high = interval(held.right(arm, seeds))
        mean = f"{held.unit(held.mean(arm, 'mean', seeds))} ({held.unit(low)} to {held.unit(high)})"
        at = held.at_bytes(arm, seeds)
        cells = [
            arm, mean, held.points(held.difference(arm, base, seeds)), f"{sent:.1f}",
            "–" if at is None else held.unit(at), ", ".join(map(str, sorted(held.runs[arm]))),
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return lines if len(lines) > 2 else []


def document(records: Mapping[str, Sequence[Json]]) -> tuple[list[str], list[Held]]:
    """Return the lines of all tables, and the sets that have results, from the records by set."""
    held = [Held(name, records.get(name, ())) for name in SETS]
    held = [each for each in held if each.runs]
    lines: list[str] = []
    for each in held:
        lines += [f"**{each.name}** ({SETS[each.name].question})", "", *main_table(each), "", *verdict(each), ""]
        for base, arms in CHANGED.values():
            if rows := changed_table(each, list(arms), base):
                lines += [*rows, ""]
    return lines, held


def written(page: str, lines: Sequence[str]) -> str:
    """Return a page with these lines between its two marks."""
    before, rest = page.split(BEGIN)
    return "\n".join([before + BEGIN, "", "\n".join(lines).strip(), "", END + rest.split(END)[1]])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--write", action="store_true", help="write the tables into README.md of this folder")
    given = parser.parse_args()
    lines, _ = document({name: results(name, given.results) for name in SETS})
    if not given.write:
        print("\n".join(lines))
        return
    page = HERE / "README.md"
    page.write_text(written(page.read_text(encoding="utf-8"), lines), encoding="utf-8")


if __name__ == "__main__":
    main()
