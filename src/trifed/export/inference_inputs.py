"""What a model is asked: texts or images, from a table's columns, lines, or one by one; each with its place."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from trifed.common.errors import DataError
from trifed.data import columns as cells
from trifed.data.images import image_folder, images_in, read_images, table_of
from trifed.data.instructions import read_maybe
from trifed.data.readers import RawTable, read_file
from trifed.data.roles import Unusable
from trifed.export.locate import Columns

_HALF_CHARACTER = re.compile(r"[\ud800-\udfff]")


class Asked(NamedTuple):
    """One text, perhaps with its second text or its image; or one image, whose name is then the text.

    `row`: its 1-based row, or line, in what it came from; `image`: the bytes of its file.
    """

    row: int
    text: str
    pair: str | None = None
    image: bytes | None = None


@dataclass(frozen=True)
class Labelled:
    """A labelled file.

    `asked` and `labels`: (n,) each, the latter answers where a model answers, or none of a file of texts; `where`,
    `unit`: how an error names a row of it.
    """

    where: str
    unit: str
    asked: list[Asked]
    labels: list[str]


def read_table(path: Path, columns: Columns) -> list[Asked]:
    """All texts or images of a CSV, JSON Lines or Parquet file, or of a folder of images.

    Raises:
        DataError: no such file or column, an empty text or broken image (by its row), no rows, and whatever cannot
            be read.
    """
    return _asked(_read(path, columns, {}), columns)


def read_labelled(path: Path, columns: Columns) -> Labelled:
    """The same with labels, integers as their digits.

    Raises:
        DataError: as `read_table` does; and a label that is missing or is none, by its row.
    """
    if columns.answers:
        return _with_answers(path, columns)
    raw = _read(path, columns, {"--label-column": columns.label})
    labels = cells.read_labels(cells.cells([raw], columns.label), columns.label)
    return Labelled(raw.where, raw.unit, _asked(raw, columns), [str(label) for label in labels])


def _with_answers(path: Path, columns: Columns) -> Labelled:
    """Prompts and their answers; of a model that was trained on texts, texts alone."""
    raw = _read(path, columns, {"--label-column": columns.label} if columns.label else {})
    column = cells.cells([raw], columns.label) if columns.label else []
    return Labelled(raw.where, raw.unit, _asked(raw, columns), cells.read_texts(column, columns.label))


def read_lines(lines: Iterable[bytes], columns: Columns, where: str = "standard input") -> Iterator[Asked]:
    """One text, or path of an image, a line, read as it comes.

    Raises:
        DataError: a line that is empty or not UTF-8, no image there, or a model that reads two texts.
    """
    _refuse_pairs(columns, where)
    for number, line in enumerate(lines, start=1):
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise DataError(
                f"{where}, line {number}: not UTF-8 at byte {error.start} of the line; expected UTF-8 text"
            ) from error
        yield _one(number, _checked(text, f"{where}, line {number}"), columns, where)


def given(texts: Sequence[str], columns: Columns) -> list[Asked]:
    """Texts, or paths of images, as they were given.

    Raises:
        DataError: an empty text, no image there, or a model that reads two texts.
    """
    flag = "--text" if columns.image is None else "--image"
    _refuse_pairs(columns, flag)
    return [
        _one(row, _checked(text, f"{flag}, number {row}"), columns, flag)
        for row, text in enumerate(texts, start=1)
    ]


def given_both(texts: Sequence[str], images: Sequence[str], columns: Columns) -> list[Asked]:
    """Prompts and the paths of their images, as they were given: one image each, or one for all.

    Raises:
        DataError: another number of images, and as `given` does.
    """
    if len(images) not in (1, len(texts)):
        raise DataError(
            f"got {len(images)} images and {len(texts)} texts; give one --image for each --text, or one"
        )
    seen = given(images, replace(columns, answers=False))
    prompts = given(texts, replace(columns, image=None))
    return [asked._replace(image=seen[place % len(seen)].image) for place, asked in enumerate(prompts)]


def split_inputs(asked: Sequence[Asked]) -> dict[str, list[Any]]:
    """What is asked, by role: "image", or "text" and perhaps "text_pair"; (n,) each."""
    images = [item.image for item in asked if item.image is not None]
    if images:
        return {"image": images}
    pairs = [item.pair for item in asked if item.pair is not None]
    return {"text": [item.text for item in asked], **({"text_pair": pairs} if pairs else {})}


def asked_of(asked: Sequence[Asked]) -> dict[str, list[Any]]:
    """What a model that answers is asked, by role: "prompt", "input", and maybe "image"; (n,) each."""
    images = [item.image for item in asked if item.image is not None]
    found: dict[str, list[Any]] = {
        "prompt": [item.text for item in asked],
        "input": [item.pair or "" for item in asked],
    }
    return {**found, **({"image": images} if images else {})}


def _read(path: Path, columns: Columns, more: dict[str, str]) -> RawTable:
    if path.is_dir() and columns.image is not None and not columns.answers:
        return _folder(path, columns, labelled=bool(more))
    wanted = {"--image-column": columns.image} if columns.image is not None else {}
    if columns.image is None or columns.answers:
        wanted["--text-column"] = columns.text
    wanted |= more
    if columns.pair is not None:
        wanted["--pair-column"] = columns.pair
    raw = read_file(path, wanted, columns.label)
    if not raw.rows:
        raise DataError(f"{path}: no rows; expected at least one {columns.kind} below the header")
    return raw


def _folder(path: Path, columns: Columns, *, labelled: bool) -> RawTable:
    """A folder of images: with one subfolder a label, or, where no labels are wanted, images alone."""
    files = image_folder(path) or ([] if labelled else images_in(path))
    if not files:
        expected = "one subfolder a label with images in it" if labelled else "images in it, or in its subfolders"
        raise DataError(f"{path}: no images; expected {expected}")
    image = columns.image or "image"
    return table_of(path, files, {"data.image": image, "data.label": columns.label})


def _asked(raw: RawTable, columns: Columns) -> list[Asked]:
    images = list(_images(raw, columns.image)) if columns.image is not None else []
    if images and not columns.answers:
        return images
    texts = cells.read_texts(cells.cells([raw], columns.text), columns.text)
    read_pairs = read_maybe if columns.answers else cells.read_texts
    column = columns.pair
    pairs = [None] * len(texts) if column is None else read_pairs(cells.cells([raw], column), column)
    seen = [item.image for item in images] or [None] * len(texts)
    return [Asked(*item) for item in zip(raw.rows, texts, pairs, seen, strict=True)]


def _images(raw: RawTable, column: str) -> Iterator[Asked]:
    read = read_images(cells.cells([raw], column), column)
    for row, cell, image in zip(raw.rows, raw.columns[column], read, strict=True):
        if isinstance(image, Unusable):
            raise DataError(f"{image.place}: {image.reason}. Mend it, or leave it out.")
        named = cell.get("path") if isinstance(cell, Mapping) else cell
        yield Asked(row, str(named) if isinstance(named, str | Path) else f"{raw.unit} {row}", None, image)


def _one(row: int, text: str, columns: Columns, where: str) -> Asked:
    if columns.image is None:
        return Asked(row, text)
    # A path is one from where the command is given.
    only = RawTable(where, {columns.image: [str(Path.cwd() / text)]}, [row])
    return next(_images(only, columns.image))._replace(text=text)


def _refuse_pairs(columns: Columns, where: str) -> None:
    if columns.pair is not None and not columns.answers:
        raise DataError(
            f"{where}: got one text each, but this model reads two, '{columns.text}' and '{columns.pair}'; give a "
            f"file that has both as columns"
        )


def _checked(text: str, where: str) -> str:
    if not text.strip():
        raise DataError(f"{where}: the text is empty; expected one that is not")
    if _HALF_CHARACTER.search(text):
        raise DataError(f"{where}: the text is not UTF-8; write it again as UTF-8")
    return text
