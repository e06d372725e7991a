"""A label has one spelling, whatever file it is in and whatever other rows say."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from trifed.common.errors import DataError
from trifed.data import DataSettings, make_clients, read_table
from trifed.data.clients import index_labels
from trifed.data.columns import spelling
from trifed.export.inference_inputs import Columns, read_labelled

IID = {"split": "iid", "count": 2, "min_examples": 1}


def csv_of(path: Path, labels: list[str]) -> Path:
    path.write_text("text,label\n" + "".join(f"t{i},{label}\n" for i, label in enumerate(labels)))
    return path


def settings(path: Path, **values: object) -> DataSettings:
    return DataSettings.model_validate({"source": str(path), "clients": IID, **values})


@pytest.mark.parametrize(
    ("label", "spelled"),
    [
        ("1", "1"), ("1.0", "1"), (" +1 ", "1"), (1, "1"), (1.0, "1"), ("-1", "-1"), ("-0", "0"), ("1.", "1"),
        ("007", "007"), ("0", "0"), ("1.5", "1.5"), (1.5, "1.5"), ("1.50", "1.50"), ("1e3", "1e3"),
        ("+49 30", "+49 30"), (True, "True"), ("true", "True"), ("FALSE", "False"), ("yes", "yes"),
        ("9" * 30, "9" * 30), ("nan", "nan"), ("inf", "inf"), ("", ""), ("e\u0301te\u0301", "\u00e9t\u00e9"),
    ],
)  # fmt: skip
def test_spellings(label: str | int | float, spelled: str) -> None:
    assert spelling(label) == spelled
    assert spelling(spelled) == spelled


@pytest.mark.parametrize("labels", [["1.0", "2.0", "unknown"], ["+1", "-1", "neutral"], ["1.5", "2.0", "none"]])
def test_a_file_with_fewer_labels_spells_them_alike(labels: list[str], tmp_path: Path) -> None:
    whole = read_table(settings(csv_of(tmp_path / "all.csv", labels * 2))).labels
    part = read_labelled(csv_of(tmp_path / "new.csv", labels[:2]), Columns(text="text", label="label")).labels
    assert part == [str(label) for label in whole[:2]]


@pytest.mark.parametrize("names", [["1.0", "2.0", "unknown"], ["1", "2", "unknown"], ["2.5", "1", "2", "unknown"]])
def test_given_labels_may_be_spelled_in_any_way(names: list[str], tmp_path: Path) -> None:
    """One site's file has whole numbers only."""
    path = csv_of(tmp_path / "site.csv", ["1.0", "2.0"] * 10)
    data = make_clients(settings(path, labels=names), 0)
    assert data.label_names == names
    found = {data.label_names[label] for client in data.clients for label in client.train.labels}
    assert found == {names[-3], names[-2]}


def test_a_test_set_of_numbers_alone(tmp_path: Path) -> None:
    path = csv_of(tmp_path / "stars.csv", ["1.5", "2.0", "unknown"] * 20)
    test = tmp_path / "stars_new.csv"
    test.write_text("text,label\nnew,1.5\nnewer,2\n")
    data = make_clients(settings(path, test=str(test)), 0)
    assert data.global_test is not None
    assert [data.label_names[label] for label in data.global_test.labels] == ["1.5", "2"]


def test_truth_values_of_all_kinds_of_files(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text(
        "".join(json.dumps({"text": f"t{i}", "label": i < 1}) + "\n" for i in range(2))
    )
    pq.write_table(pa.table({"text": ["a", "b"], "label": [True, False]}), tmp_path / "t.parquet")
    csv_of(tmp_path / "t.csv", ["true", "FALSE"])
    for name in ("t.jsonl", "t.parquet", "t.csv"):
        assert read_table(settings(tmp_path / name)).labels == ["True", "False"]


def test_numbers_that_may_be_a_measured_value_are_refused(tmp_path: Path) -> None:
    path = csv_of(tmp_path / "t.csv", ["3.17", "2.0"])
    with pytest.raises(DataError, match=r"row 1: the label .* '3.17', expected a whole number .* data\.labels"):
        read_table(settings(path))
    assert read_table(settings(path, labels=["2", "3.17"])).labels == ["3.17", "2"]


@pytest.mark.parametrize("missing", ["nan", "NA", "#N/A", "null"])
def test_a_missing_number_is_no_class_unless_it_is_listed(missing: str, tmp_path: Path) -> None:
    path = csv_of(tmp_path / "t.csv", ["1.0", "2.0", missing, "1.0"])
    with pytest.raises(DataError, match=rf"row 3: the label .* '{missing}' among numbers.*data\.labels"):
        read_table(settings(path))
    assert read_table(settings(path, labels=["1", "2", missing])).labels == ["1", "2", missing, "1"]
    assert read_table(settings(csv_of(path, ["a", "b", missing]))).labels == ["a", "b", missing]


def test_truth_values_beside_0_or_1_are_refused(tmp_path: Path) -> None:
    path = csv_of(tmp_path / "t.csv", ["1", "0", "true", "False"])
    with pytest.raises(DataError, match=r"row 3: the label .* 'true'.* 0 or 1.*\(2 such rows.*data\.labels"):
        read_table(settings(path))
    (tmp_path / "t.jsonl").write_text('{"text": "a", "label": 1}\n{"text": "b", "label": true}\n')
    with pytest.raises(DataError, match=r"line 2: the label .* True"):
        read_table(settings(tmp_path / "t.jsonl"))
    assert read_table(settings(csv_of(path, ["2", "true"]))).labels == ["2", "True"]


@pytest.mark.parametrize("column", ["label", "site"])
def test_half_a_character_is_named(column: str, tmp_path: Path) -> None:
    rows = [{"text": "a", "label": "b", "site": "c"}, {"text": "d", "label": "e", "site": "f", column: "\ud800"}]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError, match=rf"line 2: .*'{column}' holds half a character"):
        read_table(settings(tmp_path / "t.jsonl", clients={"split": "column", "column": "site"}))


def test_one_label_twice_is_refused() -> None:
    with pytest.raises(DataError, match="one label twice"):
        index_labels(["1"], ["1", "1.0"])
