"""Labels that are numbers or lists: what a file may hold, what is refused and where, and what becomes of it."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from trifed.common.errors import DataError
from trifed.data import (
    LABEL_LIST,
    NUMBER,
    TEXTS,
    DataSettings,
    content_hash,
    make_clients,
    rows_hash,
    split_to_json,
)
from trifed.data.conll import conll_columns
from trifed.data.targets import label_matrix

NUMBERS, LISTS = (*TEXTS, NUMBER), (*TEXTS, LABEL_LIST)


def clients(path: Any, roles: Any, split: str = "iid", **values: Any) -> Any:
    chosen = {"split": split, "min_examples": 2, **({"column": "site"} if split == "column" else {"count": 2})}
    settings = {"source": str(path), "clients": chosen, **values}
    return make_clients(DataSettings.model_validate(settings), 0, roles)


def rows(labels: list[Any]) -> list[dict[str, Any]]:
    return [{"text": f"text {n}", "label": label, "site": f"s{n % 2}"} for n, label in enumerate(labels)]


def targets_by_text(data: Any) -> dict[str, list[Any]]:
    parts = [part for client in data.clients for part in (client.train, client.valid, client.test)]
    return {t: row for p in parts for t, row in zip(p.inputs["text"], p.targets.tolist(), strict=True)}


def wrong(path: Any, roles: Any, **values: Any) -> str:
    with pytest.raises(DataError) as caught:
        clients(path, roles, **values)
    return str(caught.value)


# -- numbers


def test_numbers_of_any_file_keep_their_value(write_rows, tmp_path):
    given = [1, 2.5, -3, "4.25", 1e3, 0, 7, 8, 9, 10]
    found = targets_by_text(clients(write_rows("n.jsonl", rows(given)), NUMBERS))
    assert [found[f"text {n}"] for n in range(10)] == [[float(value)] for value in given]
    cells = ["1", " 2.5 ", "-3", "+4", "1e3", ".5", "007", "8", "9", "10"]
    (tmp_path / "n.csv").write_text("text,label\n" + "".join(f"text {n},{cell}\n" for n, cell in enumerate(cells)))
    found = targets_by_text(clients(tmp_path / "n.csv", NUMBERS))
    assert [found[f"text {n}"][0] for n in range(10)] == [1, 2.5, -3, 4, 1000, 0.5, 7, 8, 9, 10]


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (None, "the number in column 'label' is missing"),
        ("", "the number in column 'label' is missing"),
        ("high", "holds 'high', expected a number"),
        ("3,5", "Write decimals with a point"),
        ("1_000", "holds '1_000', expected a number"),
        (math.nan, "is missing"),
        ("inf", "expected a finite number"),
        (10**400, "expected a finite number"),
        (True, "holds a bool"),
        ([1.0], "holds a list"),
    ],
)
def test_what_is_no_number_is_named_by_its_line(value, says, write_rows):
    message = wrong(write_rows("n.jsonl", rows([1, 2, value, 4])), NUMBERS)
    assert says in message and "n.jsonl, line 3" in message


def test_equal_numbers_are_no_mistake(write_rows):
    """For classes one label alone would be one."""
    data = clients(write_rows("n.jsonl", rows([5] * 12)), NUMBERS, "column")
    assert [len(client.train) for client in data.clients] == [3, 3] and data.label_names == ["all"]


def test_a_text_with_two_numbers_counts_as_a_contradiction(write_rows):
    given = [*rows(list(range(10))), {"text": "text 0", "label": 99, "site": "s0"}]
    data = clients(write_rows("n.jsonl", given), NUMBERS)
    assert targets_by_text(data)["text 0"] == [0.0] and "1 of them had another label" in data.notes[0]


def test_hashes_depend_on_the_numbers(write_rows):
    one = clients(write_rows("a.jsonl", rows(list(range(10)))), NUMBERS)
    other = clients(write_rows("b.jsonl", rows([*range(9), 10])), NUMBERS)
    assert content_hash(one) != content_hash(other) and rows_hash(one) != rows_hash(other)


# -- lists


def test_lists_become_rows_of_a_table_in_the_order_of_the_labels(write_rows):
    given = [["b", "a"], ["c"], [], ["a", "a"], ["a", "b", "c"], ["b"]]
    data = clients(write_rows("l.jsonl", rows(given)), LISTS)
    assert data.label_names == ["a", "b", "c"]
    found = targets_by_text(data)
    assert [found[f"text {n}"] for n in range(6)] == [
        [True, True, False], [False, False, True], [False] * 3, [True, False, False], [True] * 3,
        [False, True, False],
    ]  # fmt: skip


def test_the_split_counts_the_examples_with_each_label(write_rows):
    data = clients(write_rows("l.jsonl", rows([["a", "b"], ["b"]] * 10)), LISTS, "column")
    counts = [client["train_labels"] for client in split_to_json(data)["clients"]]
    trained = [len(client.train) for client in data.clients]
    assert counts == [{"a": trained[0], "b": trained[0]}, {"b": trained[1]}]


def test_whole_numbers_are_labels_in_the_order_of_their_values(write_rows):
    data = clients(write_rows("l.jsonl", rows([[10, 2], [2.0], ["10"], [], [2], [10]])), LISTS)
    assert data.label_names == ["2", "10"]


def test_texts_are_split_by_the_separator(tmp_path):
    cells = ["a;b", " b ; c ", "", "c;", "a;;b", "a"]
    (tmp_path / "l.csv").write_text("text,label\n" + "".join(f"text {n},{cell}\n" for n, cell in enumerate(cells)))
    data = clients(tmp_path / "l.csv", LISTS, label_separator=";", separator=",")
    found = targets_by_text(data)
    assert data.label_names == ["a", "b", "c"]
    assert [sum(found[f"text {n}"]) for n in range(6)] == [2, 2, 0, 1, 2, 1]


def test_a_label_in_a_list_may_hold_the_separator(write_rows):
    data = clients(write_rows("l.jsonl", rows([["a;b"], ["c"], ["a;b", "c"], [], ["c"], ["c"]])), LISTS)
    assert data.label_names == ["a;b", "c"]


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (None, "is missing"),
        (math.nan, "is missing"),
        ("a;b", "set data.label_separator"),
        ({"a": 1}, "holds a dict"),
        (3, "holds a int"),
        (["a", None], "holds None"),
        (["a", " "], "holds ' '"),
        ([["a"]], "holds ['a']"),
        ([1.5], "holds 1.5"),
    ],
)
def test_what_is_no_list_of_labels_is_named_by_its_line(value, says, write_rows):
    message = wrong(write_rows("l.jsonl", rows([["a"], ["b"], value, ["a"]])), LISTS)
    assert says in message and "l.jsonl, line 3" in message


def test_a_file_without_any_label_is_refused(write_rows):
    assert "no row has a label" in wrong(write_rows("l.jsonl", rows([[]] * 6)), LISTS)


def test_labels_of_the_settings_are_all_there_may_be(write_rows):
    path = write_rows("l.jsonl", rows([["a"], ["b", "x"], ["a"], ["b"], ["b"], []]))
    assert "data.labels: got other labels, x" in wrong(path, LISTS, labels=["b", "a"])
    assert clients(path, LISTS, labels=["x", "b", "a", "never"]).label_names == ["x", "b", "a", "never"]
    assert "twice" in wrong(path, LISTS, labels=["a", "b", "x", "a"])


def test_a_separate_test_set_has_the_same_labels(write_rows):
    path = write_rows("l.jsonl", rows([["a"], ["b"], ["a"], ["b"], ["b"], []]))
    new = [{"text": "new", "label": ["b"]}]
    found = clients(path, LISTS, test=str(write_rows("t.jsonl", new)))
    assert found.global_test.targets.tolist() == [[False, True]]
    assert "got other labels, z" in wrong(
        path, LISTS, test=str(write_rows("z.jsonl", [{**new[0], "label": ["z"]}]))
    )


def test_a_matrix_of_one_label():
    matrix, names = label_matrix([("a",), ()])
    assert names == ["a"] and np.array_equal(matrix, [[True], [False]])


def test_lists_of_class_labels_have_their_names(tmp_path):
    table = pa.table({"text": [f"t{n}" for n in range(12)], "label": [[0], [1], [0, 1], []] * 3})
    feature = {"_type": "List", "feature": {"_type": "ClassLabel", "names": ["joy", "fear"]}}
    info = json.dumps({"info": {"features": {"label": feature}}})
    pq.write_table(table.replace_schema_metadata({"huggingface": info}), tmp_path / "t.parquet")
    assert clients(tmp_path / "t.parquet", LISTS).label_names == ["fear", "joy"]
    assert clients(tmp_path / "t.parquet", LISTS, labels=["joy", "fear"]).label_names == ["joy", "fear"]


def test_comments_of_conll_files_are_no_words_and_the_word_is_no_comment(tmp_path):
    text = "# newdoc\n# text = a b c\na O\nb B\n\n# O\nc\u00a0d O\n\n# sent_id = 2\ne O\n"
    columns, lines = conll_columns(tmp_path / "x.conll", text, {"data.text": "words", "data.label": "tags"})
    assert columns == {"words": [["a", "b"], ["#", "c\u00a0d"], ["e"]], "tags": [["O", "B"], ["O", "O"], ["O"]]}
    assert lines == [3, 6, 10]
