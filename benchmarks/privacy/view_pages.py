"""Prints the tables of views.py and frontier.py that pages show, or writes them into the pages.

    python benchmarks/privacy/view_pages.py [--write]

Each table replaces the one that has the same first line on its page. A test compares the pages with the records in
results/views/ and results/frontier.jsonl. Sets and arms have the names in `views.PAGE_NAMES`. What a page leaves
out is printed by `views.py --tables`: all views and ways to use rounds.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import frontier
import views

ROOT = Path(__file__).resolve().parents[2]
Json = dict[str, Any]
Place = tuple[str, str, bool]
"""Set, arm, and whether the run is sealed."""
Interval = tuple[float, float, float]


def row(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def header(*names: str) -> Iterator[str]:
    yield row(*names)
    yield "|" + "---|" * len(names)


def name(key: str) -> str:
    """Return the name of a set or an arm in the tables of pages."""
    return views.PAGE_NAMES.get(key, key)


def places(records: Sequence[Json], holds: str) -> list[Place]:
    """Return where "views" or "accuracy" was measured: by set, open runs first, arms as in `views.ARMS`."""

    def position(key: str, known: Mapping[str, object]) -> int:
        return list(known).index(key) if key in known else len(known)

    def order(place: Place) -> tuple[int, bool, int]:
        return position(place[0], views.SETS), place[2], position(place[1], views.ARMS)

    return sorted(views.by_arm(records, holds), key=order)


def seen(records: Sequence[Json]) -> dict[Place, dict[str, Json]]:
    """Return the rows of AUC by place and view."""
    found: dict[Place, dict[str, Json]] = {}
    for each in views.rows(records):
        found.setdefault((each["set"], each["arm"], each["sealed"]), {})[each["view"]] = each
    return found


def shown(found: Mapping[str, Json]) -> tuple[int, list[Interval | None]]:
    """Return a place's number of seeds, and AUC: one upload, sum, sums of three rounds, when a client leaves."""
    single, total = (found.get(view, {}) for view in ("single", "sum"))
    auc = [single.get("round"), *(total.get(way) for way in ("round", "mean", "departure"))]
    return max(each["seeds"] for each in found.values()), auc


def less_default(records: Sequence[Json], place: Place) -> tuple[str, int]:
    """Return the accuracy less the default arm's, in pairs of clients, and the number of seeds that both have."""
    accuracies, plain = views.by_arm(records, "accuracy"), (place[0], views.PLAIN, place[2])
    own = [] if place == plain else accuracies.get(place, [])
    pairs = list(views.differences(own, accuracies.get(plain, [])))
    return views.points(views.interval(pairs) if pairs else None, "+"), len(pairs)


def label(place: Place) -> str:
    return name(place[1]) + ("" if place[2] else ", open")


def membership(records: Sequence[Json]) -> Iterator[str]:
    """Yield the table of AUC with intervals, a row for each set and arm."""
    heads = ("one upload", "sum", "less own part", "three sums", "a client leaves")
    yield from header("set", "run", "seeds", *heads)
    found = seen(records)
    for place in places(records, "views"):
        seeds, auc = shown(found[place])
        single, *sums = map(views.auc_in_words, auc)
        others = found[place].get("others", {}).get("round")
        without = f"{others[0]:.3f}" if others else "–"
        yield row(name(place[0]), label(place), seeds, single, sums[0], without, *sums[1:])


def accuracy(records: Sequence[Json]) -> Iterator[str]:
    """Yield the table of test accuracy, a row for each set and arm."""
    yield from header("set", "run", "seeds", "accuracy after ten rounds", "less the default", "seeds of both")
    found = views.by_arm(records, "accuracy")
    for place in places(records, "accuracy"):
        reached = views.interval([list(each["accuracy"].values()) for each in found[place]])
        less, both = less_default(records, place)
        yield row(name(place[0]), label(place), len(found[place]), views.points(reached), less, both or "–")


def in_short(records: Sequence[Json]) -> Iterator[str]:
    """Yield the table of sealed runs, AUC without intervals, a row for each set and arm."""
    yield from header(
        "set, work in a round", "seeds", "one upload (control)", "sum of one round", "sums of three rounds",
        "before and after a client leaves", "accuracy less the default's",
    )  # fmt: skip
    found = seen(records)
    for place in (place for place in places(records, "views") if place[2]):
        seeds, auc = shown(found[place])
        means = ("–" if each is None else f"{each[0]:.2f}" for each in auc)
        less, both = less_default(records, place)
        fewer = f"; {both} seed{'s' * (both > 1)}" if both and both != seeds else ""
        yield row(f"{name(place[0])}, {name(place[1])}", seeds, *means, less + fewer)


def tables() -> dict[str, list[list[str]]]:
    """Return the lines of each page's tables, from the committed records."""
    records = [record for each in views.SETS for record in views.results(each)]
    noise = frontier.tables(frontier.results())
    return {
        "benchmarks/privacy/README.md": [list(membership(records)), list(accuracy(records)), list(noise)],
        "docs/secure-aggregation.md": [list(in_short(records))],
    }


def written(page: str, lines: Sequence[str]) -> str:
    """Return a page with these lines in place of its table that has the same first line."""
    table = re.compile(rf"^{re.escape(lines[0])}\n(\|.*\n)*", re.MULTILINE)
    text, count = table.subn(lambda _: "\n".join([*lines, ""]), page)
    if count != 1:
        raise SystemExit(
            f"got {count} tables that begin with '{lines[0]}', expected one: write that line in the page"
        )
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write the tables into the pages")
    given = parser.parse_args()
    for page, made in tables().items():
        if not given.write:
            print(f"\n{page}\n", *("\n".join([*lines, ""]) for lines in made), sep="\n")
            continue
        text = (ROOT / page).read_text(encoding="utf-8")
        for lines in made:
            text = written(text, lines)
        (ROOT / page).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
