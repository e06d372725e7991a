"""`trifed predict`: a client's model on new text."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TextIO, TypeVar

import typer
from rich.console import Console

from trifed.common.errors import ConfigError, DataError, RunError

if TYPE_CHECKING:
    from trifed.export.inference_inputs import Asked
    from trifed.export.locate import Columns, LocatedModel
    from trifed.export.predict import Prediction

HELP = """Labels and probabilities of new texts or images, or answers to prompts.

The model: a run with --client, or a folder that `trifed export` wrote. Of a
language model the texts are prompts, and it answers. A model of images and
captions chooses for each image among the texts given with --text.

The texts: a file (CSV, JSON Lines, Parquet), --text, or standard input, one
text a line. The images: a file with embedded images or paths, a folder,
--image, or paths on standard input. Columns are those of the run unless named.

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


class Format(StrEnum):
    """How predictions are written."""

    TABLE = "table"
    CSV = "csv"
    JSONL = "jsonl"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("predict", help=HELP)(predict_command)


def predict_command(
    model: Annotated[Path, typer.Argument(help="A run's folder, or an exported one.", show_default=False)],
    file: Annotated[
        Path | None, typer.Argument(help="The texts; '-' or nothing: standard input.", show_default=False)
    ] = None,
    client: Annotated[str | None, typer.Option(help="Whose model, where there are several.")] = None,
    text: Annotated[list[str] | None, typer.Option(help="A text; repeatable, instead of a file.")] = None,
    image: Annotated[list[str] | None, typer.Option(help="An image's path; repeatable, too.")] = None,
    text_column: Annotated[str | None, typer.Option(help="Column of the text.")] = None,
    pair_column: Annotated[str | None, typer.Option(help="Column of a second text.")] = None,
    image_column: Annotated[str | None, typer.Option(help="Column of the image.")] = None,
    top: Annotated[int, typer.Option(min=1, help="How many labels for each text.")] = 1,
    tokens: Annotated[int, typer.Option(min=1, help="How long an answer of a language model may be.")] = 64,
    output: Annotated[
        Format | None,
        typer.Option("--format", help="Default: a table in a terminal, else csv, or by the ending of --out."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="A new file; it appears when all is predicted.")] = None,
    base: Annotated[str | None, typer.Option(help="Where the base model lies now, if it was moved.")] = None,
) -> None:
    """Labels and probabilities of new texts."""
    chosen = _format(output, out)
    # Imported late: --help should not wait for torch.
    from trifed.export.locate import locate_model, named
    from trifed.export.predict import load_located, load_located_retrieval_model, predict
    from trifed.reports.evaluations import render_predictions
    from trifed.reports.progress_bar import counting, waiting

    found = locate_model(model, client)
    columns = named(found.columns, text_column, pair_column, image_column)
    if columns.matches and not text:
        raise DataError("this model says which text fits an image; give the texts, each with --text")
    asked, total = _asked(file, None if columns.matches else text, image, columns)
    if columns.answers:
        _answer(found, asked, total, (chosen, out, tokens, base))
        return
    with waiting("reading the model"):
        classifier = (
            load_located_retrieval_model(found, base).among(text or [])
            if columns.matches
            else load_located(found, base)
        )
    printing = chosen is not Format.TABLE and out is None and sys.stdout.isatty()
    with counting(f"{columns.kind}s", total, hidden=printing) as told:
        predictions = _told(predict(classifier, asked, top), told)
        shown = render_predictions(predictions, top) if chosen is Format.TABLE else None
        if shown is None:
            _write(predictions, chosen, out, top)
    if shown is not None:
        Console().print(shown)


def _format(output: Format | None, out: Path | None) -> Format:
    if out is not None and output is Format.TABLE:
        raise ConfigError(["a table is for a terminal; give csv or jsonl with --out"], "--format")
    if out is not None and (out.exists() or out.is_symlink()):
        raise RunError(f"{out}: something is there already; give another --out, or remove it first")
    if output is not None:
        return output
    if out is not None:
        return Format.JSONL if out.suffix.lower() in (".jsonl", ".json") else Format.CSV
    return Format.TABLE if sys.stdout.isatty() else Format.CSV


def _asked(
    file: Path | None, text: list[str] | None, image: list[str] | None, columns: Columns
) -> tuple[Iterable[Asked], int | None]:
    """What is asked and how many that are, None where they come one by one."""
    from trifed.export.inference_inputs import given, read_lines, read_table

    if columns.image and columns.answers:
        return _about_images(file, text, image, columns)
    flag, values = "--image" if columns.image else "--text", image or text
    if values and (text if columns.image else image):
        other = "--text" if columns.image else "--image"
        raise DataError(f"got {other}, but this model reads {columns.kind}s; give {flag} or a file")
    if values and file is not None:
        raise DataError(f"got the file {file} and {flag}; give one of the two")
    if values:
        return given(values, columns), len(values)
    if file is not None and str(file) != "-":
        table = read_table(file, columns)
        return table, len(table)
    if file is None and sys.stdin.isatty():
        raise DataError(
            f"no {columns.kind}s: give a file, {flag}, or lines on standard input ('-' to type them here)"
        )
    return read_lines(sys.stdin.buffer, columns), None


def _about_images(
    file: Path | None, text: list[str] | None, image: list[str] | None, columns: Columns
) -> tuple[list[Asked], int]:
    """The same of a model that reads an image with every prompt."""
    from trifed.export.inference_inputs import given_both, read_table

    if file is not None and str(file) != "-" and not (text or image):
        table = read_table(file, columns)
        return table, len(table)
    if file is None and text and image:
        return given_both(text, image, columns), len(text)
    raise DataError(
        f"this model reads an image with every prompt; give a file with the columns '{columns.image}' and "
        f"'{columns.text}', or both --image and --text"
    )


def _answer(
    found: LocatedModel,
    asked: Iterable[Asked],
    total: int | None,
    how: tuple[Format, Path | None, int, str | None],
) -> None:
    """The same of a language model."""
    from trifed.export.generate import answer, load_located_writer, write_csv, write_jsonl
    from trifed.reports.evaluations import render_answers
    from trifed.reports.progress_bar import counting, waiting

    chosen, out, tokens, base = how
    with waiting("reading the model"):
        writer = load_located_writer(found, base)
    printing = chosen is not Format.TABLE and out is None and sys.stdout.isatty()
    with counting("prompts", total, hidden=printing) as told:
        answers = _told(answer(writer, asked, tokens), told)
        shown = render_answers(answers) if chosen is Format.TABLE else None
        if shown is None:
            _into(out, lambda file: (write_csv if chosen is Format.CSV else write_jsonl)(answers, file))
    if shown is not None:
        Console().print(shown)


Made = TypeVar("Made")


def _told(predictions: Iterable[Made], told: Callable[[int], None]) -> Iterator[Made]:
    for prediction in predictions:
        told(1)
        yield prediction


def _write(predictions: Iterator[Prediction], chosen: Format, out: Path | None, top: int) -> None:
    from trifed.export.predict import write_csv, write_jsonl

    _into(out, lambda target: (write_csv if chosen is Format.CSV else write_jsonl)(predictions, target, top))


def _into(out: Path | None, write: Callable[[TextIO], None]) -> None:
    """Write to a new file, which appears whole, or to standard output."""
    from trifed.common.files import whole_file

    if out is None:
        write(sys.stdout)
        return
    try:
        with whole_file(out) as partial, partial.open("w", encoding="utf-8", newline="") as target:
            write(target)
    except OSError as error:
        raise RunError(f"{out}: cannot be written ({error.strerror or error}); give another --out") from error
