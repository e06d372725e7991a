"""The report on a run or a comparison, before it has a format, and its tables for a terminal."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from rich.columns import Columns
from rich.console import Group, RenderableType
from rich.text import Text

from trifed.reports.comparison import tables
from trifed.reports.comparison.advice import advice_on
from trifed.reports.comparison.first import first_block, outcome
from trifed.reports.comparison.gain import beside_plain_lora
from trifed.reports.comparison.metric_tables import (
    metric_tables,
)
from trifed.reports.comparison.sections import sections_of
from trifed.reports.comparison.tables import main_table
from trifed.reports.comparison.verdict import cautions, study_verdict, verdict
from trifed.reports.document import WIDTH, Document, Section
from trifed.reports.figures import draw_figure
from trifed.reports.format import control_meanings, listing, percent, plural
from trifed.reports.results import Details, Source, Study
from trifed.reports.terminal import to_terminal

MOST_MISSING = 8
RUN_OVERVIEW = ("method", "mean", "worst", "best", "up_per_round", "total_bytes", "fedavg_lora_would_send")
ACCURACY = ("method", "learning_rate", "mean", "sd", "interval", "worst", "best")
TRAFFIC = ("method", "up_per_round", "down_per_round", "once_up", "once_down", "bytes_to_target", "seconds")
IN_ALL = ("method", "total_bytes", "fedavg_lora_would_send")
PLAIN = "Plain LoRA: what fedavg-lora would send in the same rounds with as many bits a number."


def render_result(source: Source) -> RenderableType:
    """Render a run's result for a terminal: its clients, its methods and controls, and the verdict."""
    parts: list[RenderableType] = []
    for name, partition in source.study.results.items():
        clients = tables.client_table(partition, source.details.get(name, Details()), controls=False)
        compared = beside_plain_lora(partition)
        columns = RUN_OVERVIEW if compared else RUN_OVERVIEW[:-1]
        overview = main_table({name: partition}).only(*columns).without_empty()
        parts += [to_terminal(clients), to_terminal(overview)]
        notes = [PLAIN if compared else "", control_meanings(partition.controls)]
        parts += [Text(text, style="dim") for text in notes if text]
        parts += map(to_terminal, metric_tables(partition))
    advice = advice_on(source).text
    return Group(*parts, Text(study_verdict(source.study), style="bold"), Text(advice))


def render_comparison(data: dict[str, Any]) -> RenderableType:
    """Render the contents of comparison.json: tables and verdict of each partition, and the missing runs."""
    study = Study.model_validate(data)
    parts: list[RenderableType] = []
    for name, partition in study.results.items():
        seeds = f"clients {len(partition.clients)}, seeds {len(partition.seeds)}"
        columns = (*ACCURACY, "seeds") if partition.unequal_seeds else ACCURACY
        accuracy = main_table({name: partition}).only(*columns, title=f"{name}: test {partition.metric}, {seeds}")
        each = main_table({name: partition}, controls=False)
        target = f"; target: {percent(partition.target)} %" if partition.target is not None else ""
        sent = each.only(*TRAFFIC, title=f"What a client sends and receives{target}").without_empty()
        in_all = each.only(*IN_ALL, title="All clients and rounds, up and down").without_empty()
        # Side by side where the terminal is wide enough: no number may fall off its edge.
        parts.append(Columns([to_terminal(accuracy.without_empty()), to_terminal(sent)]))
        if beside_plain_lora(partition):
            parts += [to_terminal(in_all), Text(PLAIN, style="dim")]
        parts += [
            to_terminal(tables.difference_table(partition)),
            *map(to_terminal, metric_tables(partition)),
            Text(verdict(partition)),
        ]
    lines = [caution.text for caution in cautions(Source(Path(), "comparison", study, {}))]
    if study.missing:
        lines.append(_to_do([missing.state for missing in study.missing]))
    lines += [f"  {m.partition} · {m.method} · seed {m.seed}: {m.state}" for m in study.missing[:MOST_MISSING]]
    if len(study.missing) > MOST_MISSING:
        lines.append(f"  and {len(study.missing) - MOST_MISSING} more")
    return Group(*parts, *map(Text, lines))


def _to_do(states: list[str]) -> str:
    """Return the heading of the runs that are not finished."""
    runs = plural(len(states), "run")
    if any(state.startswith(("running", "waiting")) for state in states):
        return f"{runs} to do:"
    return f"{runs} missing; the same command without --show runs what is missing:"


def comparison_document(source: Source) -> Document:
    """Return everything that a report says about a run or a comparison."""
    study = source.study
    results = [item for partition in study.results.values() for item in partition.methods.items()]
    advice = advice_on(source)
    return Document(
        title=study.name,
        subtitle=_subtitle(source),
        verdict=study_verdict(study),
        cautions=cautions(source),
        missing=_missing(source),
        main=main_table(study.results),
        sections=list(sections_of(source)),
        methods=tuple(study.methods),
        resume_command=source.resume_command,
        citations={method: result.citation for method, result in results if result.citation},
        outcome=outcome(study),
        recommendation=advice.text,
        advice=advice.code,
        first=first_block(source),
    )


def figures_of(document: Document) -> dict[str, Figure]:
    """Return the figures of a report, by the titles of their tables; those of several partitions by theirs too."""
    first = [Section("", blocks=[document.first])] if document.first else []
    parts = [*first, *document.sections]
    drawn = [(section.title, block) for section in parts for block in section.blocks if block.plot]
    several = len({block.table.title for _, block in drawn}) < len(drawn)
    figures = {}
    for section, block in drawn:
        own = f"{section}: {block.table.title}" if several and section else block.table.title
        if block.plot:
            figures[own] = draw_figure(block.plot, document.methods, (WIDTH, block.height), own)
    return figures


def _subtitle(source: Source) -> str:
    """Return what was run: of a run its method, data and sites; of a comparison counts."""
    study = source.study
    if source.kind == "run":
        first, *others = study.methods
        places = [f"{name}, {plural(len(found.clients), 'site')}" for name, found in study.results.items()]
        beside = f" beside {listing(others)}" if others else ""
        return f"Run of {first}{beside}: {'; '.join(places)}, seed {study.seeds[0]}"
    clients = {len(partition.clients) for partition in study.results.values() if partition.clients}
    counts = {"method": len(study.methods), "data set": len(study.partitions)}
    counts |= {"client": clients.pop()} if len(clients) == 1 else {}
    return ", ".join(plural(count, noun) for noun, count in {**counts, "seed": len(study.seeds)}.items())


def _missing(source: Source) -> list[str]:
    """Return the runs that are not finished; those of a comparison by partition and state."""
    study = source.study
    if source.kind == "run":
        return [f"{item.method}: {item.state}" for item in study.missing]
    seeds: defaultdict[tuple[str, str], defaultdict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for item in study.missing:
        seeds[item.partition, item.state][item.method].append(str(item.seed))
    return [
        f"{partition}, {state}: "
        + (
            "all methods and seeds"
            if sum(map(len, methods.values())) == len(study.methods) * len(study.seeds)
            else ", ".join(f"{method} (seed {listing(numbers)})" for method, numbers in methods.items())
        )
        for (partition, state), methods in seeds.items()
    ]
