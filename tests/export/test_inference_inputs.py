"""Texts come from tables, lines and flags; what cannot be used is named by its row."""

from __future__ import annotations

import csv
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from trifed.common.errors import DataError
from trifed.export.inference_inputs import InferenceInput, from_flags, read_labelled, read_lines, read_table
from trifed.export.locate import Columns

ROWS = [
    {"message": "where is it", "other": "a parcel", "queue": "b"},
    {"message": 'she said "hello", twice', "other": "no", "queue": "a"},
]
PAIRED = Columns("message", "other", "queue")
SINGLE = Columns("message", None, "queue")


def write(path, rows):
    if path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    return path


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_every_format_gives_the_same_texts_and_labels(ending, tmp_path):
    path = write(tmp_path / f"table.{ending}", ROWS)
    texts = [row["message"] for row in ROWS]
    assert read_table(path, SINGLE) == [InferenceInput(1, texts[0]), InferenceInput(2, texts[1])]
    assert read_table(path, PAIRED) == [InferenceInput(1, texts[0], "a parcel"), InferenceInput(2, texts[1], "no")]
    assert read_labelled(path, SINGLE).labels == ["b", "a"]


def test_whole_numbers_as_labels_are_their_digits(tmp_path):
    rows = [{"message": f"text {n}", "queue": n} for n in (2, 10)]
    for ending in ("csv", "jsonl", "parquet"):
        assert read_labelled(write(tmp_path / f"numbers.{ending}", rows), SINGLE).labels == ["2", "10"]


def test_a_row_that_cannot_be_used_is_named(tmp_path):
    path = write(tmp_path / "table.csv", [*ROWS, {"message": " ", "other": "x", "queue": ""}])
    with pytest.raises(DataError, match=r"table\.csv, row 3: .*'message'"):
        read_table(path, SINGLE)
    unlabelled = write(tmp_path / "unlabelled.csv", [*ROWS, {"message": "y", "other": "x", "queue": ""}])
    with pytest.raises(DataError, match=r"unlabelled\.csv, row 3: .*'queue'"):
        read_labelled(unlabelled, SINGLE)


def test_a_missing_column_is_named_with_the_flag_that_sets_it(tmp_path):
    path = write(tmp_path / "table.csv", ROWS)
    for columns, flag in (
        (Columns("messag", None, "queue"), "--text-column"),
        (Columns("message", "another", "queue"), "--pair-column"),
        (Columns("message", None, "label"), "--label-column"),
    ):
        with pytest.raises(DataError, match=f"'message', .*{flag}"):
            read_labelled(path, columns)


def test_a_table_without_rows_is_refused(tmp_path):
    (tmp_path / "empty.csv").write_text("message,queue\n", encoding="utf-8")
    with pytest.raises(DataError, match="no rows"):
        read_table(tmp_path / "empty.csv", SINGLE)


def test_lines_are_read_as_they_come():
    def lines():
        yield b"\xef\xbb\xbfone\r\n"
        yield "zwölf".encode()
        raise AssertionError("read ahead")

    reader = read_lines(lines(), SINGLE)
    assert [next(reader), next(reader)] == [InferenceInput(1, "one"), InferenceInput(2, "zwölf")]


def test_a_line_that_is_empty_or_no_utf8_is_named():
    with pytest.raises(DataError, match="standard input, line 2: "):
        list(read_lines([b"one\n", b" \n"], SINGLE))
    with pytest.raises(DataError, match=r"line 2: .*UTF-8.* 3"):
        list(read_lines([b"one\n", b"two\xff\n"], SINGLE))


def test_given_texts_are_checked():
    assert from_flags(["one", "two"], SINGLE) == [InferenceInput(1, "one"), InferenceInput(2, "two")]
    with pytest.raises(DataError, match="--text, number 2: "):
        from_flags(["one", ""], SINGLE)
    with pytest.raises(DataError, match=r"--text, number 1: .*UTF-8"):
        from_flags(["\udcff"], SINGLE)


def test_a_model_that_reads_two_texts_is_not_given_one():
    with pytest.raises(DataError, match="'message' and 'other'"):
        from_flags(["one"], PAIRED)
    with pytest.raises(DataError, match="this model reads two"):
        list(read_lines([b"one"], PAIRED))
