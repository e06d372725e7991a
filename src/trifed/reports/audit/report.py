"""An audit as a page, as a document that every format of reports shows, and as lines for a terminal."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Group, RenderableType
from rich.text import Text

from trifed.reports.audit import tables as grids
from trifed.reports.audit.advice import advice
from trifed.reports.audit.findings import Findings
from trifed.reports.audit.ranking import attacks, is_above, methods_of
from trifed.reports.audit.sections import gallery_blocks, means_cards, membership_blocks, reconstruction_blocks
from trifed.reports.audit.words import headline, hidden, learned
from trifed.reports.comparison.sections import Block
from trifed.reports.comparison.tables import settings_grid
from trifed.reports.document import Document, Section
from trifed.reports.format import listing, plural
from trifed.reports.page import render_html
from trifed.reports.run.read import Say
from trifed.reports.tables import Grid, to_terminal

FEW_TRIALS = 20
IN_SHORT = {
    "text": ("method", "attack", "sees", "knows", "batch", "f1", "interval", "against"),
    "image": ("method", "attack", "sees", "knows", "batch", "psnr", "interval", "against"),
}


def audit_page(findings: Findings, say: Say) -> str:
    """The whole page of an audit; nothing in it is fetched from anywhere. `say` is told what is being drawn."""
    return render_html(audit_document(findings), say)


def audit_lines(findings: Findings) -> RenderableType:
    """An audit for a terminal: what it comes to, then claims and numbers."""
    parts: list[RenderableType] = [Text(headline(findings), style="bold")]
    for title, sentences in passages(findings):
        parts += [Text(f"\n{title}", style="bold"), *(Text(f"- {sentence}") for sentence in sentences)]
    tables = [
        (findings.claims, grids.claims_grid(findings)),
        (attacks(findings), _worst_in_short(findings)),
        (findings.membership, grids.membership_grid(findings).only("method", "source", "knows", "examples", "auc",
                                                                  "interval", "tpr")),
    ]  # fmt: skip
    return Group(*parts, *(part for rows, grid in tables if rows for part in (Text(), to_terminal(grid))))


def _worst_in_short(findings: Findings) -> Grid:
    grid, known = grids.worst_grid(findings), IN_SHORT[findings.kind]
    return grid.only(*(key for key in known if any(column.key == key for column in grid.columns)))


def passages(findings: Findings) -> tuple[tuple[str, list[str]], ...]:
    """For who has to answer for the data: what is learned, what is not, what to change."""
    return (
        ("What a curious server learns", learned(findings)),
        ("What it does not learn", hidden(findings)),
        ("What to change", advice(findings)),
    )


def audit_document(findings: Findings) -> Document:
    """Everything that there is to say about an audit."""
    return Document(
        title=findings.name,
        subtitle=_subtitle(findings),
        headline=headline(findings),
        says=[],
        cautions=cautions(findings),
        missing=_missing(findings),
        go_on="",
        main=grids.reconstruction_grid(findings),
        sections=[section for section in _sections(findings) if section.blocks or section.says],
        methods=methods_of(findings),
        citations=[],
        passages=passages(findings),
    )


def _subtitle(findings: Findings) -> str:
    controls = f", beside {listing(findings.controls)}" if findings.controls else ""
    took = f", {findings.seconds / 60:.0f} minutes" if findings.seconds >= 90 else ""
    return (
        f"Audit of {findings.method}{controls}: {findings.task}, {findings.client}, round {findings.round}, "
        f"rank {findings.rank}{took}"
    )


def _missing(findings: Findings) -> list[str]:
    if findings.finished:
        return []
    parts = {
        "claims": findings.claims,
        "reconstructions": findings.reconstruction,
        "membership": findings.membership,
        "labels": findings.labels,
        "means of summaries": findings.means,
    }
    empty = [name for name, rows in parts.items() if not rows]
    return [
        "The audit was broken off: what is here is what was measured until then, and what it says may change.",
        *([f"Nothing yet on {listing(empty)}."] if empty else []),
    ]


def cautions(findings: Findings) -> list[str]:
    """What not to conclude, one sentence each."""
    return [*_on_attacks(findings), *_on_trials(findings), *_always(findings)]


def _on_attacks(findings: Findings) -> Iterable[str]:
    """Attacks that succeed nowhere show nothing."""
    others = [row for row in attacks(findings) if row.method != findings.method]
    if findings.reconstruction and not others:
        yield "No control was attacked: where an attack failed, nothing shows that it could have succeeded."
    elif others and not any(is_above(findings, row) for row in others):
        yield (
            "No control was read back above guessing either: the attacks may be too weak here to show anything "
            "about any method."
        )
    if attacks(findings) and len(attacks(findings)) == len(findings.reconstruction):
        yield "There was no guesser: a score says little without what guessing gives."


def _on_trials(findings: Findings) -> Iterable[str]:
    trials = [*(row.trials for row in findings.reconstruction), *(row.trials for row in findings.labels)]
    fewest = min(trials, default=FEW_TRIALS)
    if fewest < FEW_TRIALS:
        yield f"As few as {plural(fewest, 'trial')} stand behind a number: read the intervals, not the means."


def _always(findings: Findings) -> Iterable[str]:
    yield "That an attack fails is no proof: a better one may come. Only noise with a counted budget bounds all."
    yield "The server here is curious and follows the protocol; one that alters the base model can learn more."
    yield f"One client, {findings.client}, at round {findings.round}: others, with fewer examples, may show more."


def _sections(findings: Findings) -> Iterable[Section]:
    nothing = [] if findings.claims else ["No claim was tested."]
    yield Section("Claims", nothing, [Block(grids.claims_grid(findings))] if findings.claims else [])
    yield Section("Originals and reconstructions", [], gallery_blocks(findings))
    yield Section("Reconstruction", [], reconstruction_blocks(findings))
    yield Section("Membership", [], membership_blocks(findings))
    yield Section("Labels", [], [Block(grids.labels_grid(findings))] if findings.labels else [])
    means = Block(grids.means_grid(findings), cards=means_cards(findings))
    yield Section("Summary", [], [means] if findings.means else [])
    attackers = grids.attackers_grid(findings)
    yield Section("Who attacks", [], [Block(attackers)] if attackers.rows else [])
    yield Section("Notes", list(findings.notes), [])
    run = [("Configuration", findings.configuration), ("Versions and hardware", findings.environment)]
    kept = [Block(settings_grid(title, values), folded=True) for title, values in run if values]
    yield Section("How it was run", [], kept)
