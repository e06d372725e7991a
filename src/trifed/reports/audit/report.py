"""The report on an audit: as a page, as a document that every format shows, and as lines for a terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial

from rich.console import Group, RenderableType
from rich.text import Text

from trifed.reports.audit import plots, tables
from trifed.reports.audit.cards import gallery, means_cards
from trifed.reports.audit.findings import (
    SEES,
    VIEWS,
    Estimate,
    Findings,
    Reconstruction,
    View,
    attacks,
    best_first,
    finite,
    guess_for,
    in_view,
    main_score,
    methods_of,
    real_views,
)
from trifed.reports.audit.plots import Curves, Line
from trifed.reports.audit.verdict import advice, best_reconstruction, cautions, outcome, verdict
from trifed.reports.document import Block, Document, Section, render_html, settings_section
from trifed.reports.format import listing
from trifed.reports.read import OnProgress
from trifed.reports.tables import Column, Table
from trifed.reports.terminal import to_terminal

WORST = ("method", "attack", "view", "sees", "knows", "batch", "f1", "psnr", "interval", "against")
AT_WORST = (*WORST[:6], "steps", "tokens", "trials", *WORST[6:], "exact", "ssim")
"""Columns of a page's table of the worst attacks, which has room for more than a terminal."""
MEMBERSHIP = (
    "method",
    "source",
    "view",
    "over",
    "rounds",
    "knows",
    "examples",
    "auc",
    "interval",
    "tpr",
    "against",
)
PARTS = ("claims", "reconstruction", "membership", "labels", "means")
MOST_UNFOLDED = 12
YLABEL = {"text": "F1 of tokens", "image": "PSNR, dB"}
AXES = {"batch": "examples in a batch", "steps": "local steps"}
TITLES = {"batch": "Score by batch size", "steps": "Score by local steps"}
SCALE = {
    "text": "F1 is 1 if every word comes back and 0 if none does.",
    "image": "The more dB, the nearer to the original: 10 dB more are a tenth of the squared error.",
}
"""Sentence that explains the main score of an audit, by kind of data."""
SPAN = {"text": (0.0, 1.03), "image": None}
"""Ends of the score's axis, if it has any."""


def audit_page(findings: Findings, on_progress: OnProgress) -> str:
    """Return an audit's HTML page, which fetches nothing."""
    return render_html(audit_document(findings), on_progress)


def audit_lines(findings: Findings) -> RenderableType:
    """Return an audit for a terminal: verdict, cautions, then claims and numbers."""
    parts: list[RenderableType] = [Text(verdict(findings), style="bold"), Text(advice(findings)[1])]
    parts += [Text(f"- {caution.text}") for caution in cautions(findings)]
    for table in (
        tables.claims_table(findings),
        tables.views_table(findings),
        tables.worst_table(findings).only(*WORST),
        tables.membership_table(findings).only(*MEMBERSHIP),
    ):
        parts += [Text(), to_terminal(table)] if table.rows else []
    return Group(*parts)


def audit_document(findings: Findings) -> Document:
    """Return everything that a report says about an audit."""
    empty = [f"Not measured yet: {part}." for part in PARTS if not getattr(findings, part)]
    broken_off = "The audit was broken off; its numbers may change."
    code, text = advice(findings)
    return Document(
        title=findings.name,
        subtitle=_subtitle(findings),
        verdict=verdict(findings),
        cautions=cautions(findings),
        missing=[] if findings.finished else [broken_off, *empty],
        main=tables.reconstruction_table(findings),
        sections=_sections(findings),
        methods=methods_of(findings),
        outcome=outcome(findings),
        recommendation=text,
        advice=code,
        first=_best_of_each_method(findings),
    )


def _best_of_each_method(findings: Findings) -> Block | None:
    """Return the best reconstruction from each method beside guessing; None without a reconstruction.

    All have the batch size and the view of the audited method's best one, so that one guess is the floor of all.
    """
    worst = best_reconstruction(findings)
    if worst is None:
        return None
    lines, floor = [], guess_for(findings, worst)
    for method in methods_of(findings):
        seen = [row for row in attacks(findings, method) if in_view(findings, row)]
        alike = [row for row in seen if (row.batch, row.view) == (worst.batch, worst.view)]
        row = next((row for row in best_first(findings, alike) if main_score(findings, row)), None)
        if row and (score := main_score(findings, row)):
            lines.append(Line(method, method, row.knows, [(0.0, score)]))
    if not lines:
        return None
    label = {"text": "F1 of tokens read back", "image": "PSNR of images read back, dB"}[findings.kind]
    curves = Curves(lines, "", label, [(0.0, floor)] if floor else (), ends=SPAN[findings.kind])
    scale = SCALE[findings.kind]
    note = f"The best attack on a batch of {worst.batch}, with its 95 % interval. {scale}"
    return _figure("Most that was read back from each method", curves, note, sized=False)


def _subtitle(findings: Findings) -> str:
    controls = f", beside {listing(findings.controls)}" if findings.controls else ""
    took = f", {findings.seconds / 60:.0f} minutes" if findings.seconds >= 90 else ""
    return (
        f"Audit of {findings.method}{controls}: {findings.task}, {findings.client}, round {findings.round}, "
        f"rank {findings.rank}{took}"
    )


def _sections(findings: Findings) -> list[Section]:
    """Return the sections that have anything to show."""
    blocks = {
        "Claims": [Block(tables.claims_table(findings))],
        "Views": [Block(tables.views_table(findings))],
        "Originals and reconstructions": [gallery(findings)],
        "Reconstruction": _reconstruction(findings),
        "Membership": list(_membership(findings)),
        "Labels": [Block(tables.labels_table(findings))],
        "Summary": [Block(tables.means_table(findings), cards=means_cards(findings))],
        "Who attacks": [Block(tables.glossary_table(findings))],
    }
    shown = {title: [block for block in found if block.table.rows] for title, found in blocks.items()}
    sections = [Section(title, blocks=found) for title, found in shown.items() if found]
    notes = [Section("Notes", findings.notes)] if findings.notes else []
    return [*sections, *notes, *settings_section(findings.configuration, findings.environment)]


def _reconstruction(findings: Findings) -> list[Block]:
    """Return the table, and for each view of the attacker the score against batch size and against steps."""
    figures = [block for name in AXES for sees in SEES for block in _sweep(findings, sees, name)]
    everything = tables.reconstruction_table(findings).without_empty()
    if len(everything.rows) <= MOST_UNFOLDED:
        return [Block(everything), *figures]
    worst = tables.worst_table(findings).only(*AT_WORST)
    return [Block(worst), *figures, Block(everything, folded=True)]


def _sweep(findings: Findings, sees: str, name: str) -> Iterator[Block]:
    """Yield the score against one size, with the other at the value for which most was measured."""
    seen = [row for row in attacks(findings) if row.sees == sees and in_view(findings, row)]
    rows = [row for row in seen if main_score(findings, row)]
    other = next(axis for axis in AXES if axis != name)
    sizes = Counter(value for value, _ in {(getattr(row, other), getattr(row, name)) for row in rows})
    held = min(sizes, key=lambda value: (-sizes[value], value), default=0)
    rows = [row for row in rows if getattr(row, other) == held]
    if not rows or (name == "steps" and len({row.steps for row in rows}) < 2):
        return
    of_one = [row for row in rows if row.view == real_views(findings.sealed)[0]]  # sums have other guesses
    floors = {getattr(r, name): guess_for(findings, r) for r in sorted(of_one, key=lambda r: r.trials)}
    floor = [(size, guess) for size, guess in sorted(floors.items()) if guess]
    lines = _lines(findings, rows, name)
    curves = Curves(lines, AXES[name], YLABEL[findings.kind], floor, ends=SPAN[findings.kind])
    note = f"The best attack at each size, with its 95 % interval. {AXES[other].capitalize()}: {held}."
    yield _figure(f"{TITLES[name]}, attacker sees {sees}", curves, note)


def _lines(findings: Findings, rows: Sequence[Reconstruction], name: str) -> list[Line]:
    """Return a line for each method and knowledge: the best attack at each size."""
    found: dict[tuple[str, str, View], dict[float, Estimate]] = {}
    for row in reversed(best_first(findings, rows)):
        score = main_score(findings, row)
        if score is not None:
            found.setdefault((row.method, row.knows, row.view), {})[getattr(row, name)] = score
    methods, knows = methods_of(findings), list(tables.SHORT_KNOWS)
    order = sorted(found, key=lambda key: (methods.index(key[0]), -knows.index(key[1]), VIEWS.index(key[2])))
    return [Line(_label(*key), *key[:2], sorted(found[key].items())) for key in order]


def _label(method: str, knows: str, view: View = "single") -> str:
    whole = "" if view == "single" else f", {tables.SHORT_VIEWS[view]}"
    return f"{method}{whole}, knows {tables.SHORT_KNOWS[knows]}"


def _membership(findings: Findings) -> Iterator[Block]:
    """Yield the table, and areas under curves against the number of examples behind an upload or a mean."""
    yield Block(tables.membership_table(findings))
    for source, title, xlabel in (
        ("update", "Members found from updates", "examples in an upload"),
        ("summary", "Members found from summaries", "examples a mean"),
    ):
        found: dict[tuple[str, str, str], list[tuple[float, Estimate]]] = {}
        of_one_round = [row for row in findings.membership if row.over == "round"]
        for row in [row for row in of_one_round if row.source == source and finite(row.auc)]:
            seen = " (gradient)" if row.sees == "gradient" else ""
            label = _label(f"{row.method}{seen}", row.knows, row.view)
            found.setdefault((label, row.method, row.knows), []).append((row.examples, row.auc))
        if found:
            lines = [Line(*key, points) for key, points in found.items()]
            curves = Curves(lines, xlabel, "AUC", level=0.5, ends=(0.4, 1.03))
            yield _figure(title, curves, "With 95 % intervals; 0.5 is chance.")


def _figure(title: str, curves: Curves, note: str, sized: bool = True) -> Block:
    """Return a figure with its numbers. `sized`: its points have different sizes."""
    columns = (
        Column("line", "line" if sized else "method"),
        *([Column("x", curves.xlabel, "number")] if sized else []),
        Column("mean", curves.ylabel, "number"),
        Column("interval", "95 %", "number interval"),
    )
    points = [(line.label, x, found) for line in curves.lines for x, found in line.points]
    points += [("guesser", x, found) for x, found in curves.floor]
    rows = [{"line": label, "x": x, "mean": e.mean, "interval": (e.low, e.high)} for label, x, e in points]
    shown = "; ".join(f"{label} {found.mean:.2f}{f' at {x:.4g}' if sized else ''}" for label, x, found in points)
    alt = f"{curves.ylabel}{f' against {curves.xlabel}' if sized else ''}, with intervals. {shown}."
    return Block(Table(title, columns, rows, note), partial(plots.draw, curves=curves), alt, curves.height)
