"""The report on an audit: as a page, as a document that every format shows, and as lines for a terminal."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Group, RenderableType
from rich.text import Text

from trifed.reports.audit.findings import Findings
from trifed.reports.audit.ranking import attacks, methods_of
from trifed.reports.audit.sections import gallery_blocks, means_cards, membership_blocks, reconstruction_blocks
from trifed.reports.audit.tables import (
    claims_table,
    glossary_table,
    labels_table,
    means_table,
    membership_table,
    reconstruction_table,
    worst_table,
)
from trifed.reports.audit.verdict import cautions, verdict
from trifed.reports.document import Block, Document, Section, settings_section
from trifed.reports.format import listing
from trifed.reports.page import render_html
from trifed.reports.run.read import OnProgress
from trifed.reports.tables import to_terminal

WORST = ("method", "attack", "sees", "knows", "batch", "f1", "psnr", "interval", "against")
MEMBERSHIP = ("method", "source", "knows", "examples", "auc", "interval", "tpr", "against")


def audit_page(findings: Findings, on_progress: OnProgress) -> str:
    """Return an audit's HTML page, which fetches nothing."""
    return render_html(audit_document(findings), on_progress)


def audit_lines(findings: Findings) -> RenderableType:
    """Return an audit for a terminal: verdict, cautions, then claims and numbers."""
    lines = [f"- {caution.text}" for caution in cautions(findings)]
    tables = [
        (findings.claims, claims_table(findings)),
        (attacks(findings), worst_table(findings).only(*WORST)),
        (findings.membership, membership_table(findings).only(*MEMBERSHIP)),
    ]
    shown = [part for rows, table in tables if rows for part in (Text(), to_terminal(table))]
    return Group(Text(verdict(findings), style="bold"), *map(Text, lines), *shown)


def audit_document(findings: Findings) -> Document:
    """Return everything that a report says about an audit."""
    return Document(
        title=findings.name,
        subtitle=_subtitle(findings),
        verdict=verdict(findings),
        cautions=cautions(findings),
        missing=_missing(findings),
        main=reconstruction_table(findings),
        sections=[section for section in _sections(findings) if section.blocks or section.notes],
        methods=methods_of(findings),
    )


def _subtitle(findings: Findings) -> str:
    controls = f", beside {listing(findings.controls)}" if findings.controls else ""
    took = f", {findings.seconds / 60:.0f} minutes" if findings.seconds >= 90 else ""
    return (
        f"Audit of {findings.method}{controls}: {findings.task}, {findings.client}, round {findings.round}, "
        f"rank {findings.rank}{took}"
    )


def _missing(findings: Findings) -> list[str]:
    parts = ("claims", "reconstruction", "membership", "labels", "means")
    empty = [part for part in parts if not getattr(findings, part)]
    if findings.finished:
        return []
    return ["The audit was broken off; its numbers may change.", *(f"Not measured yet: {part}." for part in empty)]


def _sections(findings: Findings) -> Iterable[Section]:
    tables = {
        "Labels": (findings.labels, Block(labels_table(findings))),
        "Summary": (findings.means, Block(means_table(findings), cards=means_cards(findings))),
    }
    yield Section("Claims", blocks=[Block(claims_table(findings))] if findings.claims else [])
    yield Section("Originals and reconstructions", blocks=gallery_blocks(findings))
    yield Section("Reconstruction", blocks=reconstruction_blocks(findings))
    yield Section("Membership", blocks=membership_blocks(findings))
    for title, (rows, block) in tables.items():
        yield Section(title, blocks=[block] if rows else [])
    glossary = glossary_table(findings)
    yield Section("Who attacks", blocks=[Block(glossary)] if glossary.rows else [])
    yield Section("Notes", findings.notes)
    yield from settings_section(findings.configuration, findings.environment)
