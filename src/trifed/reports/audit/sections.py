"""Blocks of an audit's page: originals beside reconstructions, and tables with their figures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from trifed.reports.audit import tables as grids
from trifed.reports.audit.cards import Card, Pair, closeness, pairs_of
from trifed.reports.audit.findings import Estimate, Findings, Means, Reconstruction
from trifed.reports.audit.plots import Curves, Line
from trifed.reports.audit.ranking import attacks, best_first, finite, guess_for, guesses, main_score, methods_of
from trifed.reports.audit.words import SEES, amount, size, where
from trifed.reports.comparison.sections import MOST_UNFOLDED, WIDTH, Block
from trifed.reports.style import LIGHT
from trifed.reports.tables import Column, Grid

YLABEL = {"text": "F1 of tokens", "image": "PSNR, dB"}
TITLES = {"batch": "How much comes back by batch size", "steps": "How much comes back by local steps"}
AXES = {"batch": "examples in a batch", "steps": "local steps"}
SPAN = {"text": (0.0, 1.03), "image": None}
"""Ends of the axis of the score, where it has any."""


def gallery_blocks(findings: Findings) -> list[Block]:
    """For each method and attack the setting in which most came back, and of its trials the closest."""
    chosen: list[Reconstruction] = []
    for method in methods_of(findings):
        chosen += _best_of_each(findings, attacks(findings, method))
    chosen += _best_of_each(findings, guesses(findings))[:1]
    shown = [(row, attempt) for row in chosen if row.attempts for attempt in [max(row.attempts, key=closeness)]]
    if not shown:
        return []
    cards = tuple(_card(findings, row, pairs_of(attempt, findings.kind)) for row, attempt in shown)
    columns = (Column("method", "method"), Column("attack", "attack"), Column("setting", "setting"))
    says = [[c.title, row.attack, f"sees {row.sees}, knows {grids.SHORT_KNOWS[row.knows]}, {size(row)}"]
            for c, (row, _) in zip(cards, shown, strict=True)]  # fmt: skip
    which = {
        "text": "and of its trials the one in which most came back. Marked: words that both have",
        "image": "and its first trial",
    }[findings.kind]
    note = f"For each method and attack the setting that gave most, {which}."
    return [Block(Grid("Originals beside what attacks made of them", columns, says, note), cards=cards)]


def _best_of_each(findings: Findings, rows: list[Reconstruction]) -> list[Reconstruction]:
    """The best row of each attack that has something to show, best attack first."""
    first: dict[str, Reconstruction] = {}
    for row in best_first(findings, [row for row in rows if row.attempts]):
        first.setdefault(row.attack, row)
    return list(first.values())


def _card(findings: Findings, row: Reconstruction, pairs: tuple[Pair, ...]) -> Card:
    """One method and attack."""
    guesser = row.attack == "guesser"
    score = amount(findings, main_score(findings, row))
    level = "sees nothing" if guesser else f"from {where(row.sees, row.knows)}"
    title = "guesser" if guesser else f"{row.method}, {row.attack} attack"
    says = "guess" if guesser else "reconstruction"
    return Card(title, f"{score} in the mean; {level} ({size(row)})", says, _colour(findings, row), pairs)


def _colour(findings: Findings, row: Reconstruction) -> str:
    if row.attack == "guesser":
        return "--faint"
    return f"--series-{methods_of(findings).index(row.method) % len(LIGHT.series)}"


def means_cards(findings: Findings) -> tuple[Card, ...]:
    """Of each method's summary the trial in which a mean lay nearest to an example."""
    best: dict[str, Means] = {}
    for row in sorted(findings.means, key=lambda row: -row.found.mean):
        if row.attempts:
            best.setdefault(row.method, row)
    methods = methods_of(findings)
    return tuple(
        Card(
            f"{method}, summary",
            f"{row.examples:.4g} examples a mean",
            "the example nearest to a mean",
            f"--series-{methods.index(method) % len(LIGHT.series)}",
            pairs_of(max(row.attempts, key=closeness), findings.kind),
        )
        for method, row in best.items()
    )


def reconstruction_blocks(findings: Findings) -> list[Block]:
    """The table, then for each thing that an attacker sees the score against batches and against steps."""
    if not findings.reconstruction:
        return []
    figures = [block for name in AXES for sees in SEES for block in _sweep(findings, sees, name)]
    everything = grids.reconstruction_grid(findings)
    if len(everything.rows) <= MOST_UNFOLDED:
        return [Block(everything), *figures]
    worst = grids.worst_grid(findings)
    return [*([Block(worst)] if worst.rows else []), *figures, Block(everything, folded=True)]


def _sweep(findings: Findings, sees: str, name: str) -> Iterable[Block]:
    """The score against one size, the other held where most was measured."""
    rows = [row for row in attacks(findings) if row.sees == sees and main_score(findings, row)]
    other = next(axis for axis in AXES if axis != name)
    sizes = Counter(value for value, _ in {(getattr(row, other), getattr(row, name)) for row in rows})
    held = min(sizes, key=lambda value: (-sizes[value], value), default=0)
    rows = [row for row in rows if getattr(row, other) == held]
    if not rows or (name == "steps" and len({row.steps for row in rows}) < 2):
        return
    lines = _lines(findings, rows, name)
    floor = _floor(findings, rows, name)
    curves = Curves(lines, AXES[name], YLABEL[findings.kind], floor, ends=SPAN[findings.kind])
    more = (
        f" {AXES[other].capitalize()}: {held}."
        if len({getattr(row, other) for row in attacks(findings)}) > 1
        else ""
    )
    title = f"{TITLES[name]}, from {SEES[sees]}"
    yield _figure(title, curves, f"The best attack at each size, with its 95 % interval.{more}")


def _lines(findings: Findings, rows: list[Reconstruction], name: str) -> list[Line]:
    """A line a method and knowledge: of several attacks the best at each size."""
    found: dict[tuple[str, str], dict[float, Estimate]] = {}
    for row in best_first(findings, rows):
        score = main_score(findings, row)
        if score is not None:
            found.setdefault((row.method, row.knows), {}).setdefault(getattr(row, name), score)
    methods, knows = methods_of(findings), list(grids.SHORT_KNOWS)
    order = sorted(found, key=lambda key: (methods.index(key[0]), -knows.index(key[1])))
    return [Line(_label(*key), key[0], key[1], list(found[key].items())) for key in order]


def _floor(findings: Findings, rows: list[Reconstruction], name: str) -> list[tuple[float, Estimate]]:
    """What the guesser has at each size."""
    floor: dict[float, Estimate] = {}
    for row in sorted(rows, key=lambda row: -row.trials):
        guess = guess_for(findings, row)
        if guess is not None:
            floor.setdefault(getattr(row, name), guess)
    return list(floor.items())


def _label(method: str, knows: str, more: str = "") -> str:
    return f"{method}{more}, knows {grids.SHORT_KNOWS[knows]}"


def membership_blocks(findings: Findings) -> list[Block]:
    """The table, and areas under curves against how many examples are behind what was seen."""
    if not findings.membership:
        return []
    blocks = [Block(grids.membership_grid(findings).without_empty())]
    for source, title in (("update", "Members told from updates"), ("summary", "Members told from summaries")):
        rows = [row for row in findings.membership if row.source == source and finite(row.auc)]
        found: dict[tuple[str, str, str], list[tuple[float, Estimate]]] = {}
        for row in rows:
            seen = " (gradient)" if row.sees == "gradient" else ""
            found.setdefault((row.method, row.knows, seen), []).append((row.examples, row.auc))
        lines = [Line(_label(method, knows, seen), method, knows, points)
                 for (method, knows, seen), points in found.items()]  # fmt: skip
        if lines:
            what = "examples in an upload" if source == "update" else "examples a mean"
            blocks.append(
                _figure(
                    title,
                    Curves(lines, what, "AUC", level=0.5, ends=(0.4, 1.03)),
                    "With 95 % intervals; 0.5 is a coin's.",
                )
            )
    return blocks


def _figure(title: str, curves: Curves, note: str) -> Block:
    columns = (
        Column("line", "line"),
        Column("x", curves.xlabel, "number"),
        Column("mean", curves.ylabel, "number"),
        Column("interval", "95 %", "number interval"),
    )
    points = [(line.label, x, found) for line in curves.lines for x, found in line.points]
    points += [("guesser", x, found) for x, found in curves.floor]
    rows: list[list[Any]] = [[label, x, found.mean, (found.low, found.high)] for label, x, found in points]
    shown = "; ".join(f"{label} {found.mean:.2f} at {x:.4g}" for label, x, found in points)
    alt = f"{curves.ylabel} against {curves.xlabel}, with intervals. {shown}."
    return Block(Grid(title, columns, rows, note), curves.draw, alt, (WIDTH, curves.height()))
