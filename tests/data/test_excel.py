"""Excel files as data: which sheet and rows are read, and what is wrong with a file, by sheet row."""

from __future__ import annotations

import datetime
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trifed.common.errors import DataError
from trifed.data import DataSettings, excel, make_clients, read_table
from trifed.data.sites import visible_sites
from trifed.export.inference_inputs import read_labelled
from trifed.export.inference_inputs import read_table as read_inputs
from trifed.export.locate import Columns

openpyxl = pytest.importorskip("openpyxl")

HEADER = ["text", "label"]
ROWS = [['größe; "gut"', "ja"], ["two\nlines", "nein"]]
Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """`write({"Sheet": rows}, name="t.xlsx")`: an Excel file with these sheets."""

    def make(sheets: dict[str, list[list[Any]]], name: str = "t.xlsx", hidden: tuple[str, ...] = ()) -> Path:
        book = openpyxl.Workbook()
        book.remove(book.active)
        for title, rows in sheets.items():
            sheet = book.create_sheet(title)
            for row in rows:
                sheet.append(row)
            if title in hidden:
                sheet.sheet_state = "hidden"
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        book.save(path)
        return path

    return make


def read(path: Path, **values: object) -> list[list[object]]:
    table = read_table(DataSettings.model_validate({"source": str(path), **values}))
    return [list(row) for row in zip(table.inputs["text"], table.labels, strict=True)]


def wrong(path: Path, **values: object) -> str:
    with pytest.raises(DataError) as caught:
        read(path, **values)
    return str(caught.value)


def test_the_first_sheet_is_read_unless_another_is_named(write: Write) -> None:
    path = write({"a": [HEADER, *ROWS], "b; c": [HEADER, ["other", "x"]]})
    assert read(path) == ROWS
    assert read(path, sheet="b; c") == [["other", "x"]]
    message = wrong(path, sheet="B")
    assert "'a', 'b; c'" in message and "data.sheet" in message


def test_a_hidden_sheet_is_not_the_first(write: Write) -> None:
    path = write({"lists": [["yes"], ["no"]], "data": [HEADER, *ROWS]}, hidden=("lists",))
    assert read(path) == ROWS


def test_numbers_are_labels_and_truth_values_too(write: Write) -> None:
    assert read(write({"s": [HEADER, ["a", 1], ["b", 2.0], ["c", 0]]})) == [["a", 1], ["b", 2], ["c", 0]]
    assert read(write({"s": [HEADER, ["a", True], ["b", False]]})) == [["a", "True"], ["b", "False"]]


def test_empty_rows_are_left_out_and_keep_their_numbers(write: Write) -> None:
    path = write({"s": [[], [None, None], HEADER, ROWS[0], [], ROWS[1], [None, ""], []]})
    assert read(path) == ROWS
    found = read_inputs(path, Columns())
    assert [item.row for item in found] == [4, 6]


def test_columns_without_a_name_and_cells_right_of_the_header_do_not_matter(write: Write) -> None:
    assert read(write({"s": [[None, *HEADER], ["x", *ROWS[0], "note"], [None, *ROWS[1]]]})) == ROWS


def test_a_wrong_size_in_the_file_loses_no_rows(write: Write, tmp_path: Path) -> None:
    path, shrunk = write({"s": [HEADER, *ROWS]}), tmp_path / "shrunk.xlsx"
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(shrunk, "w") as new:
        for name in old.namelist():
            content = old.read(name).replace(b'<dimension ref="A1:B3"', b'<dimension ref="A1"')
            new.writestr(name, content)
    assert read(shrunk) == ROWS


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([], "the file is empty"),
        ([HEADER], "no rows"),
        ([["text", "Label"], *ROWS], "Did you mean 'Label'"),
        ([["text", "label", "label"], ["a", "x", "y"]], "twice"),
        ([HEADER, ROWS[0], ["a", None]], "sheet row 3: the label in column 'label' is missing"),
        ([HEADER, ROWS[0], [None, "x"]], "sheet row 3: the text in column 'text' is empty"),
        ([HEADER, ["a", "#N/A"]], "sheet row 2: column 'label' shows the error #N/A"),
        ([HEADER, ["a", datetime.date(2024, 1, 2)]], "sheet row 2: column 'label' holds a datetime"),
        ([HEADER, [5, "x"]], "sheet row 2: column 'text' holds a int"),
        ([HEADER, ["a", 1], ["b", "x"]], "mixes texts and numbers"),
        ([HEADER, ["a", 1.5]], "1.5"),
        ([HEADER, ["a", "=1+1"]], "the label in column 'label' is missing"),  # its value was never computed
    ],
)
def test_what_is_wrong_is_named_by_its_sheet_row(rows: list[list[Any]], says: str, write: Write) -> None:
    message = wrong(write({"s": rows}))
    assert says in message and "t.xlsx" in message


def test_an_error_in_a_column_that_is_not_read_does_not_matter(write: Write) -> None:
    assert read(write({"s": [[*HEADER, "sum"], [*ROWS[0], "#DIV/0!"], [*ROWS[1], "#REF!"]]})) == ROWS


@pytest.mark.parametrize("content", [b"", b"text,label\na,b\n", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1 a password"])
def test_a_file_that_is_no_excel_file(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "t.xlsx").write_bytes(content)
    assert "not a readable Excel file" in wrong(tmp_path / "t.xlsx")


def test_a_damaged_file(write: Write, tmp_path: Path) -> None:
    path, damaged = write({"s": [HEADER, *ROWS]}), tmp_path / "damaged.xlsx"
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(damaged, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            new.writestr(name, content[: len(content) // 2] if "sheet1" in name else content)
    assert "not a readable Excel file" in wrong(damaged)
    path.write_bytes(path.read_bytes()[:-200])
    assert "not a readable Excel file" in wrong(path)


def test_without_openpyxl_the_extra_is_named(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write({"s": [HEADER, *ROWS]})
    monkeypatch.setattr(excel, "find_spec", lambda name: None)
    assert "pip install '.[excel]'" in wrong(path)


def test_a_folder_with_a_file_a_site_and_one_that_is_open_in_excel(write: Write, tmp_path: Path) -> None:
    rows = [[f"text {n}", "ab"[n % 2]] for n in range(20)]
    for site in ("berlin", "köln"):
        write({"s": [HEADER, *rows]}, name=f"sites/{site}.xlsx")
    (tmp_path / "sites" / "~$berlin.xlsx").write_bytes(b"the name of who has it open")
    assert visible_sites(str(tmp_path / "sites")) == ["berlin", "köln"]
    found = make_clients(DataSettings.model_validate({"source": str(tmp_path / "sites")}), 0)
    assert [client.name for client in found.clients] == ["berlin", "köln"]


def test_new_files_are_read_from_the_sheet_of_the_training_or_their_first(write: Write) -> None:
    columns = Columns(sheet="data")
    own = write({"notes": [["hello"]], "data": [HEADER, *ROWS]}, name="own.xlsx")
    other = write({"new": [HEADER, *ROWS]}, name="other.xlsx")
    for path in (own, other):
        found = read_labelled(path, columns)
        assert [item.text for item in found.inputs] == [row[0] for row in ROWS]
        assert found.labels == [row[1] for row in ROWS] and found.unit == "sheet row"
