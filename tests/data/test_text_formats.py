"""Separators and encodings of text files: found where they are plain, by option otherwise."""

from __future__ import annotations

from pathlib import Path

import pytest

from trifed.common.errors import ConfigError, DataError
from trifed.config.run import make_config
from trifed.data import DataSettings, read_table
from trifed.export.inference_inputs import Columns, read_labelled

ROWS = [('größe, "gut"', "ja"), ("zwei\nZeilen; drei", "nein")]


def write(path: Path, separator: str = ",", encoding: str = "utf-8", end: str = "\r\n") -> Path:
    def cell(text: str) -> str:
        return '"' + text.replace('"', '""') + '"'

    lines = [separator.join(map(cell, row)) for row in [("text", "label"), *ROWS]]
    path.write_bytes((end.join(lines) + end).encode(encoding))
    return path


def read(path: Path, **values: object) -> list[tuple[str, object]]:
    table = read_table(DataSettings.model_validate({"source": str(path), **values}))
    return list(zip(table.inputs["text"], table.labels, strict=True))


@pytest.mark.parametrize("name", ["t.csv", "t.tsv"])
@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_a_usual_separator_is_found(separator: str, name: str, tmp_path: Path) -> None:
    assert read(write(tmp_path / name, separator)) == ROWS


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_an_encoding_that_marks_itself_is_found(encoding: str, tmp_path: Path) -> None:
    assert read(write(tmp_path / "t.csv", ";", encoding)) == ROWS


@pytest.mark.parametrize(("encoding", "guess"), [("cp1252", "cp1252"), ("latin-1", "cp1252")])
def test_another_encoding_is_proposed_and_then_read(encoding: str, guess: str, tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", ",", encoding)
    with pytest.raises(DataError, match=rf"not UTF-8 at byte .* Set data.encoding .* such as '{guess}'"):
        read(path)
    assert read(path, encoding=guess) == ROWS
    with pytest.raises(DataError, match="not ascii at byte"):
        read(path, encoding="ascii")


def test_json_lines_have_an_encoding_too(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_bytes('{"text": "größe", "label": "a"}\n'.encode("cp1252"))
    assert read(tmp_path / "t.jsonl", encoding="cp1252") == [("größe", "a")]


def test_an_unusual_separator_by_option(tmp_path: Path) -> None:
    assert read(write(tmp_path / "t.csv", "#"), separator="#") == ROWS
    assert read(write(tmp_path / "t.csv", "\t"), separator="tab") == ROWS


def test_a_comma_file_whose_texts_have_other_signs(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("text,label\na;b;c,x\nd|e|f,y\n")
    assert read(tmp_path / "t.csv") == [("a;b;c", "x"), ("d|e|f", "y")]


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"separator": ";;"}, "expected one sign"),
        ({"separator": ""}, "expected one sign"),
        ({"separator": '"'}, "expected one sign"),
        ({"encoding": "utf-99"}, "expected a text encoding"),
        ({"encoding": "base64"}, "expected a text encoding"),
    ],
)
def test_settings_that_cannot_be(values: dict[str, str], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        make_config({"data": {"source": "t.csv", **values}})


def test_a_model_is_evaluated_on_a_file_in_the_training_datas_encoding(tmp_path: Path) -> None:
    """Or in UTF-8, which is tried first."""
    columns = Columns(text="text", label="label", encoding="cp1252", separator="#")
    for encoding in ("cp1252", "utf-8"):
        path = write(tmp_path / f"{encoding}.csv", "#", encoding)
        assert [item.text for item in read_labelled(path, columns).inputs] == [text for text, _ in ROWS]
