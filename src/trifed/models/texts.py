"""Texts for a model: from a table's columns, from lines, or given one by one; each with its place."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from trifed.data import columns as cells
from trifed.data.readers import RawTable, read_file
from trifed.errors import DataError
from trifed.models.find import Columns

_HALF_CHARACTER = re.compile(r"[\ud800-\udfff]")


class Asked(NamedTuple):
    """One text, perhaps with its second text. `row`: its 1-based row, or line, in what it came from."""

    row: int
    text: str
    pair: str | None = None


@dataclass(frozen=True)
class Labelled:
    """A labelled file. `asked` and `labels`: (n,) each; `where`, `unit`: how an error names a row of it."""

    where: str
    unit: str
    asked: list[Asked]
    labels: list[str]


def read_table(path: Path, columns: Columns) -> list[Asked]:
    """All texts of a CSV, JSON Lines or Parquet file.

    Raises:
        DataError: no such file or column, an empty text (by its row), no rows, and whatever cannot be read.
    """
    return _asked(_read(path, columns, {}), columns)


def read_labelled(path: Path, columns: Columns) -> Labelled:
    """The same with labels, integers as their digits.

    Raises:
        DataError: as `read_table` does; and a label that is missing or is none, by its row.
    """
    raw = _read(path, columns, {"--label-column": columns.label})
    labels = cells.read_labels(cells.cells([raw], columns.label), columns.label)
    return Labelled(raw.where, raw.unit, _asked(raw, columns), [str(label) for label in labels])


def read_lines(lines: Iterable[bytes], columns: Columns, where: str = "standard input") -> Iterator[Asked]:
    """One text a line, read as it comes.

    Raises:
        DataError: a line that is empty or not UTF-8, or a model that reads two texts.
    """
    _refuse_pairs(columns, where)
    for number, line in enumerate(lines, start=1):
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise DataError(
                f"{where}, line {number}: not UTF-8 at byte {error.start} of the line; expected UTF-8 text"
            ) from error
        yield Asked(number, _checked(text, f"{where}, line {number}"))


def given(texts: Sequence[str], columns: Columns) -> list[Asked]:
    """Texts as they were given.

    Raises:
        DataError: an empty text, or a model that reads two texts.
    """
    _refuse_pairs(columns, "--text")
    return [Asked(row, _checked(text, f"--text, number {row}")) for row, text in enumerate(texts, start=1)]


def split_pairs(asked: Sequence[Asked]) -> tuple[list[str], list[str] | None]:
    """Texts and second texts, (n,) each; None where no text has a second one."""
    pairs = [item.pair for item in asked if item.pair is not None]
    return [item.text for item in asked], pairs or None


def _read(path: Path, columns: Columns, more: dict[str, str]) -> RawTable:
    wanted = {"--text-column": columns.text, **more}
    if columns.pair is not None:
        wanted["--pair-column"] = columns.pair
    raw = read_file(path, wanted, columns.label)
    if not raw.rows:
        raise DataError(f"{path}: no rows; expected at least one text below the header")
    return raw


def _asked(raw: RawTable, columns: Columns) -> list[Asked]:
    texts = cells.read_texts(cells.cells([raw], columns.text), columns.text)
    if columns.pair is None:
        return [Asked(row, text) for row, text in zip(raw.rows, texts, strict=True)]
    pairs = cells.read_texts(cells.cells([raw], columns.pair), columns.pair)
    return [Asked(*item) for item in zip(raw.rows, texts, pairs, strict=True)]


def _refuse_pairs(columns: Columns, where: str) -> None:
    if columns.pair is not None:
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
