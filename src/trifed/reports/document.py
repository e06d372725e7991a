"""A report before it has a format: sentences, and sections of blocks, each a grid and perhaps the figure of it."""

from __future__ import annotations

from dataclasses import dataclass

from trifed.reports.comparison.cautions import cautions
from trifed.reports.comparison.folder_sections import folder_blocks
from trifed.reports.comparison.sections import Block, overview_blocks, partition_blocks, tuning_blocks
from trifed.reports.comparison.tables import main_grid, settings_grid
from trifed.reports.comparison.verdict import bytes_sentence, controls_sentence, headline, ranked, verdict
from trifed.reports.format import listing, plural
from trifed.reports.results import Source
from trifed.reports.tables import Grid


@dataclass(frozen=True)
class Section:
    """A part of the report under its own heading."""

    title: str
    says: list[str]
    blocks: list[Block]


@dataclass(frozen=True)
class Document:
    """What every format shows.

    `missing`: what is not there yet; `go_on`: how to get it. `passages`: titles, each with a few sentences, that
    come before everything else.
    """

    title: str
    subtitle: str
    headline: str
    says: list[str]
    cautions: list[str]
    missing: list[str]
    go_on: str
    main: Grid
    sections: list[Section]
    methods: tuple[str, ...]
    citations: list[tuple[str, str]]
    passages: tuple[tuple[str, list[str]], ...] = ()


def make_document(source: Source) -> Document:
    """Everything that there is to say about a run or a comparison."""
    study = source.study
    several = len(study.results) > 1
    only = next(iter(study.results.values())) if len(study.results) == 1 else None
    sections = [Section("All partitions", [], overview_blocks(study))] if several else []
    for name, partition in study.results.items():
        details = source.details.get(name)
        blocks = [
            *partition_blocks(name, partition, details),
            *(folder_blocks(partition, details) if details else []),
        ]
        says = [verdict(partition), bytes_sentence(partition), controls_sentence(partition)] if several else []
        sections.append(Section(name, [sentence for sentence in says if sentence], blocks))
    if study.tuning:
        note = "Each method's learning rate was the one with the best accuracy on validation data."
        sections.append(Section("Learning rates", [note], tuning_blocks(study)))
    run = [("Configuration", study.configuration), ("Versions and hardware", study.environment)]
    kept = [Block(settings_grid(title, values), folded=True) for title, values in run if values]
    if kept:
        sections.append(Section("How it was run", [], kept))
    says = [bytes_sentence(only), controls_sentence(only)] if only and ranked(only) else []
    says += [line for found in (only.methods.values() if only else []) for line in found.privacy]
    return Document(
        title=study.name,
        subtitle=_subtitle(source),
        headline=headline(study),
        says=[sentence for sentence in says if sentence],
        cautions=cautions(source),
        missing=_missing(source),
        go_on=source.go_on,
        main=main_grid(study.results),
        sections=sections,
        methods=tuple(study.methods),
        citations=_citations(source),
    )


def _missing(source: Source) -> list[str]:
    study = source.study
    if source.kind == "run":
        lines = [f"{item.method}: {item.state}" for item in study.missing]
        if lines and not any(partition.controls for partition in study.results.values()):
            lines.append("the controls, which are measured at the end of a run")
        return lines
    places: dict[tuple[str, str], dict[str, list[str]]] = {}
    for item in study.missing:
        methods = places.setdefault((item.partition, item.state), {})
        methods.setdefault(item.method, []).append(str(item.seed))
    everything = len(study.methods) * len(study.seeds)
    return [
        f"{partition}, {state}: "
        + (
            "all methods and seeds"
            if sum(map(len, methods.values())) == everything
            else ", ".join(f"{method} (seed {listing(seeds)})" for method, seeds in methods.items())
        )
        for (partition, state), methods in places.items()
    ]


def _citations(source: Source) -> list[tuple[str, str]]:
    found = {
        method: result.citation
        for partition in source.study.results.values()
        for method, result in partition.methods.items()
        if result.citation
    }
    return list(found.items())


def _subtitle(source: Source) -> str:
    """What was compared with what, in half a line."""
    study = source.study
    clients = {len(partition.clients) for partition in study.results.values() if partition.clients}
    parts = [plural(len(study.methods), "method"), plural(len(study.partitions), "partition")]
    parts += [plural(clients.pop(), "client")] if len(clients) == 1 else []
    return ", ".join([*parts, plural(len(study.seeds), "seed")])
