from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from trifed.common.errors import DataError
from trifed.data import ClientSettings, DataSettings, demo_corpus_path, read_table, read_test

ROWS = [
    {"text": "one, with a comma", "label": "b", "site": "x"},
    {"text": 'two\n"lines"', "label": "a", "site": "y"},
    {"text": "drei: größer", "label": "b", "site": "x"},
]
CSV = '\ufefftext,label,site\n"one, with a comma",b,x\n"two\n""lines""",a,y\n\ndrei: größer,b,x\n'


def settings(source: object, **values: Any) -> DataSettings:
    named = [str(name) for name in source] if isinstance(source, list) else str(source)
    return DataSettings(source=named, **values)


def refused(source: object, *words: str, **values: Any) -> str:
    with pytest.raises(DataError) as caught:
        read_table(settings(source, **values))
    message = str(caught.value)
    for word in words:
        assert word in message
    return message


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def write_as(kind: str, folder: Path) -> Path:
    if kind == "csv":
        return write(folder / "t.csv", CSV)
    if kind in ("jsonl", "json"):
        lines = [json.dumps(row) for row in ROWS]
        return write(folder / f"t.{kind}", "\n".join(lines) + "\n\n")
    if kind == "array":
        return write(folder / "t.json", "\n" + json.dumps(ROWS, indent=1))
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(ROWS), folder / "t.parquet")
        return folder / "t.parquet"
    import datasets

    datasets.Dataset.from_list(ROWS).save_to_disk(str(folder / "saved"))
    return folder / "saved"


@pytest.mark.parametrize("kind", ["csv", "jsonl", "json", "array", "parquet", "saved"])
def test_every_format_gives_the_same_table(kind: str, tmp_path: Path) -> None:
    path = write_as(kind, tmp_path)
    table = read_table(settings(path, clients=ClientSettings(split="column", column="site")))
    assert table.inputs["text"] == [row["text"] for row in ROWS]
    assert table.labels == ["b", "a", "b"]
    assert table.groups == ["x", "y", "x"]
    assert table.group_names == ["x", "y"]
    assert table.inputs.get("text_pair") is None


def test_a_folder_and_a_list_are_read_file_by_file(tmp_path: Path) -> None:
    b = write(tmp_path / "d" / "berlin.csv", "text,label\nhallo,0\n")
    a = write(tmp_path / "d" / "athens.jsonl", '{"text": "geia", "label": 1}\n')
    write(tmp_path / "d" / "README.md", "about")
    write(tmp_path / "d" / ".hidden", "about")
    by_file = ClientSettings(split="files")
    folder = read_table(settings(tmp_path / "d", clients=by_file))
    assert (folder.inputs["text"], folder.labels, folder.groups) == (
        ["geia", "hallo"],
        [1, 0],
        ["athens", "berlin"],
    )
    listed = read_table(settings([b, a], clients=by_file))
    assert (listed.inputs["text"], listed.groups) == (["hallo", "geia"], ["berlin", "athens"])
    assert read_table(settings([b, a])).groups == ["berlin", "athens"]
    assert read_table(settings([b, a], clients=ClientSettings(split="iid"))).groups is None


def test_a_second_text_and_a_test_set_are_read(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", "q,a,y\nwhat,that,0\nwho,she,1\n")
    test = write(tmp_path / "test.csv", "q,a,y\nwhen,now,1\n")
    named = settings(path, text="q", text_pair="a", label="y", test=str(test))
    assert read_table(named).inputs.get("text_pair") == ["that", "she"]
    found = read_test(named)
    assert found is not None
    assert (found.inputs["text"], found.inputs.get("text_pair"), found.labels) == (["when"], ["now"], [1])
    assert read_test(settings(path)) is None


def test_a_home_folder_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "t.csv", "text,label\na,b\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert read_table(settings("~/t.csv")).inputs["text"] == ["a"]


def test_a_text_longer_than_the_csv_modules_limit_is_read(tmp_path: Path) -> None:
    import csv

    limit = csv.field_size_limit()
    assert (
        len(read_table(settings(write(tmp_path / "t.csv", f"text,label\n{'x' * 300_000},b\n"))).inputs["text"][0])
        == 300_000
    )
    assert csv.field_size_limit() == limit


@pytest.mark.parametrize(
    ("cells", "labels"),
    [
        (["1", "0"], [1, 0]),
        (["1.0", "0.0"], [1, 0]),
        (["10", " 9 "], [10, 9]),
        (["1", "spam"], ["1", "spam"]),
        (["007", "8"], ["007", "8"]),
        (["-1", "+1"], [-1, 1]),
    ],
)
def test_labels_of_a_csv_file(cells: list[str], labels: list[object], tmp_path: Path) -> None:
    content = "text,label\n" + "".join(f"t{i},{cell}\n" for i, cell in enumerate(cells))
    assert read_table(settings(write(tmp_path / "t.csv", content))).labels == labels


def test_class_labels_give_their_names(tmp_path: Path) -> None:
    import datasets

    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])}
    )
    data = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [1, 0]}, features=features)
    data.save_to_disk(str(tmp_path / "saved"))
    pq.write_table(data.with_format("arrow")[:].replace_schema_metadata(data.features.arrow_schema.metadata),
                   tmp_path / "t.parquet")  # fmt: skip
    assert read_table(settings(tmp_path / "saved")).labels == ["yes", "no"]
    assert read_table(settings(tmp_path / "t.parquet")).labels == ["yes", "no"]
    unlabelled = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [1, -1]}, features=features)
    unlabelled.save_to_disk(str(tmp_path / "open"))
    refused(tmp_path / "open", "row 2", "label", "missing")


def test_a_saved_dictionary_gives_the_named_split(tmp_path: Path) -> None:
    import datasets

    part = {name: datasets.Dataset.from_dict({"text": [name], "label": [0]}) for name in ("train", "test")}
    datasets.DatasetDict(part).save_to_disk(str(tmp_path / "saved"))
    found = settings(tmp_path / "saved", test=str(tmp_path / "saved"))
    test = read_test(found)
    assert read_table(found).inputs["text"] == ["train"]
    assert test is not None and test.inputs["text"] == ["test"]
    refused(tmp_path / "saved", "no split 'dev'", "'train', 'test'", hub_split="dev")
    (tmp_path / "saved" / "dataset_dict.json").write_text("{")
    refused(tmp_path / "saved", "save_to_disk")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("t.csv", "", ["the file is empty"]),
        ("t.csv", "text,label\n", ["no rows"]),
        ("t.jsonl", "\n", ["no rows"]),
        ("t.csv", "txet,label\na,b\n", ["no column 'text'", "'txet', 'label'", "mean 'txet'", "data.text"]),
        ("t.csv", "text,Label\na,b\n", ["no column 'label'", "mean 'Label'", "data.label"]),
        ("t.csv", "text;tag\na;b\n", ["no column 'label'", "'text', 'tag'"]),
        ("t.csv", "text;label\na;b;c\n", ["row 1", "got 3 cells", "semicolon"]),
        ("t.csv", "text,label,text\na,b,c\n", ["'text' is in the header twice"]),
        ("t.csv", "text,label\na,b\nc, d,e\n", ["row 2", "got 3 cells, expected 2"]),
        ("t.csv", 'text,label\na,b\n"c,d\n', ["not well-formed CSV", "line 3"]),
        ("t.csv", "text,label\na,b\n ,c\n,d\n", ["row 2", "'text' is empty", "2 such rows"]),
        ("t.csv", "text,label\na,b\nc,\n", ["row 2", "label", "missing"]),
        ("t.csv", "text,label\na,1\nc,0.5\n", ["row 2", "0.5", "whole number"]),
        ("t.csv", b"text,label\nok,b\n\xfcber,c\n", ["not UTF-8", "byte 16", "line 3", "0xfc"]),
        ("t.jsonl", b'{"text": "\xff"}\n', ["not UTF-8", "byte 10"]),
        ("t.jsonl", '{"text": "a", "label": 1}\n{"text": "b"\n', [".jsonl:2", "malformed JSON"]),
        ("t.json", '[\n{"text": "a", "label": 1}\n{"text": "b"}]\n', [".json:3", "malformed JSON", "one array"]),
        ("t.json", '[{"text": "a", "label": 1}, 2]\n', ["item 2", "JSON int", "one array"]),
        ("t.json", '{"text": "a", "label": 1}\n[1]\n', ["line 2", "JSON list", "one object a line"]),
        ("t.json", "[]", ["no rows"]),
        ("t.csv", b"PK\x03\x04\x14\x00\x06\x00\xff", ["an Excel or ZIP file", "expected a text file"]),
        ("t.csv", b"\x1f\x8b\x08\x00", ["a gzip file", "Unpack"]),
        ("t.jsonl", '{"text": NaN, "label": 1}\n', ["line 1", "text", "empty"]),
        ("t.jsonl", '{"text": "a", "label": 1}\n\n{"text": "b"}\n', ["line 3", "label", "missing"]),
        ("t.jsonl", '{"text": "a", "label": 1}\n{"label": 1}\n', ["line 2", "text", "empty"]),
        ("t.jsonl", '{"text": 5, "label": 1}\n', ["line 1", "holds a int", "expected a text"]),
        ("t.jsonl", '{"text": "\\ud83d", "label": 1}\n', ["line 1", "half a character"]),
        ("t.jsonl", '{"text": "a", "label": 1.5}\n', ["line 1", "1.5", "whole number"]),
        ("t.jsonl", '{"text": "a", "label": NaN}\n', ["line 1", "missing"]),
        ("t.jsonl", '{"text": "a", "label": [1]}\n', ["line 1", "holds a list"]),
        (
            "t.jsonl",
            '{"text": "a", "label": 1}\n{"text": "b", "label": "c"}\n',
            ["mixes", "line 1", "line 2"],
        ),
        ("t.parquet", "no parquet at all", ["not a readable Parquet file"]),
        ("t.tsv", "text\tlabel\n", ["no rows"]),
        ("t.xls", "text\tlabel\n", ["unknown ending '.xls'", ".parquet"]),
        ("table", "text,label\n", ["unknown ending '(none)'"]),
    ],
)
def test_files_that_cannot_be_used_are_named(
    name: str, content: str | bytes, words: list[str], tmp_path: Path
) -> None:
    path = write(tmp_path / name, content)
    refused(path, *words, name)


def test_a_parquet_file_of_other_columns_or_types_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": [1, 2], "label": ["a", "b"]}), tmp_path / "a.parquet")
    refused(tmp_path / "a.parquet", "row 1", "expected a text")
    pq.write_table(pa.table({"text": ["a", "b"], "label": [0.5, None]}), tmp_path / "b.parquet")
    refused(tmp_path / "b.parquet", "row 2", "missing")
    refused(tmp_path / "b.parquet", "no column 'intent'", "'text', 'label'", label="intent")


def test_sources_that_are_not_there_are_named(tmp_path: Path) -> None:
    refused(tmp_path / "no.csv", "no such file or folder", "no.csv")
    refused([tmp_path / "no.csv"], "no such file", "no.csv")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "no data files")
    with pytest.raises(DataError, match=r"data\.test .*no such file"):
        read_test(settings("a.csv", test=str(tmp_path / "no.csv")))


def test_the_splits_of_one_data_set_are_not_one_table(tmp_path: Path) -> None:
    for name in ("train", "test"):
        write(tmp_path / "d" / f"{name}.csv", "text,label\na,b\n")
    refused(tmp_path / "d", "splits of one data set", "data.test")


def test_a_hub_name_that_cannot_be_reached_is_said_plainly(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    refused("nobody/nothing", "no file or folder of that name", "hub", "Without a network", "'train'")


def test_one_file_a_client_needs_files_of_different_names(tmp_path: Path) -> None:
    a = write(tmp_path / "a" / "site.csv", "text,label\na,b\n")
    b = write(tmp_path / "b" / "site.jsonl", '{"text": "a", "label": "b"}\n')
    by_file = ClientSettings(split="files")
    refused([a, b], "two files for one client name 'site'", str(a), str(b), clients=by_file)
    refused(a, "one file a client", clients=by_file)
    empty = write(tmp_path / "b" / "other.csv", "text,label\n")
    refused([a, empty], "no rows", "allow_empty_clients", clients=by_file)
    kept = read_table(settings([a, empty], clients=by_file, allow_empty_clients=True))
    assert (kept.groups, kept.group_names) == (["site"], ["site", "other"])


def test_a_row_without_a_client_is_named(tmp_path: Path) -> None:
    by_site = ClientSettings(split="column", column="site")
    path = write(tmp_path / "t.csv", "text,label,site\na,b,x\nc,d,\n")
    refused(path, "row 2", "client column 'site' is empty", clients=by_site)
    refused(write(tmp_path / "u.csv", "text,label\na,b\n"), "data.clients.column", "'site'", clients=by_site)
    lists = write(tmp_path / "t.jsonl", '{"text": "a", "label": 1, "site": [1]}\n')
    refused(lists, "line 1", "holds a list", clients=by_site)


def test_reading_leaves_nothing_in_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    for kind in ("csv", "jsonl", "parquet", "saved"):
        read_table(settings(write_as(kind, tmp_path)))
    assert list(home.iterdir()) == []


def test_the_shipped_corpus_can_be_read() -> None:
    try:
        path = demo_corpus_path()
    except DataError as error:
        pytest.skip(str(error))
    table = read_table(settings(path, clients=ClientSettings(split="column", column="site")))
    assert len(table) > 100
    assert len(table.group_names or []) > 1
