"""Predictions and scores of clients' models: tables for a terminal, JSON and CSV for programs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, fields
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table as RichTable
from rich.text import Text

from trifed.export.evaluate import Evaluation
from trifed.export.evaluate_answers import AnswerEvaluation
from trifed.export.evaluate_matches import MatchEvaluation
from trifed.export.generate import Answer
from trifed.export.predict import Prediction
from trifed.federation.results import spread
from trifed.reports.tables import Column, Table, to_terminal, write_csv

LABELS, CONFUSIONS = 40, 10
"""Most rows shown of the labels, lowest F1 first where there are more, and of the confused pairs."""
CLIENT = Column("client", "client")
EVALUATION = (
    CLIENT,
    Column("accuracy", "accuracy, %", "percent"),
    Column("macro_f1", "macro-F1, %", "percent"),
    Column("loss", "loss, nats", "number"),
)
ANSWERS = (
    CLIENT,
    Column("perplexity", "perplexity", "number"),
    Column("accuracy", "next tokens right, %", "percent"),
    Column("exact_match", "exact match, %", "percent"),
    Column("rouge_l", "ROUGE-L, %", "percent"),
)
MATCHES = (
    CLIENT,
    Column("caption_found", "caption found, %", "percent"),
    Column("caption_near", "among 5, %", "percent"),
    Column("image_found", "image found, %", "percent"),
    Column("image_near", "among 5, %", "percent"),
)
LABEL = (
    Column("label", "label"),
    Column("examples", "examples", "count"),
    Column("precision", "precision, %", "percent"),
    Column("recall", "recall, %", "percent"),
    Column("f1", "F1, %", "percent"),
)
CONFUSION = (Column("actual", "label"), Column("predicted", "taken for"), Column("count", "examples", "count"))


def render_predictions(predictions: Iterable[Prediction], top: int) -> RichTable:
    """Render one row for each text; labels after the most probable one share a column."""
    table = RichTable()
    table.add_column("row", justify="right", no_wrap=True)
    table.add_column("text")  # the one that may shrink: rich takes from columns that wrap, so its cells do not
    table.add_column("label", no_wrap=True)
    table.add_column("probability", justify="right", no_wrap=True)
    if top > 1:
        table.add_column("then", no_wrap=True)
    for item, best in ((prediction.input, prediction.best) for prediction in predictions):
        text = item.text if item.pair is None else f"{item.text} | {item.pair}"
        rest = [Text("\n".join(f"{label} {p:.3f}" for label, p in best[1:]))] if top > 1 else []
        line = Text(" ".join(text.split()), no_wrap=True, overflow="ellipsis")
        table.add_row(str(item.row), line, Text(best[0][0]), f"{best[0][1]:.3f}", *rest)
    return table


def render_answers(answers: Iterable[Answer]) -> RichTable:
    """Render one row for each prompt, its answer below it."""
    table = RichTable()
    table.add_column("row", justify="right", no_wrap=True)
    table.add_column("prompt and answer")
    for item in answers:
        prompt = f"{item.input.text}\n{item.input.pair}" if item.input.pair else item.input.text
        table.add_row(str(item.input.row), Text.assemble((prompt, "dim"), "\n", item.text))
    return table


def render_evaluations(evaluations: Sequence[Evaluation]) -> RenderableType:
    """Render each client as a row; for a single client also its labels and most frequent confusions."""
    rows: list[dict[str, Any]] = [asdict(one) for one in evaluations]
    if len(evaluations) > 1:
        rows += [{"client": name, "accuracy": value} for name, value in _over_clients(evaluations).items()]
    overview = to_terminal(Table(f"On {evaluations[0].examples} examples", EVALUATION, rows))
    return overview if len(evaluations) > 1 else Group(overview, *_details(evaluations[0]))


def _details(one: Evaluation) -> Iterable[RichTable]:
    many = len(one.labels) > LABELS
    shown = sorted(one.labels, key=lambda score: score.f1)[:LABELS] if many else one.labels
    title = f"The {LABELS} labels of lowest F1, of {len(one.labels)}" if many else "Each label"
    yield to_terminal(Table(title, LABEL, [asdict(score) for score in shown]))
    if one.confusions:
        yield to_terminal(
            Table("Most often confused", CONFUSION, [asdict(pair) for pair in one.confusions[:CONFUSIONS]])
        )


def render_answer_evaluations(evaluations: Sequence[AnswerEvaluation]) -> RichTable:
    """Render each client's language model as a row."""
    return to_terminal(
        Table(f"On {evaluations[0].examples} examples", ANSWERS, [asdict(one) for one in evaluations])
    )


def render_match_evaluations(evaluations: Sequence[MatchEvaluation]) -> RichTable:
    """Render each client's retrieval model as a row."""
    title = f"On {evaluations[0].examples} images with {evaluations[0].captions} captions"
    return to_terminal(Table(title, MATCHES, [asdict(one) for one in evaluations]))


def evaluations_json(evaluations: Sequence[Evaluation | AnswerEvaluation | MatchEvaluation]) -> dict[str, Any]:
    """Return all scores; with several clients also mean, worst and best accuracy over them."""
    result: dict[str, Any] = {"clients": [asdict(one) for one in evaluations]}
    if len(evaluations) > 1:
        result["accuracy"] = _over_clients(evaluations)
    return result


def _over_clients(evaluations: Sequence[Evaluation | AnswerEvaluation | MatchEvaluation]) -> dict[str, float]:
    """Return mean, worst and best accuracy; all clients had the same file, so no weights are needed."""
    found = spread([one.accuracy for one in evaluations], [one.examples for one in evaluations])
    return {name: found[name] for name in ("mean", "worst", "best")}


def evaluations_csv(evaluations: Sequence[Evaluation]) -> str:
    """Return one row for each client: `client,examples,accuracy,macro_f1,loss`."""
    return write_csv(map(asdict, evaluations), ("client", "examples", "accuracy", "macro_f1", "loss"))


def answers_csv(evaluations: Sequence[AnswerEvaluation | MatchEvaluation]) -> str:
    """Return one row for each client; the columns are the fields of its scores."""
    return write_csv(map(asdict, evaluations), [field.name for field in fields(evaluations[0])])
