"""`trifed evaluate`: a client's model, or every client's, on a labelled file."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console, RenderableType

if TYPE_CHECKING:
    from trifed.export.inference_inputs import Labelled
    from trifed.export.locate import LocatedModel

HELP = """How well clients' models do on a labelled file.

The model: a run, a folder that `trifed export` wrote, or a folder of such.
Of one client: accuracy, loss, macro-F1, each label, and which labels are
taken for which. With --client all, one row a client. Of a language model:
perplexity, next-token accuracy, exact match and ROUGE-L of its answers. Of a
model of images and captions: how often it finds the caption of an image, and
the image of a caption, among all of the file.

csv has one row a client; json has everything. A label that the model does
not know is refused. A run's client is measured in the run's own precision,
an export in float32.

[bold]Examples[/bold]

  trifed evaluate runs/tickets new.csv --client berlin
\b
  trifed evaluate runs/tickets new.csv --client all --format csv
\b
  trifed evaluate berlin new.csv --label-column queue
"""


class Format(StrEnum):
    """How scores are written."""

    TABLE = "table"
    JSON = "json"
    CSV = "csv"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("evaluate", help=HELP)(evaluate_command)


def evaluate_command(
    model: Annotated[Path, typer.Argument(help="A run's folder, or an exported one.", show_default=False)],
    file: Annotated[
        Path,
        typer.Argument(help="CSV, JSON Lines or Parquet, with labels; or a folder of images.", show_default=False),
    ],
    client: Annotated[str | None, typer.Option(help="Whose model, or 'all'.")] = None,
    text_column: Annotated[str | None, typer.Option(help="Column of the text.")] = None,
    pair_column: Annotated[str | None, typer.Option(help="Column of a second text.")] = None,
    image_column: Annotated[str | None, typer.Option(help="Column of the image.")] = None,
    label_column: Annotated[str | None, typer.Option(help="Column of the label.")] = None,
    output: Annotated[Format, typer.Option("--format", help="How to show it.")] = Format.TABLE,
    tokens: Annotated[int, typer.Option(min=1, help="How long an answer of a language model may be.")] = 64,
    base: Annotated[str | None, typer.Option(help="Where the base model lies now, if it was moved.")] = None,
) -> None:
    """How well clients' models do on a labelled file."""
    # Imported late: --help should not wait for torch.
    from trifed.export.evaluate import evaluate_client
    from trifed.export.inference_inputs import read_labelled
    from trifed.export.locate import locate_models, named
    from trifed.export.predict import load_located
    from trifed.reports.evaluations import evaluations_csv, evaluations_json, render_evaluations
    from trifed.reports.progress_bar import counting

    models = locate_models(model, client)
    usual = models[0].columns
    columns = replace(named(usual, text_column, pair_column, image_column), label=label_column or usual.label)
    data = read_labelled(file, columns)
    if columns.answers:
        _answers((model, file), models, data, (output, tokens, base))
        return
    if columns.matches:
        _matches((model, file), models, data, (output, base))
        return
    with counting(f"{columns.kind}s", len(models) * len(data.asked)) as told:
        scores = [evaluate_client(found, load_located(found, base), data, told) for found in models]
    table = render_evaluations(scores) if output is Format.TABLE else None
    _show((model, file), output, table, lambda: evaluations_json(scores), lambda: evaluations_csv(scores))


def _answers(
    named: tuple[Path, Path], models: list[LocatedModel], data: Labelled, how: tuple[Format, int, str | None]
) -> None:
    """The same of language models."""
    from trifed.export.evaluate_answers import evaluate_writer
    from trifed.export.generate import load_located_writer
    from trifed.reports.evaluations import answers_csv, evaluations_json, render_answer_evaluations
    from trifed.reports.progress_bar import counting

    output, tokens, base = how
    with counting("prompts", len(models) * len(data.asked)) as told:
        scores = [evaluate_writer(found, load_located_writer(found, base), data, tokens, told) for found in models]
    table = render_answer_evaluations(scores) if output is Format.TABLE else None
    _show(named, output, table, lambda: evaluations_json(scores), lambda: answers_csv(scores))


def _matches(
    named: tuple[Path, Path], models: list[LocatedModel], data: Labelled, how: tuple[Format, str | None]
) -> None:
    """The same of models of images and captions."""
    from trifed.export.evaluate_matches import evaluate_retrieval_model
    from trifed.export.predict import load_located_retrieval_model
    from trifed.reports.evaluations import answers_csv, evaluations_json, render_match_evaluations
    from trifed.reports.progress_bar import counting

    output, base = how
    with counting("images", len(models) * len(data.asked)) as told:
        scores = [
            evaluate_retrieval_model(found, load_located_retrieval_model(found, base), data, told)
            for found in models
        ]
    table = render_match_evaluations(scores) if output is Format.TABLE else None
    _show(named, output, table, lambda: evaluations_json(scores), lambda: answers_csv(scores))


def _show(
    named: tuple[Path, Path],
    output: Format,
    table: RenderableType | None,
    as_json: Callable[[], dict[str, Any]],
    as_csv: Callable[[], str],
) -> None:
    if output is Format.TABLE:
        Console().print(table)
    elif output is Format.JSON:
        typer.echo(json.dumps({"model": str(named[0]), "file": str(named[1]), **as_json()}, indent=2))
    else:
        typer.echo(as_csv(), nl=False)
