"""Sections of an audit's report: originals beside reconstructions, and tables with their figures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from functools import partial

from trifed.reports.audit import plots
from trifed.reports.audit.cards import Card, closeness, pairs_of
from trifed.reports.audit.findings import Estimate, Findings, Means, Reconstruction
from trifed.reports.audit.plots import Curves, Line
from trifed.reports.audit.ranking import (
    SEES,
    attacks,
    best_first,
    finite,
    guess_for,
    guesses,
    main_score,
    methods_of,
)
from trifed.reports.audit.tables import SHORT_KNOWS, membership_table, reconstruction_table, worst_table
from trifed.reports.document import WIDTH, Block
from trifed.reports.figures import LIGHT
from trifed.reports.tables import Column, Table

MOST_UNFOLDED = 12
YLABEL = {"text": "F1 of tokens", "image": "PSNR, dB"}
AXES = {"batch": "examples in a batch", "steps": "local steps"}
TITLES = {"batch": "Score by batch size", "steps": "Score by local steps"}
SPAN = {"text": (0.0, 1.03), "image": None}
"""Ends of the score's axis, if it has any."""
SCORE = {"text": "F1 {:.2f} ({:.2f} to {:.2f})", "image": "{:.1f} dB ({:.1f} to {:.1f})"}
GALLERY_NOTE = {
    "text": "For each method and attack the best setting, and the trial in which most came back. Words that "
    "both texts have are marked.",
    "image": "For each method and attack the best setting, and its first trial.",
}


def gallery_blocks(findings: Findings) -> list[Block]:
    """Return examples beside reconstructions, for each method and attack at its best."""
    rows = [row for method in methods_of(findings) for row in _best_of_each(findings, attacks(findings, method))]
    rows += _best_of_each(findings, guesses(findings))[:1]
    if not rows:
        return []
    cards = tuple(_card(findings, row) for row in rows)
    columns = ("method", "attack", "sees", "knows", "batch", "steps", "tokens")
    table = reconstruction_table(findings, rows).only(*columns, title="Each attack at its best")
    return [Block(Table(table.title, table.columns, table.rows, GALLERY_NOTE[findings.kind]), cards=cards)]


def _best_of_each(findings: Findings, rows: Sequence[Reconstruction]) -> list[Reconstruction]:
    """Return the best row of each attack that kept examples, best attack first."""
    best: dict[str, Reconstruction] = {}
    for row in best_first(findings, [row for row in rows if row.attempts]):
        best.setdefault(row.attack, row)
    return list(best.values())


def _card(findings: Findings, row: Reconstruction) -> Card:
    guesser = row.attack == "guesser"
    score = main_score(findings, row)
    shown = SCORE[findings.kind].format(score.mean, score.low, score.high) if score else "-"
    attacker = "sees nothing" if guesser else f"sees {row.sees}, knows {SHORT_KNOWS[row.knows]}"
    return Card(
        "guesser" if guesser else f"{row.method}, {row.attack} attack",
        f"{shown}; {attacker}; batch of {row.batch}",
        "guess" if guesser else "reconstruction",
        "--faint" if guesser else _colour(findings, row.method),
        pairs_of(max(row.attempts, key=closeness), findings.kind),
    )


def _colour(findings: Findings, method: str) -> str:
    return f"--series-{methods_of(findings).index(method) % len(LIGHT.series)}"


def means_cards(findings: Findings) -> tuple[Card, ...]:
    """Return for each method the trial in which a mean of its summary lay nearest to an example."""
    worst_first = sorted(findings.means, key=lambda row: row.found.mean)
    best: dict[str, Means] = {row.method: row for row in worst_first if row.attempts}
    return tuple(
        Card(
            f"{method}, summary",
            f"{row.examples:.4g} examples a mean",
            "the example nearest to a mean",
            _colour(findings, method),
            pairs_of(max(row.attempts, key=closeness), findings.kind),
        )
        for method, row in best.items()
    )


def reconstruction_blocks(findings: Findings) -> list[Block]:
    """Return the table, and for each view of the attacker the score against batch size and against steps."""
    if not findings.reconstruction:
        return []
    figures = [block for name in AXES for sees in SEES for block in _sweep(findings, sees, name)]
    everything, worst = reconstruction_table(findings), worst_table(findings)
    if len(everything.rows) <= MOST_UNFOLDED:
        return [Block(everything), *figures]
    return [*([Block(worst)] if worst.rows else []), *figures, Block(everything, folded=True)]


def _sweep(findings: Findings, sees: str, name: str) -> Iterable[Block]:
    """Yield the score against one size, with the other at the value for which most was measured."""
    rows = [row for row in attacks(findings) if row.sees == sees and main_score(findings, row)]
    other = next(axis for axis in AXES if axis != name)
    sizes = Counter(value for value, _ in {(getattr(row, other), getattr(row, name)) for row in rows})
    held = min(sizes, key=lambda value: (-sizes[value], value), default=0)
    rows = [row for row in rows if getattr(row, other) == held]
    if not rows or (name == "steps" and len({row.steps for row in rows}) < 2):
        return
    floors = {getattr(r, name): guess_for(findings, r) for r in sorted(rows, key=lambda r: r.trials)}
    floor = [(size, guess) for size, guess in sorted(floors.items()) if guess]
    lines = _lines(findings, rows, name)
    curves = Curves(lines, AXES[name], YLABEL[findings.kind], floor, ends=SPAN[findings.kind])
    note = f"The best attack at each size, with its 95 % interval. {AXES[other].capitalize()}: {held}."
    yield _figure(f"{TITLES[name]}, attacker sees {sees}", curves, note)


def _lines(findings: Findings, rows: Sequence[Reconstruction], name: str) -> list[Line]:
    """Return a line for each method and knowledge: the best attack at each size."""
    found: dict[tuple[str, str], dict[float, Estimate]] = {}
    for row in reversed(best_first(findings, rows)):
        score = main_score(findings, row)
        if score is not None:
            found.setdefault((row.method, row.knows), {})[getattr(row, name)] = score
    methods, knows = methods_of(findings), list(SHORT_KNOWS)
    order = sorted(found, key=lambda key: (methods.index(key[0]), -knows.index(key[1])))
    return [Line(_label(*key), *key, sorted(found[key].items())) for key in order]


def _label(method: str, knows: str) -> str:
    return f"{method}, knows {SHORT_KNOWS[knows]}"


def membership_blocks(findings: Findings) -> list[Block]:
    """Return the table, and areas under curves against the number of examples behind an upload or a mean."""
    if not findings.membership:
        return []
    blocks = [Block(membership_table(findings))]
    for source, title in (("update", "Members found from updates"), ("summary", "Members found from summaries")):
        rows = [row for row in findings.membership if row.source == source and finite(row.auc)]
        found: dict[tuple[str, str, str], list[tuple[float, Estimate]]] = {}
        for row in rows:
            seen = " (gradient)" if row.sees == "gradient" else ""
            found.setdefault((f"{row.method}{seen}", row.method, row.knows), []).append((row.examples, row.auc))
        lines = [
            Line(_label(name, knows), method, knows, points) for (name, method, knows), points in found.items()
        ]
        if lines:
            what = "examples in an upload" if source == "update" else "examples a mean"
            curves = Curves(lines, what, "AUC", level=0.5, ends=(0.4, 1.03))
            blocks.append(_figure(title, curves, "With 95 % intervals; 0.5 is chance."))
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
    rows = [{"line": label, "x": x, "mean": e.mean, "interval": (e.low, e.high)} for label, x, e in points]
    shown = "; ".join(f"{label} {found.mean:.2f} at {x:.4g}" for label, x, found in points)
    alt = f"{curves.ylabel} against {curves.xlabel}, with intervals. {shown}."
    return Block(
        Table(title, columns, rows, note), partial(plots.draw, curves=curves), alt, (WIDTH, curves.height())
    )
