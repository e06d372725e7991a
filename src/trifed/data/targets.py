"""Labels that are no classes: a number for each row, or a list of labels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trifed.common.errors import DataError
from trifed.data.columns import WHOLE, Cell, is_blank, location, spelling

LabelList = tuple[str, ...]


def read_numbers(column: Sequence[Cell], name: str) -> list[float]:
    """Return a column's numbers, (n,), all finite. Texts that are plain numbers, as in CSV files, are read too.

    Raises:
        DataError: A cell is empty or no finite number.
    """
    return [_number(cell, name) for cell in column]


def _number(cell: Cell, name: str) -> float:
    value, expected = cell[2], "expected a number, such as 3 or 2.5"
    if is_blank(value):
        raise DataError(
            f"{location(cell)}: the number in column {name!r} is missing. Fill it in or remove the row."
        )
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise DataError(f"{location(cell)}: column {name!r} holds a {type(value).__name__}, {expected}.")
    try:
        number = float(str(value).replace("_", " "))  # Python reads 1_000 as a number
    except ValueError as error:
        comma = " Write decimals with a point." if "," in str(value) else ""
        raise DataError(f"{location(cell)}: column {name!r} holds {value!r:.60}, {expected}.{comma}") from error
    if not math.isfinite(number):
        raise DataError(f"{location(cell)}: column {name!r} holds {value!r:.60}, expected a finite number.")
    return number


def read_label_lists(column: Sequence[Cell], name: str, *, separator: str | None = None) -> list[LabelList]:
    """Return the labels of each row, (n,), without repetitions, in the order of the file.

    An empty list is a row without any label, and so is an empty text.

    Args:
        column: Lists of texts and whole numbers, or, with a separator, texts.
        name: The column.
        separator: What separates the labels in a text.

    Raises:
        DataError: A cell is missing, is neither a list nor a text, or has an element that is no label.
    """
    return [_label_list(cell, name, separator) for cell in column]


def _label_list(cell: Cell, name: str, separator: str | None) -> LabelList:
    value = cell[2]
    if value is None or value != value:  # NaN differs from itself
        raise DataError(
            f"{location(cell)}: the list of labels in column {name!r} is missing. Write an empty list for a row "
            "without labels, or remove the row."
        )
    if isinstance(value, str) and is_blank(value):
        return ()
    if isinstance(value, str) and separator is None:
        raise DataError(
            f"{location(cell)}: column {name!r} holds the text {value!r:.60}, expected a list of labels. If its "
            "labels are separated by a sign, set data.label_separator to it, such as ';'."
        )
    if isinstance(value, str):
        parts: list[Any] = [part for part in value.split(separator) if part.strip()]
    elif isinstance(value, list):
        parts = value
    else:
        raise DataError(
            f"{location(cell)}: column {name!r} holds a {type(value).__name__}, expected a list of labels."
        )
    names = cell[0].class_names.get(name)
    if names is not None:
        parts = [names[part] if isinstance(part, int) and 0 <= part < len(names) else part for part in parts]
    for part in parts:
        whole = isinstance(part, float) and part.is_integer()
        if is_blank(part) or not (whole or isinstance(part, str | int)):
            raise DataError(
                f"{location(cell)}: the list in column {name!r} holds {part!r:.60}, expected texts or whole "
                "numbers."
            )
    return tuple(dict.fromkeys(map(spelling, parts)))


def label_matrix(
    lists: Sequence[LabelList], names: Sequence[str] | None = None
) -> tuple[NDArray[np.bool_], list[str]]:
    """Return which labels each row has, (n, n_labels), and the names: sorted texts or whole numbers, or `names`.

    Raises:
        DataError: A label is not in `names`, `names` has one twice, or no row has a label.
    """
    found: set[str] = set().union(*lists)
    if names is None:
        numbers = all(map(WHOLE.fullmatch, found))
        names = sorted(found, key=lambda label: (int(label) if numbers else 0, label))
    if not names:
        raise DataError("data.label: no row has a label; expected rows with one or more. Name another column.")
    index = {spelling(name): place for place, name in enumerate(names)}
    if len(index) < len(names):
        raise DataError(f"data.labels: got one label twice in {', '.join(names)}; leave one out")
    unknown = sorted(found - set(index))
    if unknown:
        more = f" and {len(unknown) - 8} more" if len(unknown) > 8 else ""
        raise DataError(
            f"data.labels: got other labels, {', '.join(unknown[:8])}{more}; add them, or correct the rows"
        )
    matrix = np.zeros((len(lists), len(names)), bool)
    for row, labels in enumerate(lists):
        matrix[row, [index[label] for label in labels]] = True
    return matrix, list(names)
