"""Predictions and scores of clients' models: tables for a terminal, JSON and CSV for programs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, fields
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table as RichTable
from rich.text import Text

from trifed.data.tags import OUTSIDE
from trifed.export.evaluate import AnswerEvaluation, Evaluation, MatchEvaluation
from trifed.export.evaluate_tags import TagEvaluation
from trifed.export.evaluate_targets import MultiLabelEvaluation, NumberEvaluation
from trifed.export.inference_inputs import InferenceInput
from trifed.export.predict import Answer, LabelsPrediction, NumberPrediction, Prediction, Tagging
from trifed.federation.results import spread
from trifed.reports.tables import NAME, Column, Table, write_csv
from trifed.reports.terminal import to_terminal

LABELS, CONFUSIONS = 40, 10
"""Most rows shown of the labels, lowest F1 first where there are more, and of the confused pairs."""
CLIENT = Column("client", "client", NAME)
AnyEvaluation = (
    Evaluation | AnswerEvaluation | MatchEvaluation | TagEvaluation | MultiLabelEvaluation | NumberEvaluation
)
CLASSIFIER = ("client", "examples", "accuracy", "macro_f1", "loss")
"""Columns of the CSV form of a classifier's scores."""
DETAILS = ("labels", "confusions", "entities")
"""Lists of scores, which a row of a CSV file has no place for."""
COLUMNS: dict[type, tuple[Column, ...]] = {
    Evaluation: (
        CLIENT,
        Column("accuracy", "accuracy, %", "percent"),
        Column("macro_f1", "macro-F1, %", "percent"),
        Column("loss", "loss, nats", "number"),
    ),
    MultiLabelEvaluation: (
        CLIENT,
        Column("accuracy", "F1 per example, %", "percent"),
        Column("f1_micro", "micro-F1, %", "percent"),
        Column("f1_macro", "macro-F1, %", "percent"),
        Column("exact", "all labels right, %", "percent"),
        Column("loss", "loss, nats", "number"),
    ),
    NumberEvaluation: (
        CLIENT,
        Column("r2", "R²", "number"),
        Column("mse", "mean squared error", "number"),
        Column("mae", "mean absolute error", "number"),
        Column("pearson", "Pearson", "number"),
        Column("spearman", "Spearman", "number"),
    ),
    AnswerEvaluation: (
        CLIENT,
        Column("perplexity", "perplexity", "number"),
        Column("accuracy", "next tokens right, %", "percent"),
        Column("exact_match", "exact match, %", "percent"),
        Column("rouge_l", "ROUGE-L, %", "percent"),
    ),
    MatchEvaluation: (
        CLIENT,
        Column("caption_found", "caption found, %", "percent"),
        Column("caption_near", "among 5, %", "percent"),
        Column("image_found", "image found, %", "percent"),
        Column("image_near", "among 5, %", "percent"),
    ),
    TagEvaluation: (
        CLIENT,
        Column("accuracy", "words right, %", "percent"),
        Column("f1_entities", "entity F1, %", "percent"),
        Column("loss", "loss, nats", "number"),
    ),
}
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
    for prediction in predictions:
        item, (label, probability), *rest = prediction.input, *prediction.best
        line = _line(item)
        more = [Text("\n".join(f"{label} {p:.3f}" for label, p in rest))] if top > 1 else []
        table.add_row(str(item.row), line, Text(label), f"{probability:.3f}", *more)
    return table


def _line(item: InferenceInput) -> Text:
    text = item.text if item.pair is None else f"{item.text} | {item.pair}"
    return Text(" ".join(text.split()), no_wrap=True, overflow="ellipsis")


def render_targets(predictions: Iterable[LabelsPrediction | NumberPrediction]) -> RichTable:
    """Render one row for each text, with its number, or with all its labels and their probabilities."""
    table = RichTable()
    table.add_column("row", justify="right", no_wrap=True)
    table.add_column("text")
    table.add_column("prediction", no_wrap=True)
    for one in predictions:
        if isinstance(one, NumberPrediction):
            found = f"{one.number:.6g}"
        else:
            found = "\n".join(f"{label} {value:.3f}" for label, value in one.chosen) or "no label"
        table.add_row(str(one.input.row), _line(one.input), Text(found))
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


def render_tags(tagged: Iterable[Tagging]) -> RichTable:
    """Render one row for each sentence, each tag behind its word, but for those outside of entities."""
    table = RichTable()
    table.add_column("row", justify="right", no_wrap=True)
    table.add_column("words and tags")
    for item in tagged:
        words: list[str | Text] = [
            f"{word} " if tag == OUTSIDE else Text.assemble(word, (f"/{tag} ", "bold"))
            for word, tag in zip(item.words, item.tags, strict=True)
        ]
        table.add_row(str(item.row), Text.assemble(*words))
    return table


def render_evaluations(evaluations: Sequence[AnyEvaluation]) -> RenderableType:
    """Render each client as a row; for a single classifier also its labels and most frequent confusions."""
    first, rows = evaluations[0], [asdict(one) for one in evaluations]
    what = f"images with {first.captions} captions" if isinstance(first, MatchEvaluation) else "examples"
    details: list[RenderableType] = []
    if isinstance(first, Evaluation) and len(evaluations) > 1:
        rows += [{"client": name, "accuracy": value} for name, value in _over_clients(evaluations).items()]
    elif isinstance(first, Evaluation | MultiLabelEvaluation) and len(evaluations) == 1:
        details += _details(first)
    elif isinstance(first, TagEvaluation) and len(evaluations) == 1 and first.entities:
        details.append(to_terminal(Table("Each kind of entity", LABEL, [asdict(kind) for kind in first.entities])))
    return Group(to_terminal(Table(f"On {first.examples} {what}", COLUMNS[type(first)], rows)), *details)


def _details(one: Evaluation | MultiLabelEvaluation) -> Iterable[RenderableType]:
    many = len(one.labels) > LABELS
    shown = sorted(one.labels, key=lambda score: score.f1)[:LABELS] if many else one.labels
    title = f"The {LABELS} labels of lowest F1, of {len(one.labels)}" if many else "Each label"
    yield to_terminal(Table(title, LABEL, [asdict(score) for score in shown]))
    if isinstance(one, Evaluation) and one.confusions:
        confusions = [asdict(pair) for pair in one.confusions[:CONFUSIONS]]
        yield to_terminal(Table("Most often confused", CONFUSION, confusions))


def evaluations_json(evaluations: Sequence[AnyEvaluation]) -> dict[str, Any]:
    """Return all scores; with several clients also mean, worst and best accuracy over them."""
    overall = {"accuracy": _over_clients(evaluations)} if len(evaluations) > 1 else {}
    return {"clients": [asdict(one) for one in evaluations], **overall}


def _over_clients(evaluations: Sequence[AnyEvaluation]) -> dict[str, float]:
    """Return mean, worst and best accuracy; all clients had the same file, so no weights are needed."""
    found = spread([one.accuracy for one in evaluations], [one.examples for one in evaluations])
    return {name: found[name] for name in ("mean", "worst", "best")}


def evaluations_csv(evaluations: Sequence[AnyEvaluation]) -> str:
    """Return one row for each client; a classifier's is `client,examples,accuracy,macro_f1,loss`."""
    first = evaluations[0]
    names = CLASSIFIER if isinstance(first, Evaluation) else [field.name for field in fields(first)]
    names = [name for name in names if name not in DETAILS]
    return write_csv(map(asdict, evaluations), names)
