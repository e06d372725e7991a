"""Convert raw cells to texts, labels and client names, with errors that name the row."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from trifed.common.errors import DataError
from trifed.data.readers import RawTable

Cell = tuple[RawTable, int, Any]
"""One cell: its table, its index in that table, its value."""

_WHOLE = re.compile(r"[+-]?\d+")
_DECIMAL = re.compile(r"[+-]?(\d+\.\d*|\.\d+)")
_HALF_CHARACTER = re.compile(r"[\ud800-\udfff]")
_LEADING_ZERO = re.compile(r"[+-]?0\d+")


def place(cell: Cell) -> str:
    """Return the location of a cell, such as "file, row 3"."""
    table, index, _ = cell
    return f"{table.where}, {table.unit} {table.rows[index]}"


def cells(tables: Sequence[RawTable], column: str) -> list[Cell]:
    """Return one column of all tables, in order."""
    return [(table, i, value) for table in tables for i, value in enumerate(table.columns[column])]


def _refuse(bad: Sequence[Cell], problem: str, way_out: str) -> None:
    if not bad:
        return
    others = f" ({len(bad)} such rows in all)" if len(bad) > 1 else ""
    raise DataError(f"{place(bad[0])}: {problem}{others}. {way_out}")


def _matching(column: Sequence[Cell], wrong: Callable[[Any], bool]) -> list[Cell]:
    return [cell for cell in column if wrong(cell[2])]


def read_texts(column: Sequence[Cell], name: str) -> list[str]:
    """Return a column's texts, (n,).

    Raises:
        DataError: A cell is no string, is blank, or holds a lone surrogate.
    """
    odd = _matching(column, lambda value: value is not None and not isinstance(value, str))
    if odd:
        kind = type(odd[0][2]).__name__
        _refuse(odd, f"column {name!r} holds a {kind} ({odd[0][2]!r:.60}), expected a text", "Name a text column.")
    empty = _matching(column, lambda value: value is None or not value.strip())
    _refuse(empty, f"the text in column {name!r} is empty", "Fill it in or remove the row.")
    broken = _matching(column, lambda value: _HALF_CHARACTER.search(value) is not None)
    _refuse(broken, f"the text in column {name!r} holds half a character (a lone surrogate)", "Write it again.")
    return [value for _, _, value in column]


def read_groups(column: Sequence[Cell], name: str) -> list[str]:
    """Return each row's client, (n,).

    Raises:
        DataError: A cell is empty, or neither a text nor a number.
    """
    empty = _matching(column, lambda value: value is None or not str(value).strip())
    _refuse(empty, f"the client column {name!r} is empty", "Fill it in or remove the row.")
    odd = _matching(column, lambda value: not isinstance(value, (str, int, float)))
    if odd:
        kind = type(odd[0][2]).__name__
        _refuse(odd, f"the client column {name!r} holds a {kind}, expected a text or a number", "Name another.")
    return [_group(value) for _, _, value in column]


def _group(value: str | int | float) -> str:
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip()


def read_labels(column: Sequence[Cell], name: str) -> list[str] | list[int]:
    """Return a column's labels, (n,), all integers or all strings.

    The integers of a ClassLabel column become names. Cells of a CSV file become integers if all of them are
    whole numbers.

    Raises:
        DataError: A label is missing, is a number that is not whole or another type, or integers and strings are
            mixed.
    """
    named = [(table, i, _by_name(table, value)) for table, i, value in column]
    missing = _matching(named, _is_missing)
    _refuse(missing, f"the label in column {name!r} is missing", "Give every row a label or remove the row.")
    typed = _type_csv_cells(named)
    broken = _matching(typed, lambda value: isinstance(value, float) and not value.is_integer())
    if broken:
        _refuse(
            broken,
            f"the label in column {name!r} is {broken[0][2]!r}, expected a whole number or a text",
            "A label names a class; another column may be the one that holds them.",
        )
    odd = _matching(typed, lambda value: not isinstance(value, (str, int, float)))
    if odd:
        kind = type(odd[0][2]).__name__
        _refuse(odd, f"column {name!r} holds a {kind}, expected a whole number or a text", "Name another column.")
    return _one_type(typed, name)


def _by_name(table: RawTable, value: Any) -> Any:
    if table.class_names is None or not isinstance(value, int):
        return value
    return table.class_names[value] if 0 <= value < len(table.class_names) else None


def _is_missing(value: Any) -> bool:
    if isinstance(value, float):
        return value != value
    return value is None or (isinstance(value, str) and not value.strip())


def _type_csv_cells(column: Sequence[Cell]) -> list[Cell]:
    """Convert CSV cells to numbers if all of them are numbers and none is a code such as 007."""
    texts = [value.strip() for table, _, value in column if table.untyped]
    numbers = all(
        (_WHOLE.fullmatch(text) and not _LEADING_ZERO.fullmatch(text)) or _DECIMAL.fullmatch(text)
        for text in texts
    )
    if not texts or not numbers:
        return list(column)
    return [
        (
            table,
            i,
            (int(value) if _WHOLE.fullmatch(value.strip()) else float(value)) if table.untyped else value,
        )
        for table, i, value in column
    ]


def _one_type(column: Sequence[Cell], name: str) -> list[str] | list[int]:
    texts = [cell for cell in column if isinstance(cell[2], str)]
    numbers = [cell for cell in column if not isinstance(cell[2], str)]
    if texts and numbers:
        raise DataError(
            f"column {name!r} mixes texts and numbers as labels: {texts[0][2]!r} in {place(texts[0])}, "
            f"{numbers[0][2]!r} in {place(numbers[0])}; expected one kind. Write all of them as texts, or all as "
            "integers."
        )
    if texts:
        return [value.strip() for _, _, value in column]
    return [int(value) for _, _, value in column]
