"""`trifed evaluate`: a client's model, or every client's, on a labelled file."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console

from trifed.cli.flags import Base, ImageColumn, ModelFolder, PairColumn, TextColumn, Tokens

if TYPE_CHECKING:
    from trifed.export.locate import Columns
    from trifed.federation.client_model import ClientModel

Function = Callable[..., Any]


def evaluate_command(
    model: ModelFolder,
    file: Annotated[
        Path,
        typer.Argument(help="CSV, JSON Lines or Parquet with labels, or a folder of images.", show_default=False),
    ],
    client: Annotated[str | None, typer.Option(help="The client's name, or 'all'.")] = None,
    text_column: TextColumn = None,
    pair_column: PairColumn = None,
    image_column: ImageColumn = None,
    label_column: Annotated[str | None, typer.Option(help="Column of the label.")] = None,
    output: Annotated[
        Literal["table", "json", "csv"], typer.Option("--format", help="Format of the output.")
    ] = "table",
    tokens: Tokens = 64,
    base: Base = None,
) -> None:
    """Evaluate clients' models on a labelled file.

    MODEL is a run, a folder that `trifed export` wrote, or a folder of such
    folders. FILE needs the columns of the run's data, labels included.

    A classifier gets accuracy, loss, macro-F1, scores of each label, and the most
    frequent confusions. A language model gets perplexity, next-token accuracy,
    and exact match and ROUGE-L of its answers. A model of images and captions
    gets the share of captions that it finds for images, and of images for
    captions. With --client all there is one row for each client.

    csv has one row for each client; json has everything. A label that the model
    was not trained on is an error. A client inside its run is evaluated in the
    run's precision, an export in float32.

    [bold]Examples[/bold]

      trifed evaluate runs/tickets new.csv --client berlin
    \b
      trifed evaluate runs/tickets new.csv --client all --format csv
    \b
      trifed evaluate berlin new.csv --label-column queue
    """
    # Imported late: --help should not wait for torch.
    from trifed.export.inference_inputs import read_labelled
    from trifed.export.locate import locate_models
    from trifed.export.predict import load_located
    from trifed.reports import evaluations, progress_bar

    models = locate_models(model, client)
    columns = models[0].columns.override(text_column, pair_column, image_column)
    columns = replace(columns, label=label_column or columns.label)
    data = read_labelled(file, columns)
    kind, evaluate, render, to_csv = _by_kind(columns, tokens)
    with progress_bar.counting(f"{columns.kind}s", len(models) * len(data.inputs)) as progress:
        scores = [evaluate(one, load_located(kind, one, base), data, progress=progress) for one in models]
    if output == "table":
        Console().print(render(scores))
    elif output == "json":
        typer.echo(
            json.dumps({"model": str(model), "file": str(file), **evaluations.evaluations_json(scores)}, indent=2)
        )
    else:
        typer.echo(to_csv(scores), nl=False)


def _by_kind(columns: Columns, tokens: int) -> tuple[type[ClientModel], Function, Function, Function]:
    """Return a kind of models, and the functions that evaluate them, show the scores, and write them as CSV."""
    from trifed.export import evaluate, evaluate_answers, evaluate_matches
    from trifed.federation.client_model import Classifier, Writer
    from trifed.federation.retrieval import RetrievalModel
    from trifed.reports import evaluations

    if columns.answers:
        score = partial(evaluate_answers.evaluate_writer, tokens=tokens)
        return Writer, score, evaluations.render_answer_evaluations, evaluations.answers_csv
    if columns.matches:
        match = evaluate_matches.evaluate_retrieval_model
        return RetrievalModel, match, evaluations.render_match_evaluations, evaluations.answers_csv
    return Classifier, evaluate.evaluate_client, evaluations.render_evaluations, evaluations.evaluations_csv
