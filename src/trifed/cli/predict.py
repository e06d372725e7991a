"""`trifed predict`: a client's model on new text."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TextIO

import typer
from rich.console import Console

from trifed.cli.flags import Base, ImageColumn, ModelFolder, PairColumn, TextColumn, Tokens
from trifed.common.errors import ConfigError, DataError, RunError
from trifed.common.files import whole_file

if TYPE_CHECKING:
    from trifed.export.inference_inputs import InferenceInput
    from trifed.export.locate import Columns, LocatedModel


Format = Literal["table", "csv", "jsonl"]
"""Form in which predictions are written."""


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
    for each image, one of the texts given with --text.

    Texts come from a file (CSV, JSON Lines, Parquet), from --text, or from
    standard input, one in a line. Images come from a file with embedded images or
    paths, a folder, --image, or paths on standard input. Columns have the names
    of the run's data unless flags name others.

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
    # Imported late: --help should not wait for torch.
    from trifed.export import predict
    from trifed.export.locate import locate_model
    from trifed.reports import evaluations, progress_bar

    located = locate_model(model, client)
    columns = located.columns.override(text_column, pair_column, image_column)
    if columns.matches and not text:
        raise DataError("--text: missing; this model chooses among texts, so give each one with --text")
    inputs, total = _inputs(file, None if columns.matches else text, image, columns)
    with progress_bar.waiting("reading the model"):
        compute = _model(located, base, tokens, top, text or [])
    printed = output != "table" and out is None and sys.stdout.isatty()
    with progress_bar.counting(f"{columns.kind}s", total, hidden=printed) as progress:
        results = _counted(compute(inputs), progress)
        if output != "table":
            _write(predict.write_csv if output == "csv" else predict.write_jsonl, results, out)
        elif columns.answers:
            table = evaluations.render_answers(results)
        else:
            table = evaluations.render_predictions(results, top)
    if output == "table":
        Console().print(table)


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


def _model(
    located: LocatedModel, base: str | None, tokens: int, top: int, texts: list[str]
) -> Callable[[Iterable[InferenceInput]], Iterator[Any]]:
    """Load a model; return the function from inputs to its answers or predictions."""
    from trifed.export.generate import answer
    from trifed.export.predict import load_located, predict
    from trifed.federation.client_model import Classifier, Writer
    from trifed.federation.retrieval import RetrievalModel

    if located.columns.answers:
        return partial(answer, load_located(Writer, located, base), tokens=tokens)
    if located.columns.matches:
        classifier = load_located(RetrievalModel, located, base).among(texts)
    else:
        classifier = load_located(Classifier, located, base)
    return partial(predict, classifier, top=top)


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
