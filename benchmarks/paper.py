"""Prints the tables of docs/paper.md from committed JSON files; nothing is trained.

    python benchmarks/paper.py

A test compares the page with what is printed here. A table whose numbers changed is pasted into the page again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

from figures import ROOT, SIX, THREE, script

Json = dict[str, Any]
FAMILIES = "benchmarks/models/results/families.json"
COSTS = "benchmarks/cost/parameters.json"
METHODS = ("local", "fedavg-lora", "ce-lora")


def read(path: str) -> Json:
    found: Json = json.loads((ROOT / path).read_text(encoding="utf-8"))
    return found


def row(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def header(*names: str) -> Iterator[str]:
    yield row(*names)
    yield "|" + "---|" * len(names)


def numbers_sent() -> Iterator[str]:
    """The paper's figure 1: what one client sends in one round."""
    heads = ("rank", "numbers", "of these the head", "fewer than A and B", "at 32 bits", "at 1 bit")
    yield from header("model", "method", *heads)
    for model in read(COSTS)["models"]:
        for one in model["methods"]:
            yield row(
                f"`{model['model']}`",
                f"`{one['method']}`",
                "–" if "base" in one["sends"] else one["rank"],
                f"{one['numbers']:,}",
                f"{one['head']:,}",
                times(one["times fewer than A and B of plain LoRA"]),
                size(one["bytes at 32 bits"]),
                size(one["bytes at 1 bit"]),
            )


def times(ratio: float) -> str:
    return f"{ratio:,.0f}×" if ratio >= 10 else f"{ratio:.2g}×"


def size(count: float) -> str:
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("KB", 1e3)):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count} bytes"


def settings() -> Iterator[tuple[str, Json]]:
    """Name and results of every data set and split on which the three methods ran."""
    for name, found in read(THREE)["settings"].items():
        yield f"{name}, 40 rounds", found
    for name, found in read(SIX)["results"].items():
        yield f"{name}, 16 rounds", found
    for name, kept in read(FAMILIES).items():
        yield f"{name}, 12 rounds", kept["results"]


def difference(found: Json, one: str, other: str) -> str:
    known, sign = found["differences"].get(f"{one} minus {other}"), 1
    if known is None:
        known, sign = found["differences"][f"{other} minus {one}"], -1
    low, high = sorted(100 * sign * end for end in known["interval"])
    return f"{100 * sign * known['mean']:+.1f} ({low:+.1f} to {high:+.1f})"


def accuracy() -> Iterator[str]:
    """Means over clients, and paired differences with 95 % intervals."""
    yield from header(
        "setting", "`local`", "`fedavg-lora`", "then trained once more", "`ce-lora`",
        "`ce-lora` minus `local`", "`ce-lora` minus `fedavg-lora`",
    )  # fmt: skip
    for name, found in settings():
        local, lora, ours = (found["methods"][method] for method in METHODS)
        after = lora["after_a_local_round"] if "after_a_local_round" in lora else lora["mean_trained"]
        gaps = (difference(found, "ce-lora", other) for other in ("local", "fedavg-lora"))
        yield row(
            name, *(f"{100 * share:.1f}" for share in (local["mean"], lora["mean"], after, ours["mean"])), *gaps
        )


def ends() -> Iterator[str]:
    """The paper's figure 4: worst and best client."""
    yield from header("setting", *(f"`{method}`: worst, best" for method in METHODS))
    for name, found in settings():
        cells = (
            f"{100 * found['methods'][m]['worst']:.1f}, {100 * found['methods'][m]['best']:.1f}" for m in METHODS
        )
        yield row(name, *cells)


def traffic() -> Iterator[str]:
    """All bytes of a run, both directions, all clients."""
    yield from header("setting", "`fedavg-lora`", "`ce-lora`", "times fewer", "of these, summaries")
    for name, found in read(THREE)["settings"].items():
        lora, ours = (found["methods"][method]["bytes"] for method in ("fedavg-lora", "ce-lora"))
        ratio = lora["total"] / ours["total"]
        yield row(name, size(lora["total"]), size(ours["total"]), f"{ratio:.0f}×", size(ours["summaries"]))


def weights() -> Iterator[str]:
    """Personal weights against even ones, the rest of the method being the same."""
    yield from header("setting", "`ce-lora`", "`fedavg-tri`")
    for name, found in read(SIX)["results"].items():
        yield row(name, *(f"{100 * found['methods'][method]['mean']:.1f}" for method in ("ce-lora", "fedavg-tri")))


def reconstruction() -> Iterator[str]:
    """The paper's figure 5: the best attack on one example, from its gradient and from what a round sends."""
    from trifed.reports.audit.findings import read_findings

    tables = script("privacy/tables.py")
    names = (("fedavg-full", "factors"), ("fedavg-lora", "factors"), ("ffa-lora", "factors"), ("ce-lora", "base"),
             ("ce-lora", "factors"))  # fmt: skip
    heads = ("`fedavg-full`", "`fedavg-lora`", "`ffa-lora`", "`ce-lora`", "`ce-lora`, A and B known", "guessing")
    yield from header("data and target", *heads)
    for data, sees in ((data, sees) for data in tables.WHOLE for sees in ("gradient", "update")):
        found = read_findings(tables.RESULTS / f"{data}.json")
        score, digits = ("f1", 2) if found.kind == "text" else ("psnr", 1)
        cells = []
        for method, knows in names:
            rows = [
                one
                for one in found.reconstruction
                if (one.method, one.knows, one.sees, one.batch) == (method, knows, sees, 1)
                and one.attack in tables.ATTACKS
            ]
            cells.append(tables.shown(tables.best(found, rows, score).scores[score], digits) if rows else "–")
        guess = next(one for one in reversed(tables.guesses(found)) if one.batch == 1)
        what = "one example's gradient" if sees == "gradient" else "a round on one example"
        yield row(f"{data}, {what}", *cells, tables.shown(guess.scores[score], digits))


TABLES: dict[str, Callable[[], Iterator[str]]] = {
    "Numbers that one client sends in one round": numbers_sent,
    "All bytes of a run": traffic,
    "Mean test accuracy over clients, %": accuracy,
    "Worst and best client, test accuracy, %": ends,
    "Personal and even weights, mean test accuracy, %": weights,
    "Reconstruction of one example: F1 over tokens, or PSNR in dB": reconstruction,
}


def main() -> None:
    for title, lines in TABLES.items():
        print(f"\n{title}\n", *lines(), sep="\n")


if __name__ == "__main__":
    main()
