"""The report on a run or a comparison, before it has a format."""

from __future__ import annotations

from collections import defaultdict

from trifed.reports.comparison.sections import overview_blocks, partition_blocks, tuning_blocks
from trifed.reports.comparison.tables import main_table
from trifed.reports.comparison.verdict import cautions, study_verdict, verdict
from trifed.reports.document import Document, Section, settings_section
from trifed.reports.format import listing, plural
from trifed.reports.results import Details, Source


def comparison_document(source: Source) -> Document:
    """Return everything that a report says about a run or a comparison."""
    study = source.study
    several = len(study.results) > 1
    sections = [Section("All partitions", blocks=overview_blocks(study))] if several else []
    for name, partition in study.results.items():
        blocks = list(partition_blocks(name, partition, source.details.get(name, Details())))
        sections.append(Section(name, [verdict(partition)] if several else [], blocks))
    if study.tuning:
        note = "Each method's learning rate is the one with the best accuracy on validation data."
        borrowed = [
            f"{name} uses the learning rates of {partition.tuned_on}."
            for name, partition in study.results.items()
            if partition.tuned_on not in (None, name)
        ]
        sections.append(Section("Learning rates", [note, *borrowed], list(tuning_blocks(study))))
    results = [item for partition in study.results.values() for item in partition.methods.items()]
    return Document(
        title=study.name,
        subtitle=_subtitle(source),
        verdict=study_verdict(study),
        cautions=cautions(source),
        missing=_missing(source),
        main=main_table(study.results),
        sections=[*sections, *settings_section(study.configuration, study.environment)],
        methods=tuple(study.methods),
        resume_command=source.resume_command,
        citations={method: result.citation for method, result in results if result.citation},
    )


def _subtitle(source: Source) -> str:
    study = source.study
    clients = {len(partition.clients) for partition in study.results.values() if partition.clients}
    parts = [plural(len(study.methods), "method"), plural(len(study.partitions), "partition")]
    parts += [plural(clients.pop(), "client")] if len(clients) == 1 else []
    return ", ".join([*parts, plural(len(study.seeds), "seed")])


def _missing(source: Source) -> list[str]:
    """Return the runs that are not finished; those of a comparison by partition and state."""
    study = source.study
    if source.kind == "run":
        return [f"{item.method}: {item.state}" for item in study.missing]
    seeds: defaultdict[tuple[str, str], defaultdict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for item in study.missing:
        seeds[item.partition, item.state][item.method].append(str(item.seed))
    everything = len(study.methods) * len(study.seeds)
    return [
        f"{partition}, {state}: "
        + (
            "all methods and seeds"
            if sum(map(len, methods.values())) == everything
            else ", ".join(f"{method} (seed {listing(numbers)})" for method, numbers in methods.items())
        )
        for (partition, state), methods in seeds.items()
    ]
