"""What clients' models predict, and how well, as tables for a terminal and as JSON or CSV for programs."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import asdict, fields
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from trifed.export.evaluate import Evaluation
from trifed.export.evaluate_answers import AnswerEvaluation
from trifed.export.evaluate_matches import MatchEvaluation
from trifed.export.generate import Answer
from trifed.export.predict import Prediction
from trifed.federation.results import spread
from trifed.reports.format import percent

LABELS, CONFUSIONS = 40, 10
"""Rows shown of the labels, worst first where there are more, and of the confused pairs."""


def render_predictions(predictions: Iterable[Prediction], top: int) -> Table:
    """One row a text; what comes after the most probable label in one column."""
    table = Table()
    table.add_column("row", justify="right", no_wrap=True)
    table.add_column("text")  # the one that may shrink: rich takes from columns that wrap, so its cells do not
    table.add_column("label", no_wrap=True)
    table.add_column("probability", justify="right", no_wrap=True)
    if top > 1:
        table.add_column("then", no_wrap=True)
    for asked, best in ((p.asked, p.best) for p in predictions):
        text = asked.text if asked.pair is None else f"{asked.text} | {asked.pair}"
        rest = [Text("\n".join(f"{label} {p:.3f}" for label, p in best[1:]))] if top > 1 else []
        line = Text(" ".join(text.split()), no_wrap=True, overflow="ellipsis")
        table.add_row(str(asked.row), line, Text(best[0][0]), f"{best[0][1]:.3f}", *rest)
    return table


def render_answers(answers: Iterable[Answer]) -> Table:
    """One row a prompt, its answer below it."""
    table = Table()
    table.add_column("row", justify="right", no_wrap=True)
    table.add_column("prompt and answer")
    for item in answers:
        prompt = f"{item.asked.text}\n{item.asked.pair}" if item.asked.pair else item.asked.text
        table.add_row(str(item.asked.row), Text.assemble((prompt, "dim"), "\n", item.text))
    return table


def render_evaluations(evaluations: Sequence[Evaluation]) -> RenderableType:
    """Each client in a row; of one client also its labels and what it takes for what."""
    overview = _overview(evaluations)
    if len(evaluations) > 1:
        return overview
    return Group(overview, *_details(evaluations[0]))


def _overview(evaluations: Sequence[Evaluation]) -> Table:
    table = Table(title=f"On {evaluations[0].examples} examples", title_justify="left")
    table.add_column("client", overflow="fold")
    for column in ("accuracy, %", "macro-F1, %", "loss, nats"):
        table.add_column(column, justify="right")
    for one in evaluations:
        table.add_row(Text(one.client), percent(one.accuracy), percent(one.macro_f1), f"{one.loss:.3f}")
    if len(evaluations) > 1:
        table.add_section()
        for name, value in _over_clients(evaluations).items():
            table.add_row(name, percent(value), "", "")
    return table


def _over_clients(evaluations: Sequence[Evaluation]) -> dict[str, float]:
    """Mean, worst and best accuracy; all clients saw the same file, so there is nothing to weigh."""
    found = spread([one.accuracy for one in evaluations], [one.examples for one in evaluations])
    return {name: found[name] for name in ("mean", "worst", "best")}


def _details(one: Evaluation) -> Iterable[Table]:
    many = len(one.labels) > LABELS
    shown = sorted(one.labels, key=lambda score: score.f1)[:LABELS] if many else one.labels
    title = f"The {LABELS} labels of lowest F1, of {len(one.labels)}" if many else "Each label"
    table = Table(title=title, title_justify="left")
    table.add_column("label", overflow="fold")
    for column in ("examples", "precision, %", "recall, %", "F1, %"):
        table.add_column(column, justify="right")
    for score in shown:
        numbers = (percent(value) for value in (score.precision, score.recall, score.f1))
        table.add_row(Text(score.label), str(score.examples), *numbers)
    yield table
    if one.confusions:
        table = Table(title="Most often confused", title_justify="left")
        for column in ("label", "taken for"):
            table.add_column(column, overflow="fold")
        table.add_column("examples", justify="right")
        for pair in one.confusions[:CONFUSIONS]:
            table.add_row(Text(pair.actual), Text(pair.predicted), str(pair.count))
        yield table


def evaluations_json(evaluations: Sequence[Evaluation]) -> dict[str, Any]:
    """All that was measured; `accuracy` over the clients where there are several."""
    result: dict[str, Any] = {"clients": [asdict(one) for one in evaluations]}
    if len(evaluations) > 1:
        result["accuracy"] = _over_clients(evaluations)
    return result


def evaluations_csv(evaluations: Sequence[Evaluation]) -> str:
    """One row a client: `client,examples,accuracy,macro_f1,loss`."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["client", "examples", "accuracy", "macro_f1", "loss"])
    for one in evaluations:
        writer.writerow([one.client, one.examples, one.accuracy, one.macro_f1, one.loss])
    return text.getvalue()


def render_answer_evaluations(evaluations: Sequence[AnswerEvaluation]) -> Table:
    """Each client's language model in a row."""
    table = Table(title=f"On {evaluations[0].examples} examples", title_justify="left")
    table.add_column("client", overflow="fold")
    for column in ("perplexity", "next tokens right, %", "exact match, %", "ROUGE-L, %"):
        table.add_column(column, justify="right")
    for one in evaluations:
        shares = (percent(value) for value in (one.accuracy, one.exact_match, one.rouge_l))
        table.add_row(Text(one.client), f"{one.perplexity:.3g}", *shares)
    return table


def render_match_evaluations(evaluations: Sequence[MatchEvaluation]) -> Table:
    """Each client's model of images and captions in a row."""
    first = evaluations[0]
    table = Table(title=f"On {first.examples} images with {first.captions} captions", title_justify="left")
    table.add_column("client", overflow="fold")
    for column in ("caption found, %", "among 5, %", "image found, %", "among 5, %"):
        table.add_column(column, justify="right")
    for one in evaluations:
        shares = (one.caption_found, one.caption_near, one.image_found, one.image_near)
        table.add_row(Text(one.client), *map(percent, shares))
    return table


def answers_json(evaluations: Sequence[AnswerEvaluation | MatchEvaluation]) -> dict[str, Any]:
    """All that was measured; `accuracy` over the clients where there are several."""
    result: dict[str, Any] = {"clients": [asdict(one) for one in evaluations]}
    if len(evaluations) > 1:
        found = spread([one.accuracy for one in evaluations], [one.examples for one in evaluations])
        result["accuracy"] = {name: found[name] for name in ("mean", "worst", "best")}
    return result


def answers_csv(evaluations: Sequence[AnswerEvaluation | MatchEvaluation]) -> str:
    """One row a client, its columns the fields of what was measured."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(evaluations[0])], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(one) for one in evaluations)
    return text.getvalue()
