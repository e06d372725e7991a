"""Inputs of a client's model, from tables, folders, lines or flags; each with its row for error messages."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from trifed.common.errors import DataError
from trifed.data import columns as cells
from trifed.data.images import image_folder, images_in, read_images, table_of
from trifed.data.readers import RawTable, TextFormat, read_file
from trifed.data.tags import check_lengths, read_tags, read_words, words_of
from trifed.data.targets import read_label_lists, read_numbers
from trifed.export.locate import Columns

Item = TypeVar("Item")
_SURROGATE = re.compile(r"[\ud800-\udfff]")


class InferenceInput(NamedTuple):
    """One input of a model.

    Attributes:
        row: 1-based row or line in its source.
        text: The text or prompt; of an image alone, its name; of a sentence, its words as a JSON list.
        pair: The second text, or the material of a prompt.
        image: The bytes of an image file.
        messages: A conversation as JSON, as `data.columns.read_conversations` returns it; `text` is then what the
            user said last before the answer.
    """

    row: int
    text: str
    pair: str | None = None
    image: bytes | None = None
    messages: str | None = None


@dataclass(frozen=True)
class LabelledInputs:
    """The rows of a labelled file.

    Attributes:
        where: Name of the file, for error messages.
        unit: The word for one of its rows in messages: "row" or "line".
        inputs: The inputs, (n,).
        labels: The labels, tuples of labels, numbers, answers, captions, or tags as JSON lists, (n,); empty for a
            file of plain texts.
    """

    where: str
    unit: str
    inputs: list[InferenceInput]
    labels: list[Any]


def read_table(path: Path, columns: Columns) -> list[InferenceInput]:
    """Read all texts or images of a CSV, JSON Lines, Parquet or Excel file, or of a folder of images.

    Raises:
        DataError: No such file or column, no rows, an unreadable file, or an empty text or broken image (with its
            row).
    """
    return _inputs(_read(path, columns, {}), columns)


def read_labelled(path: Path, columns: Columns) -> LabelledInputs:
    """Read inputs and labels; labels are spelled as in training (`data.columns.spelling`).

    Raises:
        DataError: As for `read_table`, or a missing or unusable label (with its row).
    """
    raw = _read(path, columns, {"--label-column": columns.label} if columns.label else {})
    if chats := _conversations(raw, columns, answered=True):
        answers = [cells.before_answer(json.loads(chat.messages or "[]"))[1] for chat in chats]
        return LabelledInputs(raw.where, raw.unit, chats, answers)
    column = cells.cells([raw], columns.label) if columns.label else []
    if columns.tags:
        inputs, tags = _inputs(raw, columns), read_tags(column, columns.label)
        check_lengths(column, [item.text for item in inputs], tags)
        return LabelledInputs(raw.where, raw.unit, inputs, tags)
    return LabelledInputs(raw.where, raw.unit, _inputs(raw, columns), _labels(column, columns))


def _labels(column: Sequence[cells.Cell], columns: Columns) -> list[Any]:
    if columns.answers:
        return cells.read_texts(column, columns.label)
    if columns.target == "number":
        return read_numbers(column, columns.label)
    if columns.target == "labels":
        return read_label_lists(column, columns.label, separator=columns.label_separator)
    return [str(label) for label in cells.read_labels(column, columns.label, fractions=True)]


def read_lines(
    lines: Iterable[bytes], columns: Columns, where: str = "standard input"
) -> Iterator[InferenceInput]:
    """Read one text, or one path of an image, from each line as it arrives.

    Raises:
        DataError: A line is empty or not UTF-8, an image does not exist, or the model reads two texts.
    """
    _refuse_pairs(columns, where)
    for number, line in enumerate(lines, start=1):
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise DataError(
                f"{where}, line {number}: not UTF-8 at byte {error.start} of the line; expected UTF-8 text"
            ) from error
        yield _input(number, text, columns, where, "line")


def from_flags(values: Sequence[str], columns: Columns) -> list[InferenceInput]:
    """Return texts, or the images at the given paths, as inputs.

    Raises:
        DataError: A text is empty, an image does not exist, or the model reads two texts.
    """
    flag = "--text" if columns.image is None else "--image"
    _refuse_pairs(columns, flag)
    return [_input(row, value, columns, flag, "number") for row, value in enumerate(values, start=1)]


def image_prompts_from_flags(
    prompts: Sequence[str], images: Sequence[str], columns: Columns
) -> list[InferenceInput]:
    """Return prompts with the images at the given paths: one image for each prompt, or one for all.

    Raises:
        DataError: The numbers of images and prompts do not fit, or as for `from_flags`.
    """
    if len(images) not in (1, len(prompts)):
        raise DataError(
            f"got {len(images)} images and {len(prompts)} texts; give one --image for each --text, or one for all"
        )
    loaded = from_flags(images, replace(columns, answers=False))
    return [
        item._replace(image=loaded[index % len(loaded)].image)
        for index, item in enumerate(from_flags(prompts, replace(columns, image=None)))
    ]


def by_role(inputs: Sequence[InferenceInput], *, prompts: bool = False) -> dict[str, list[Any]]:
    """Return inputs by role, (n,) each, as `trifed.data.Examples` holds them.

    Args:
        inputs: All with images or all without; the same for pairs.
        prompts: True for a language model: "prompt", "input", and perhaps "image" or "messages". Otherwise "image"
            alone, or "text" and perhaps "text_pair".
    """
    texts = [item.text for item in inputs]
    images = [item.image for item in inputs if item.image is not None]
    if prompts:
        roles = {"prompt": texts, "input": [item.pair or "" for item in inputs]}
        chats = [item.messages for item in inputs if item.messages is not None]
        return {**roles, **({"image": images} if images else {}), **({"messages": chats} if chats else {})}
    if images:
        return {"image": images}
    pairs = [item.pair for item in inputs if item.pair is not None]
    return {"text": texts, **({"text_pair": pairs} if pairs else {})}


def chunks(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Yield the items in order in lists of at most `size`, each as soon as its items are known."""
    waiting = iter(items)
    while chunk := list(islice(waiting, size)):
        yield chunk


def _read(path: Path, columns: Columns, label: dict[str, str]) -> RawTable:
    if path.is_dir() and columns.image is not None and not columns.answers:
        return _image_folder(path, columns, labelled=bool(label))
    wanted = {
        "--image-column": columns.image,
        "--text-column": columns.text if columns.image is None or columns.answers else None,
        **label,
        "--pair-column": columns.pair,
    }
    form = TextFormat(columns.separator, otherwise=columns.encoding, sheet=columns.sheet)
    raw = read_file(path, {flag: name for flag, name in wanted.items() if name is not None}, form)
    if not raw.rows:
        raise DataError(f"{path}: no rows; expected at least one {columns.kind} below the header")
    return raw


def _image_folder(path: Path, columns: Columns, *, labelled: bool) -> RawTable:
    """Read a folder of images: with labels one subfolder for each, without labels the images alone."""
    files = image_folder(path) or ([] if labelled else images_in(path))
    if not files:
        expected = "one subfolder a label with images in it" if labelled else "images in it, or in its subfolders"
        raise DataError(f"{path}: no images; expected {expected}")
    return table_of(path, files, {"data.image": columns.image or "image", "data.label": columns.label})


def _conversations(raw: RawTable, columns: Columns, *, answered: bool) -> list[InferenceInput]:
    """Return the conversations of a column; none if it has texts, or another column has the answers."""
    column = cells.cells([raw], columns.text) if columns.chats and not columns.label else []
    if not cells.are_conversations(column):
        return []
    chats = cells.read_conversations(column, columns.text, answered=answered)
    return [
        InferenceInput(row, _question(json.loads(chat)), messages=chat)
        for row, chat in zip(raw.rows, chats, strict=True)
    ]


def _question(messages: list[dict[str, str]]) -> str:
    asked, _ = cells.before_answer(messages)
    return next((message["content"] for message in reversed(asked) if message["role"] == "user"), "")


def _inputs(raw: RawTable, columns: Columns) -> list[InferenceInput]:
    if chats := _conversations(raw, columns, answered=False):
        return chats
    loaded = list(_images(raw, columns.image)) if columns.image is not None else []
    if loaded and not columns.answers:
        return loaded
    read = read_words if columns.tags else cells.read_texts
    texts = read(cells.cells([raw], columns.text), columns.text)
    read_pairs = cells.read_optional_texts if columns.answers else cells.read_texts
    pairs = (
        [None] * len(texts) if columns.pair is None else read_pairs(cells.cells([raw], columns.pair), columns.pair)
    )
    images = [item.image for item in loaded] or [None] * len(texts)
    return [InferenceInput(*item) for item in zip(raw.rows, texts, pairs, images, strict=True)]


def _images(raw: RawTable, column: str) -> Iterator[InferenceInput]:
    read = read_images(cells.cells([raw], column), column)
    for row, cell, image in zip(raw.rows, raw.columns[column], read, strict=True):
        if isinstance(image, cells.Unusable):
            raise DataError(f"{image.location}: {image.reason}. Replace the image, or leave the row out.")
        path = cell.get("path") if isinstance(cell, Mapping) else cell
        yield InferenceInput(row, str(path) if isinstance(path, str | Path) else f"{raw.unit} {row}", None, image)


def _input(row: int, text: str, columns: Columns, where: str, unit: str) -> InferenceInput:
    if not text.strip():
        raise DataError(f"{where}, {unit} {row}: the text is empty; expected a text")
    if _SURROGATE.search(text):
        raise DataError(f"{where}, {unit} {row}: the text is not UTF-8; expected UTF-8 text")
    if columns.tags:
        return InferenceInput(row, words_of(text))
    if columns.image is None:
        return InferenceInput(row, text)
    # A path is relative to the folder in which the command is given.
    table = RawTable(where, {columns.image: [str(Path.cwd() / text)]}, [row])
    return next(_images(table, columns.image))._replace(text=text)


def _refuse_pairs(columns: Columns, where: str) -> None:
    if columns.pair is not None and not columns.answers:
        raise DataError(
            f"{where}: got one text each, but this model reads two, '{columns.text}' and '{columns.pair}'; give a "
            f"file that has both as columns"
        )
