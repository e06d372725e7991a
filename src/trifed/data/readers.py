"""Readers of CSV, TSV, JSON Lines, Parquet and Excel files, with errors that name the broken line.

Files are read directly, without a cache on the disk.
"""

from __future__ import annotations

import codecs
import csv
import difflib
import io
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trifed.common.errors import DataError
from trifed.data.conll import conll_columns
from trifed.data.excel import CellError, read_sheet

if TYPE_CHECKING:
    import pyarrow as pa


SEPARATORS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}
"""Separators of cells that are recognised in a header, the first that fits."""
GUESSES = ("cp1252", "latin-1")
"""Encodings that a message proposes for a file that is not UTF-8, the first that can be read."""
FLAGS = {
    "data.text": "--text",
    "data.text_pair": "--text-pair",
    "data.image": "--image",
    "data.prompt": "--prompt",
    "data.answer": "--answer",
    "data.label": "--label",
    "data.clients.column": "--column",
}
"""Flag of `trifed run` by the setting of a column that it sets."""
BINARY = {
    b"PK\x03\x04": "an Excel or ZIP file",
    b"\xd0\xcf\x11\xe0": "an old Excel file",
    b"\x1f\x8b": "a gzip file",
    b"PAR1": "a Parquet file",
}
"""Kinds of files that are no text, by their first bytes."""


@dataclass(frozen=True)
class TextFormat:
    """Separator and encoding of a CSV or JSON file, and sheet of an Excel file.

    Attributes:
        separator: Separator of the cells of a CSV file; None for the one by which the header has the columns.
        encoding: None for UTF-8, or UTF-16 with a byte order mark.
        setting: Dotted name of the setting of the encoding, for messages; empty if there is none.
        otherwise: The encoding of a file that is not UTF-8, if one is known.
        sheet: Name of an Excel file's sheet; None for the first. Without `setting`, a file that has no such sheet
            is read from its first.
    """

    separator: str | None = None
    encoding: str | None = None
    setting: str = ""
    otherwise: str | None = None
    sheet: str | None = None


@dataclass(frozen=True)
class RawTable:
    """The needed columns of one file, without conversion.

    Attributes:
        where: The file.
        columns: Cells by column name, (n,) each.
        rows: 1-based positions, (n,): data rows in CSV (without the header) and Parquet, lines in JSON, a sheet's
            own row numbers in Excel.
        unit: Name of a position in messages.
        class_names: Names of the integers in ClassLabel columns, by column.
        untyped: True if all cells are strings because the format has no types (CSV).
        client: The client whose rows these are, if a folder names it.
    """

    where: str
    columns: Mapping[str, Sequence[Any]]
    rows: Sequence[int]
    unit: str = "row"
    class_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    untyped: bool = False
    client: str = ""


def read_file(path: Path, wanted: Mapping[str, str], form: TextFormat = TextFormat()) -> RawTable:
    """Read columns of one CSV, TSV, JSON Lines, Parquet or Excel file.

    Args:
        path: The file.
        wanted: Column by the dotted name of the setting that names it.
        form: How a text file is written.

    Raises:
        DataError: A missing file, an unknown ending, a missing column, or content that cannot be read.
    """
    if path.is_dir():
        raise DataError(
            f"{path}: this is a folder, expected a table. Name a CSV, JSON Lines, Parquet or Excel file in it."
        )
    if not path.is_file():
        raise DataError(f"{path}: no such file (expected a table; looked in {Path.cwd()}). Check its name.")
    read = READERS.get(path.suffix.lower())
    if read is None:
        raise DataError(
            f"{path}: unknown ending {path.suffix or '(none)'!r}; expected one of {', '.join(READERS)}. "
            "Save the table as one of these, for example as .csv or .xlsx."
        )
    return read(path, wanted, form)


def check_columns(where: str, have: Sequence[str], wanted: Mapping[str, str]) -> None:
    """Raise `DataError` for the first wanted column that is not in `have`, with the most similar name."""
    missing = {setting: column for setting, column in wanted.items() if column not in have}
    for setting, column in missing.items():
        names = {name.lower(): name for name in reversed(have)}
        near = difflib.get_close_matches(column.lower(), names, n=1, cutoff=0.6)
        guess = f" Did you mean {names[near[0]]!r}?" if near else ""
        flag = f" ({FLAGS[setting]} of `trifed run`)" if setting in FLAGS else ""
        raise DataError(
            f"{where}: no column {column!r}; the columns are {', '.join(map(repr, have)) or '(none)'}.{guess} "
            f"Set {setting}{flag} to the right one."
        )


def _decode(path: Path, form: TextFormat) -> str:
    """Return the file's text without a byte order mark.

    Raises:
        DataError: The file cannot be read, or is not in its encoding.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}). Check its permissions.") from error
    two_bytes = raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    encoding = form.encoding or ("utf-16" if two_bytes else "utf-8-sig")
    try:
        return raw.decode(encoding).removeprefix("\ufeff")
    except UnicodeError as error:
        if kind := next((kind for start, kind in BINARY.items() if raw.startswith(start)), None):
            raise DataError(
                f"{path}: this is {kind}, expected a text file. Unpack or export it, or give it its own ending."
            ) from error
        if form.otherwise and not form.encoding:
            return _decode(path, TextFormat(form.separator, form.otherwise))
        place = error.start if isinstance(error, UnicodeDecodeError) else 0
        line = raw.count(b"\n", 0, place) + 1
        name = form.encoding or ("UTF-16" if two_bytes else "UTF-8")
        guess = next((guess for guess in GUESSES if _can_decode(raw, guess)), GUESSES[-1])
        remedy = f"Set {form.setting} to its encoding, such as '{guess}', or save" if form.setting else "Save"
        raise DataError(
            f"{path}: not {name} at byte {place} (line {line}, byte value 0x{raw[place]:02x}); expected {name} "
            f"text. {remedy} the file again as UTF-8."
        ) from error


def _can_decode(raw: bytes, encoding: str) -> bool:
    try:
        raw.decode(encoding)
    except UnicodeError:
        return False
    return True


def _separator(path: Path, text: str, wanted: Mapping[str, str]) -> str:
    """Return the separator by which the header has the wanted columns, or else the most columns."""
    order = (
        sorted(SEPARATORS, key=lambda mark: mark != "\t") if path.suffix.lower() == ".tsv" else list(SEPARATORS)
    )
    headers = {mark: _header(text, mark) for mark in order}
    fits = [mark for mark, header in headers.items() if set(wanted.values()) <= set(header)]
    return fits[0] if fits else max(order, key=lambda mark: len(headers[mark]))


def _header(text: str, separator: str) -> list[str]:
    try:
        return next(csv.reader(io.StringIO(text, newline=""), delimiter=separator), [])
    except csv.Error:  # it is found and named when the file is read
        return []


def _read_csv(path: Path, wanted: Mapping[str, str], form: TextFormat) -> RawTable:
    text = _decode(path, form)
    separator = form.separator or _separator(path, text, wanted)
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=separator)
    limit = csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # cells of any length
    try:
        header = next(reader, [])
        _check_header(path, header, wanted)
        records = [record for record in reader if record]
    except csv.Error as error:
        raise DataError(
            f"{path}, line {reader.line_num}: not well-formed CSV ({error}). Check the quotes around that line."
        ) from error
    finally:
        csv.field_size_limit(limit)
    for row, record in enumerate(records, start=1):
        if len(record) != len(header):
            raise DataError(
                f"{path}, row {row}: got {len(record)} cells, expected {len(header)} as in the header. "
                f"Put quotes around a text that holds a {SEPARATORS.get(separator, repr(separator))}."
            )
    columns = {column: [record[header.index(column)] for record in records] for column in wanted.values()}
    return RawTable(str(path), columns, range(1, len(records) + 1), untyped=True)


def _check_header(path: Path, header: Sequence[str], wanted: Mapping[str, str]) -> None:
    if not header:
        raise DataError(f"{path}: the file is empty; expected a header line and one row per example.")
    check_columns(str(path), header, wanted)
    twice = sorted({name for name in header if header.count(name) > 1} & set(wanted.values()))
    if twice:
        raise DataError(f"{path}: the column {twice[0]!r} is in the header twice. Rename one of the two.")


def _read_json(path: Path, wanted: Mapping[str, str], form: TextFormat) -> RawTable:
    text = _decode(path, form)
    if text.lstrip().startswith("["):  # one array of all rows, as many data sets of conversations are
        rows = dict(enumerate(_parse_json(path, 1, text), start=1))
        return _of_objects(path, rows, wanted, "item")
    lines = enumerate(io.StringIO(text), start=1)
    return _of_objects(
        path, {number: _parse_json(path, number, line) for number, line in lines if line.strip()}, wanted, "line"
    )


def _of_objects(path: Path, rows: Mapping[int, Any], wanted: Mapping[str, str], unit: str) -> RawTable:
    for number, row in rows.items():
        if not isinstance(row, dict):
            raise DataError(
                f"{path}, {unit} {number}: got a JSON {type(row).__name__}, expected one object a row, such as "
                '{"text": "...", "label": "..."}; write one object a line, or one array of objects.'
            )
    if rows:
        check_columns(str(path), list(dict.fromkeys(key for row in rows.values() for key in row)), wanted)
    columns = {column: [row.get(column) for row in rows.values()] for column in wanted.values()}
    return RawTable(str(path), columns, list(rows), unit=unit)


def _parse_json(path: Path, line: int, text: str) -> Any:
    """Parse a text that begins in the given line of a file."""
    try:
        return json.loads(text.rstrip())
    except (json.JSONDecodeError, RecursionError) as error:
        reason, row, at = "nested too deeply", line, 0
        if isinstance(error, json.JSONDecodeError):
            reason, row, at = error.msg, line + error.lineno - 1, error.pos
        shown = text.strip()[:60] if "\n" not in text.strip() else text[max(0, at - 30) : at + 30]
        raise DataError(
            f"{path}:{row}: malformed JSON ({reason}) in {shown!r}; expected one JSON object a line, or one array "
            "of objects."
        ) from error


def _read_parquet(path: Path, wanted: Mapping[str, str], form: TextFormat) -> RawTable:
    import pyarrow as pa  # here, because a CSV file need not wait for it
    import pyarrow.parquet as pq

    try:
        schema = pq.read_schema(path)
        check_columns(str(path), schema.names, wanted)
        table = pq.ParquetFile(path).read(columns=list(dict.fromkeys(wanted.values())))
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a readable Parquet file ({error}). Write it again.") from error
    return from_arrow(str(path), table, wanted, schema.metadata)


def _read_excel(path: Path, wanted: Mapping[str, str], form: TextFormat) -> RawTable:
    header, rows = read_sheet(path, form.sheet, or_first=not form.setting)
    _check_header(path, header, wanted)
    columns = {column: [cells[header.index(column)] for cells in rows.values()] for column in wanted.values()}
    for column, cells in columns.items():
        for number, cell in zip(rows, cells, strict=True):
            if isinstance(cell, CellError):
                raise DataError(
                    f"{path}, sheet row {number}: column {column!r} shows the error {cell.shown}. Correct the "
                    "formula or remove the row."
                )
    return RawTable(str(path), columns, list(rows), unit="sheet row")


def from_arrow(
    where: str, table: pa.Table, wanted: Mapping[str, str], metadata: Mapping[bytes, bytes] | None
) -> RawTable:
    """Convert an Arrow table to plain Python cells; raises `DataError` for a missing column.

    `metadata` are those of the schema, in which `datasets` stores the names of ClassLabel columns.
    """
    check_columns(where, table.column_names, wanted)
    columns = {column: table.column(column).to_pylist() for column in wanted.values()}
    return RawTable(where, columns, range(1, table.num_rows + 1), class_names=_class_names(metadata))


def _class_names(metadata: Mapping[bytes, bytes] | None) -> dict[str, tuple[str, ...]]:
    """Return the ClassLabel names that `datasets` stores in a Parquet file's schema, by column."""
    try:
        features = json.loads((metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
        found = {column: _of_lists(feature) for column, feature in features.items()}
        return {
            column: tuple(map(str, feature["names"]))
            for column, feature in found.items()
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
        }
    except (AttributeError, KeyError, TypeError, ValueError):
        return {}


def _of_lists(feature: Any) -> Any:
    """Return what the lists of a column hold, and the feature itself of a column without lists."""
    if isinstance(feature, list) and len(feature) == 1:
        return feature[0]
    lists = isinstance(feature, dict) and feature.get("_type") in ("List", "LargeList", "Sequence")
    return feature.get("feature") if lists else feature


def _read_conll(path: Path, wanted: Mapping[str, str], form: TextFormat) -> RawTable:
    columns, lines = conll_columns(path, _decode(path, form), wanted)
    return RawTable(str(path), columns, lines, unit="line")


READERS = {
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".jsonl": _read_json,
    ".json": _read_json,
    ".parquet": _read_parquet,
    ".conll": _read_conll,
    ".bio": _read_conll,
    ".xlsx": _read_excel,
}
"""Reader by the ending of a file's name."""
