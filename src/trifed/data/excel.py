"""Read a sheet of an Excel file, through openpyxl of the extra `excel`."""

from __future__ import annotations

import warnings
import zipfile
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import ParseError

from trifed.common.errors import DataError, nearest


@dataclass(frozen=True)
class CellError:
    """A cell that shows an error instead of a value, such as #N/A."""

    shown: str


def read_sheet(path: Path, name: str | None, *, or_first: bool = False) -> tuple[list[str], dict[int, list[Any]]]:
    """Return a sheet's header, and its rows of as many cells by the numbers that Excel shows beside them.

    A cell is a text, a number, a truth value, a date or a `CellError`. An empty one is an empty text, as in a CSV
    file. A formula has the value that was stored with it. The header is the first row that is not empty; later
    rows that are empty are left out.

    Args:
        path: The file.
        name: Name of the sheet; None for the first that is not hidden.
        or_first: Take the first sheet if there is none of this name.

    Raises:
        DataError: openpyxl is not installed, the file is no Excel file, or it has no such sheet.
    """
    if find_spec("openpyxl") is None:
        raise DataError(
            f"{path}: to read Excel files, install the extra: pip install '.[excel]' in your copy of trifed's "
            "repository"
        )
    import openpyxl

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about formats and lists of choices, which do not matter here
            book = openpyxl.load_workbook(path, read_only=True, data_only=True)
            try:
                rows = _rows(_sheet(path, book, name, or_first))
            finally:
                book.close()
    except (OSError, KeyError, ValueError, TypeError, zipfile.BadZipFile, ParseError) as error:
        raise DataError(
            f"{path}: not a readable Excel file ({error}). Save it again as .xlsx, without a password."
        ) from error
    if not rows:
        return [], {}
    first = next(iter(rows))
    header = ["" if isinstance(cell, CellError) else str(cell) for cell in rows.pop(first)]
    width = len(header)
    return header, {number: [*cells, *[""] * (width - len(cells))] for number, cells in rows.items()}


def _sheet(path: Path, book: Any, name: str | None, or_first: bool) -> Any:
    sheets = {sheet.title: sheet for sheet in book.worksheets}
    if name in sheets:
        return sheets[name]
    if name is not None and not or_first:
        raise DataError(
            f"{path}: no sheet {name!r}; the sheets are {', '.join(map(repr, sheets)) or '(none)'}"
            f"{nearest(name, sheets)}. Set data.sheet to the right one."
        )
    shown = [sheet for sheet in sheets.values() if sheet.sheet_state == "visible"] or list(sheets.values())
    if not shown:
        raise DataError(f"{path}: the file has no sheet of cells; expected a header row and one row per example.")
    return shown[0]


def _rows(sheet: Any) -> dict[int, list[Any]]:
    sheet.reset_dimensions()  # some programs write a wrong size into the file, by which rows would be lost
    rows = {number: list(map(_value, row)) for number, row in enumerate(sheet.iter_rows(), start=1)}
    return {number: cells for number, cells in rows.items() if any(cell != "" for cell in cells)}


def _value(cell: Any) -> Any:
    if cell.value is None:
        return ""
    return CellError(str(cell.value)) if cell.data_type == "e" else cell.value
