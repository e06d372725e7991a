"""Text of others, such as labels, names and error texts, for the place that it is written into."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping

from trifed.common.errors import one_line

CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters and marks that reorder text; escape sequences begin with one. Halves of
surrogate pairs too, which no file can hold. Not the newline and the tab."""
FORMULA = re.compile("[=+\\-@\t\r\n]")
"""First characters of a cell that a spreadsheet reads as a formula."""


def printable(text: str) -> str:
    """Return a text without control characters other than newlines and tabs."""
    return CONTROLS.sub("", text)


def markdown_text(text: str) -> str:
    """Escape what Markdown or HTML would interpret, and put the text on one line."""
    line = one_line(text, sys.maxsize)
    escaped = "".join(f"\\{letter}" if letter in "\\`*_[]<>|#" else letter for letter in line)
    return " ".join(escaped.replace("&", "&amp;").split())


def markdown_code(text: str) -> str:
    """Return a text as a code span of a Markdown table."""
    return f"`{' '.join(one_line(text, sys.maxsize).replace('`', chr(39)).replace('|', chr(92) + '|').split())}`"


def csv_row(row: Mapping[str, object]) -> dict[str, object]:
    """Return a row whose texts no spreadsheet takes for formulas: those get a leading apostrophe."""
    return {name: _csv_cell(cell) if isinstance(cell, str) else cell for name, cell in row.items()}


def _csv_cell(text: str) -> str:
    text = re.sub("\r(?!\n)", "\n", text)  # csv writes a lone \r without quotes, and a row would end there
    return f"'{text}" if FORMULA.match(text) else text
