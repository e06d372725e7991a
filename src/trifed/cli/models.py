"""`trifed predict`, `evaluate` and `export`: models of a run's clients, or exported ones."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TextIO

import typer

from trifed.cli.flags import Base, ImageColumn, ModelFolder, PairColumn, TextColumn, Tokens
from trifed.cli.model_kinds import evaluation, kind, prediction
from trifed.common.console import PlainConsole
from trifed.common.errors import ConfigError, DataError, RunError
from trifed.common.files import whole_file
from trifed.common.imports import quick_imports

if TYPE_CHECKING:
    from trifed.export.inference_inputs import InferenceInput
    from trifed.export.locate import Columns

# Functions import what needs torch, so that --help need not wait for it.

Format = Literal["table", "csv", "jsonl"]
"""Form in which predictions are written."""
Form = Literal["tri-matrix", "lora", "lora-no-head", "merged"]
"""Form of an exported model."""


def predict_command(
    model: ModelFolder,
    file: Annotated[
        Path | None,
        typer.Argument(help="File of texts or images; '-' or nothing: standard input.", show_default=False),
    ] = None,
    client: Annotated[str | None, typer.Option(help="The client's name, if there are several.")] = None,
    text: Annotated[list[str] | None, typer.Option(help="A text, instead of a file; repeatable.")] = None,
    image: Annotated[list[str] | None, typer.Option(help="Path of an image; repeatable.")] = None,
    text_column: TextColumn = None,
    pair_column: PairColumn = None,
    image_column: ImageColumn = None,
    top: Annotated[int, typer.Option(min=1, help="Number of labels for each input.")] = 1,
    tokens: Tokens = 64,
    output: Annotated[
        Format | None,
        typer.Option("--format", help="Default: a table in a terminal, else csv, or by the ending of --out."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="A new file, written when everything is predicted.")] = None,
    base: Base = None,
) -> None:
    """Predict labels of new texts or images, or answer prompts.

    MODEL is a run with --client, or a folder that `trifed export` wrote. With a
    language model the texts are prompts. A model of images and captions chooses,
    for each image, one of the texts given with --text. A model that tags words
    reads lists of words, or texts with spaces between their words. A model of
    several labels predicts those with a probability over 0.5.

    Texts come from a file (CSV, JSON Lines, Parquet, Excel), from --text, or from
    standard input, one in a line. Images come from a file with embedded images or
    paths, a folder, --image, or paths on standard input. Columns have the names
    of the run's data unless flags name others.

    In csv, a text that begins with = + - @ or a tab gets a leading apostrophe:
    a spreadsheet would run it as a formula. jsonl has every text as it is.

    [bold]Examples[/bold]

      trifed predict runs/tickets --client berlin --text "where is my parcel?"
    \b
      trifed predict berlin new.csv --text-column message --out labels.csv
    \b
      cat messages.txt | trifed predict berlin --format jsonl --top 3
    \b
      trifed predict runs/plants --client north photos/ --top 3
    \b
      trifed predict runs/help --client north --text "How do I reset my password?"
    \b
      trifed predict runs/scans --client north --image scan.png --text "What is seen?"
    \b
      trifed predict runs/shop --client north photos/ --text "a red shoe" --text "a hat"
    """
    output = _format(output, out)
    from trifed.export.locate import locate_model

    located = locate_model(model, client)
    columns = located.columns.override(text_column, pair_column, image_column)
    if columns.matches and not text:
        raise DataError("--text: missing; this model chooses among texts, so give each one with --text")
    inputs, total = _inputs(file, None if columns.matches else text, image, columns)
    with quick_imports():  # torch, which a mistake in the inputs need not wait for
        from trifed.export import predict
    from trifed.reports import evaluations, progress_bar

    with progress_bar.waiting("reading the model"):
        loaded: Any = predict.load_located(kind(columns), located, base)
        chosen = loaded.among(text) if columns.matches else loaded
    compute = prediction(columns, top, tokens)
    printed = output != "table" and out is None and sys.stdout.isatty()
    with progress_bar.counting(f"{columns.kind}s", total, hidden=printed) as progress:
        results = _counted(compute(chosen, inputs), progress)
        if output != "table":
            _write(predict.write_csv if output == "csv" else predict.write_jsonl, results, out)
        elif columns.answers or columns.tags:
            render = evaluations.render_answers if columns.answers else evaluations.render_tags
            table = render(results)
        elif columns.target != "class":
            table = evaluations.render_targets(results)
        else:
            table = evaluations.render_predictions(results, top)
    if output == "table":
        PlainConsole().print(table)


def _write(write: Callable[[Iterable[Any], TextIO], None], results: Iterable[Any], out: Path | None) -> None:
    """Write results to standard output, or to a new file that appears when it is complete."""
    if out is None:
        write(results, sys.stdout)
        return
    try:
        with whole_file(out) as path, path.open("w", encoding="utf-8", newline="") as file:
            write(results, file)
    except OSError as error:
        raise RunError(f"{out}: cannot be written ({error.strerror or error}); give another --out") from error


def _format(output: Format | None, out: Path | None) -> Format:
    if out is None:
        return output or ("table" if sys.stdout.isatty() else "csv")
    if output == "table":
        raise ConfigError(["got table with --out; a table is for a terminal, so give csv or jsonl"], "--format")
    if out.exists() or out.is_symlink():
        raise RunError(f"{out}: the file exists already; give another --out, or remove it first")
    return output or ("jsonl" if out.suffix.lower() in (".jsonl", ".json") else "csv")


def _inputs(
    file: Path | None, text: list[str] | None, image: list[str] | None, columns: Columns
) -> tuple[Iterable[InferenceInput], int | None]:
    """Return the inputs and their number, which is None for standard input."""
    from trifed.export import inference_inputs

    from_file = file is not None and str(file) != "-"
    flag, values, other, unread = "--text", text, "--image", image
    if columns.image:
        flag, values, other, unread = other, unread, flag, values
    if columns.image and columns.answers:
        if file is None and text and image:
            return inference_inputs.image_prompts_from_flags(text, image, columns), len(text)
        if text or image or not from_file:
            raise DataError(
                f"this model reads an image with every prompt; give a file with the columns '{columns.image}' and "
                f"'{columns.text}', or both --image and --text"
            )
    elif unread:
        raise DataError(f"got {other}, but this model reads {columns.kind}s; give {flag} or a file")
    elif values and file is not None:
        raise DataError(f"got the file {file} and {flag}; give one of the two")
    if values:
        return inference_inputs.from_flags(values, columns), len(values)
    if file is not None and from_file:
        table = inference_inputs.read_table(file, columns)
        return table, len(table)
    if file is None and sys.stdin.isatty():
        raise DataError(
            f"no {columns.kind}s: give a file, {flag}, or lines on standard input ('-' to type them here)"
        )
    return inference_inputs.read_lines(sys.stdin.buffer, columns), None


def _counted(results: Iterable[Any], progress: Callable[[int], None]) -> Iterator[Any]:
    for result in results:
        progress(1)
        yield result


def evaluate_command(
    model: ModelFolder,
    file: Annotated[
        Path,
        typer.Argument(
            help="CSV, JSON Lines, Parquet or Excel with labels, or a folder of images.", show_default=False
        ),
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
    frequent confusions; with several labels F1 in several ways. A model of
    numbers gets R², errors and correlations. A language model gets perplexity,
    next-token accuracy, and exact match and ROUGE-L of its answers. A model of
    images and captions gets the share of captions that it finds for images, and
    of images for captions. A model that tags words gets word accuracy, loss, and
    precision, recall and F1 of whole entities. With --client all there is one row
    for each client.

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
    from trifed.export.inference_inputs import read_labelled
    from trifed.export.locate import locate_models

    models = locate_models(model, client)
    columns = models[0].columns.override(text_column, pair_column, image_column)
    columns = replace(columns, label=label_column or columns.label)
    data = read_labelled(file, columns)
    with quick_imports():  # torch, which a mistake in the file need not wait for
        from trifed.export.predict import load_located
    from trifed.reports import evaluations, progress_bar

    evaluate = evaluation(columns, tokens)
    with progress_bar.counting(f"{columns.kind}s", len(models) * len(data.inputs)) as progress:
        scores = [evaluate(one, load_located(kind(columns), one, base), data, progress=progress) for one in models]
    if output == "table":
        PlainConsole().print(evaluations.render_evaluations(scores))
    elif output == "json":
        typer.echo(
            json.dumps({"model": str(model), "file": str(file), **evaluations.evaluations_json(scores)}, indent=2)
        )
    else:
        typer.echo(evaluations.evaluations_csv(scores), nl=False)


def export_command(
    run: Annotated[Path, typer.Argument(help="A finished run's folder.", show_default=False)],
    form: Annotated[Form, typer.Option(help="Form of the model.")] = "lora",
    client: Annotated[str | None, typer.Option(help="The client's name.")] = None,
    every: Annotated[
        bool, typer.Option("--all", help="Export every client, each to a folder of its name.")
    ] = False,
    to: Annotated[
        Path | None, typer.Option(help="The new folder. Default: RUN/exports/FORM, with the client's name.")
    ] = None,
    base: Base = None,
    push_to_hub: Annotated[
        str | None,
        typer.Option(metavar="OWNER/NAME", help="Also upload the folder to a model hub.", show_default=False),
    ] = None,
    private: Annotated[
        bool, typer.Option("--private", help="With --push-to-hub: make a private repository.")
    ] = False,
) -> None:
    """Write a client's model as a new folder that works without this run.

    [bold]Forms[/bold]

    \b
      tri-matrix     the adapter as it was trained, W0 + s·B·C·A
      lora           plain PEFT LoRA, C folded into B; the head in its own file
      lora-no-head   plain PEFT LoRA without the head, for adapter servers
      merged         full weights for plain transformers; no base model needed

    Each folder has a README.md, which says where the model comes from and has
    Python code that loads it without trifed; on a hub it is the model card. An
    upload needs a login (hf auth login, or HF_TOKEN). To export a baseline's
    client, give RUN/baselines/METHOD as the run.

    [bold]Examples[/bold]

      trifed export runs/tickets --client berlin --form merged --to berlin
    \b
      trifed export runs/tickets --all --form lora
    \b
      trifed export runs/tickets --client berlin --push-to-hub my-team/berlin --private
    """
    from trifed.export.locate import join_names, open_run

    opened = open_run(run)
    if private and push_to_hub is None:
        raise RunError("--private: it makes the repository of --push-to-hub private; give OWNER/NAME there")
    if push_to_hub is not None:
        from trifed.export import hub

        hub.check_repository(push_to_hub)  # before the work
    if every == (client is not None):
        raise RunError(f"{run}: give either --client NAME or --all; the clients are {join_names(opened.names)}")
    if client is not None:
        opened.client(client)  # an unknown name need not wait for torch
    with quick_imports():
        from trifed.export.export import export_client, export_clients
    from trifed.reports.progress_bar import counting, waiting

    if client is not None:
        with waiting(f"exporting {client}"):
            written = export_client(run, client, form, to, base)
    else:
        with counting("exporting clients", len(opened.names)) as progress:
            written = export_clients(run, form, to, base, lambda done, *_: progress(1 if done else 0))
    PlainConsole().print(f"{written}: {form}; how to load it is in its README.md", soft_wrap=True)
    if push_to_hub is not None:
        address = hub.push_to_hub(written, push_to_hub, private)  # the hub's library shows the progress
        PlainConsole().print(f"Uploaded: {address}", soft_wrap=True)
