from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from trifed.common.errors import DataError
from trifed.data import (
    ClientData,
    ClientSettings,
    DataSettings,
    FederatedData,
    content_hash,
    make_clients,
    render_split,
    render_split_text,
    split_table,
    split_to_json,
)

WriteRows = Callable[[str, list[dict[str, Any]]], Path]
BY_SITE = ClientSettings(split="column", column="site")
IID = ClientSettings(split="iid", count=3, min_examples=1)


def make(source: Path, seed: int = 0, **values: Any) -> FederatedData:
    return make_clients(DataSettings(source=str(source), **values), seed)


def parts(client: ClientData) -> list[set[str]]:
    return [set(part.texts) for part in (client.train, client.valid, client.test)]


def numbered(n: int, n_labels: int = 2, prefix: str = "t", **more: Any) -> list[dict[str, Any]]:
    return [{"text": f"{prefix}{i}", "label": i % n_labels, **more} for i in range(n)]


@pytest.mark.parametrize("split", ["iid", "dirichlet", "pathological", "column", "sizes"])
def test_the_laws_of_a_split(split: str, topics: Path) -> None:
    more: dict[str, Any] = {"column": {"column": "site"}, "sizes": {"sizes": [1, 2]}}.get(split, {"count": 5})
    clients = ClientSettings(split=split, **more)  # type: ignore[arg-type]
    data = make(topics, text_pair="pair", clients=clients)
    texts = [text for client in data.clients for part in parts(client) for text in part]
    assert sorted(texts) == sorted(f"text {i}" for i in range(240))
    assert data.label_names == ["topic-0", "topic-1", "topic-2", "topic-3"]
    for client in data.clients:
        trained = set(client.train.labels)
        assert set(client.valid.labels) <= trained and set(client.test.labels) <= trained
        for part in (client.train, client.valid, client.test):
            numbers = [int(text.split()[1]) for text in part.texts]
            assert part.labels.dtype == np.int64
            assert part.labels.tolist() == [number % 4 for number in numbers]
            assert part.pairs == [f"pair {number}" for number in numbers]
    assert content_hash(make(topics, text_pair="pair", clients=clients)) == content_hash(data)
    assert content_hash(make(topics, seed=1, text_pair="pair", clients=clients)) != content_hash(data)


def test_the_content_hash_sees_everything(topics: Path) -> None:
    data = make(topics, clients=BY_SITE)
    first, *others = data.clients
    moved = replace(first, train=first.valid, valid=first.train)
    flipped = replace(first, train=replace(first.train, labels=first.train.labels[::-1]))
    pairs = {**first.train.inputs, "text_pair": ["", *first.train.texts[1:]]}
    paired = replace(first, train=replace(first.train, inputs=pairs))
    hashes = {content_hash(replace(data, clients=[c, *others])) for c in (first, moved, flipped, paired)}
    hashes.add(content_hash(replace(data, clients=[replace(first, name="x"), *others])))
    hashes.add(content_hash(replace(data, global_test=first.test)))
    hashes.add(content_hash(replace(data, label_names=["a", "b", "c", "d"])))
    assert len(hashes) == 7


def test_integer_labels_are_sorted_as_numbers(write_rows: WriteRows) -> None:
    rows = [{"text": f"t{i}", "label": [10, 9, -1][i % 3]} for i in range(60)]
    data = make(write_rows("t.jsonl", rows), clients=IID)
    assert data.label_names == ["-1", "9", "10"]


def test_a_clients_split_does_not_depend_on_the_others(write_rows: WriteRows) -> None:
    rows = numbered(40, site="a") + numbered(40, prefix="u", site="b")
    both = make(write_rows("two.jsonl", rows), clients=BY_SITE)
    alone = make(write_rows("one.jsonl", rows[:40]), clients=BY_SITE)
    assert parts(both.clients[0]) == parts(alone.clients[0])


def test_duplicates_are_dropped_and_counted(write_rows: WriteRows) -> None:
    rows = [*numbered(30), {"text": "t0", "label": 0}, {"text": "t1", "label": 0}]
    path = write_rows("t.jsonl", rows)
    data = make(path, clients=IID)
    [note] = data.notes
    assert re.findall(r"\d+", note) == ["2", "1"] and "duplicate" in note
    assert sum(row.train + row.valid + row.test for row in split_table(data)) == 30
    kept = make(path, clients=IID, drop_duplicates=False)
    assert sum(row.train + row.valid + row.test for row in split_table(kept)) == 32


def test_a_row_that_another_client_has_too_stays(write_rows: WriteRows) -> None:
    """A site does not know the others' rows, so a simulated one must not lose what is no duplicate of its own."""
    shared = [{"text": f"t{i}", "label": i % 2, "site": "a"} for i in range(30)]
    other = [{**row, "label": 1 - row["label"], "site": "b"} for row in shared]
    path = write_rows("t.jsonl", [*shared, *other, *other[:3], {**other[4], "label": other[4]["label"] ^ 1}])
    data = make(path, clients=BY_SITE)
    assert data.notes == ["dropped 4 duplicate rows: b 4 (1 of them had another label than the row kept)"]
    assert [row.train + row.valid + row.test for row in split_table(data)] == [30, 30]


def test_rows_with_another_second_text_are_no_duplicates(write_rows: WriteRows) -> None:
    path = write_rows("t.jsonl", [{**row, "text": "same", "pair": row["text"]} for row in numbered(30)])
    assert make(path, text_pair="pair", clients=IID).notes == []


def test_the_global_test_set_loses_rows_of_the_table(write_rows: WriteRows) -> None:
    path = write_rows("t.jsonl", numbered(30))
    test = write_rows("test.jsonl", [{"text": "t3", "label": 1}, {"text": "new", "label": 1}])
    data = make(path, clients=IID, test=str(test))
    assert data.global_test is not None
    assert (data.global_test.texts, data.global_test.labels.tolist()) == (["new"], [1])
    [note] = data.notes
    assert re.findall(r"\d+", note) == ["1"] and "global test" in note
    kept = make(path, clients=IID, test=str(test), drop_duplicates=False)
    assert kept.global_test is not None and len(kept.global_test) == 2
    known = write_rows("known.jsonl", numbered(3))
    with pytest.raises(DataError, match="all 3 rows"):
        make(path, clients=IID, test=str(known))


def test_a_test_label_that_nobody_trains_on_is_named(write_rows: WriteRows) -> None:
    test = write_rows("test.jsonl", [{"text": "new", "label": 1}, {"text": "newer", "label": 7}])
    with pytest.raises(DataError, match=r": 7 \(1 of 2"):
        make(write_rows("t.jsonl", numbered(30)), clients=IID, test=str(test))


def test_both_limits_on_examples_hold(topics: Path) -> None:
    data = make(topics, max_examples=90, clients=ClientSettings(split="iid", count=3, max_examples=20))
    assert [row.train + row.valid + row.test for row in split_table(data)] == [20, 20, 20]
    [note] = data.notes
    assert re.findall(r"\d+", note) == ["90", "240"] and "data.max_examples" in note


def test_small_clients_are_an_error_or_kept_without_data(write_rows: WriteRows) -> None:
    rows = numbered(40, site="large") + numbered(4, prefix="u", site="small")
    path = write_rows("t.jsonl", rows)
    with pytest.raises(DataError, match=r"10 examples: small \(4\).*allow_empty_clients"):
        make(path, clients=BY_SITE)
    data = make(path, clients=BY_SITE, allow_empty_clients=True)
    assert [client.name for client in data.clients] == ["large", "small"]
    assert [len(part) for part in parts(data.clients[1])] == [0, 0, 0]
    assert data.clients[1].train.labels.dtype == np.int64
    [note] = data.notes
    assert note.endswith("10 examples: small (4)")
    assert "small" in render_split_text(data)


def test_an_empty_file_can_be_an_empty_client(write_rows: WriteRows, tmp_path: Path) -> None:
    write_rows("d/a.jsonl", numbered(20))
    write_rows("d/b.jsonl", [])
    clients = ClientSettings(split="files")
    data = make(tmp_path / "d", clients=clients, allow_empty_clients=True)
    assert [(client.name, len(client.train)) for client in data.clients] == [("a", 12), ("b", 0)]


def test_clients_with_one_label_are_named(write_rows: WriteRows) -> None:
    rows = numbered(40, site="two") + numbered(20, n_labels=1, prefix="u", site="one")
    path = write_rows("t.jsonl", rows)
    with pytest.raises(DataError, match=r"one label only: one\..*allow_single_class"):
        make(path, clients=BY_SITE)
    data = make(path, clients=BY_SITE, allow_single_class=True)
    assert [row.counts for row in split_table(data)] == [(12, 0), (12, 12)]


def test_the_newest_rows_may_have_labels_of_their_own(write_rows: WriteRows) -> None:
    """Held out in order, 12 of 20 rows train: of client "one" all of the first label."""
    first = [{"text": f"t{i}", "label": int(i >= 14), "site": "one"} for i in range(20)]
    second = [{"text": f"u{i}", "label": 2 * int(i >= 16) or i % 2, "site": "two"} for i in range(20)]
    path = write_rows("t.jsonl", first + second)
    assert make(path, clients=BY_SITE).notes == []  # stratified
    with pytest.raises(DataError, match=r"data\.holdout: got 'last'.* one\. .*allow_single_class"):
        make(path, clients=BY_SITE, holdout="last")
    data = make(path, clients=BY_SITE, holdout="last", allow_single_class=True)
    assert set(data.clients[0].train.labels) == {0} and set(data.clients[1].train.labels) == {0, 1}
    [note] = data.notes
    assert note.endswith("one (1), two (2)")


def test_a_client_without_anything_to_test_on_is_named(write_rows: WriteRows) -> None:
    path = write_rows("t.jsonl", numbered(30, n_labels=30))
    with pytest.raises(DataError, match="client-00"):
        make(path, clients=IID)
    data = make(path, clients=IID, test_fraction=0.0)
    [note] = data.notes
    assert note.endswith("validation: client-00, client-01, client-02")


def test_the_summary_counts_what_the_clients_hold(topics: Path) -> None:
    data = make(topics, clients=BY_SITE)
    rows = split_table(data)
    assert [row.client for row in rows] == ["site-0", "site-1", "site-2"]
    assert all((row.train, row.valid, row.test) == (48, 12, 20) and sum(row.counts) == 48 for row in rows)
    as_json = json.loads(json.dumps(split_to_json(data)))
    assert as_json["content_hash"] == content_hash(data)
    assert as_json["clients"][0]["train_labels"] == {f"topic-{i}": 12 for i in range(4)}


def rendered(data: FederatedData) -> str:
    console = Console(width=160, color_system=None, record=True, file=io.StringIO())
    console.print(render_split(data))
    return console.export_text()


def test_few_labels_have_a_column_each(topics: Path) -> None:
    data = make(topics, clients=BY_SITE)
    for text in (render_split_text(data), rendered(data)):
        assert all(token in text for token in ("topic-3", "3 clients", "4 labels", "240 examples"))
        assert "most frequent" not in text


def test_many_labels_are_summed_up(write_rows: WriteRows) -> None:
    rows = [{"text": f"t{i}", "label": f"[bold]l{min(i % 40, 29):02d}"} for i in range(400)]
    data = make(write_rows("t.jsonl", [*rows, rows[0]]), clients=IID)
    for text in (render_split_text(data), rendered(data)):
        assert "most frequent" in text and "[bold]l29" in text and "%" in text
        assert "dropped 1 duplicate row" in text
        assert max(map(len, text.splitlines())) < 120
