"""Texts with labels, as people bring them: from a file to predictions, or one message that says what to do."""

from __future__ import annotations

from typing import Any

import pytest
from tour_cases import (
    BY_SITE,
    Case,
    array_of,
    changed,
    csv_of,
    jsonl_of,
    of_site,
    parquet_of,
    sets,
    without,
)

WORDS = {
    "billing": ["invoice", "refund", "charge", "receipt", "payment"],
    "delivery": ["parcel", "courier", "address", "shipment", "doorstep"],
    "login": ["password", "account", "reset", "token", "browser"],
}
LABELS = tuple(WORDS)
NUMBER = {label: str(number) for number, label in enumerate(LABELS)}
ROWS = [
    {
        "text": f"{WORDS[label][n % 5]} word{n:03d} {WORDS[label][(n + 2) % 5]}",
        "label": label,
        "site": "elm" if n % 2 else "oak",
    }
    for n in range(60)
    for label in [LABELS[n // 2 % 3]]
]
NEW = without(ROWS[:7], "site")


def spelled(rows: list[dict[str, str]], labels: dict[str, Any]) -> list[dict[str, Any]]:
    return [{**row, "label": labels[row["label"]]} for row in rows]


def right(name: str, content: bytes, *flags: str, file: str = "t.csv", **more: Any) -> Case:
    """A table with a client column."""
    usual = {"labels": LABELS, "kept": 60, "rows": 60}
    files = {file: content, **more.pop("files", {})}
    return Case(name, files, file, (*BY_SITE, *flags), **{**usual, **more})


def wrong(name: str, content: bytes, *says: str, file: str = "t.csv") -> Case:
    """A table that `trifed run` refuses."""
    return Case(name, {file: content}, file, BY_SITE, refused="run", says=says)


LONG = changed(ROWS, 7, text="invoice word001 " * 3000)
SIGNS = changed(
    changed(changed(ROWS, 5, text="\U0001f600"), 6, text="\u200b\u200d"), 8, text='Re: "a, b"\nis\tbroken; help'
)
FOLDER = {f"sites/{site}.csv": csv_of(of_site(ROWS, site)) for site in ("elm", "oak")}
ONE_SITE = Case(
    "a folder with a file a site", FOLDER, "sites", (), labels=LABELS, kept=60, new="sites/elm.csv", rows=30
)
WINDOWS = b"\xef\xbb\xbf" + csv_of(ROWS[:30], "\t", "\r\n") + csv_of(ROWS[30:], "\t").split(b"\n", 1)[1]

TEXTS = [
    right("commas", csv_of(ROWS)),
    right(
        "semicolons and an encoding of Windows",
        csv_of(changed(ROWS, 3, text="größer €"), ";", encoding="cp1252"),
        *sets(data__encoding="cp1252"),
    ),
    right("tabs, a byte order mark, and two kinds of line ends", WINDOWS, file="t.tsv"),
    right("two bytes a character", csv_of(ROWS, encoding="utf-16")),
    right("JSON lines", jsonl_of(ROWS), file="t.jsonl"),
    right("a JSON array", array_of(ROWS), file="t.json"),
    right("Parquet", parquet_of(ROWS), file="t.parquet"),
    ONE_SITE,
    right("a very long text", csv_of(LONG), *sets(model__max_length=32)),
    right("an emoji, spaces without width, quotes and line ends in texts", csv_of(SIGNS)),
    right("rows that are there twice", csv_of([*ROWS, *ROWS[:9]]), rows=69),
    right(
        "pairs of texts",
        csv_of([{**row, "other": f"word{n:03d}"} for n, row in enumerate(ROWS)]),
        *sets(data__text_pair="other"),
    ),
    right(
        "labels as pandas writes numbers, and new ones as whole numbers",
        csv_of(spelled(ROWS, {label: f"{number}.0" for label, number in NUMBER.items()})),
        labels=tuple(NUMBER.values()),
        files={"new.jsonl": jsonl_of(spelled(NEW, {label: int(number) for label, number in NUMBER.items()}))},
        new="new.jsonl",
        rows=7,
    ),
    right(
        "truth values, new ones as texts",
        jsonl_of(spelled(ROWS, {"billing": True, "delivery": False, "login": False})),
        file="t.jsonl",
        labels=("False", "True"),
        files={"new.csv": csv_of(spelled(NEW, {"billing": "true", "delivery": "FALSE", "login": "False"}))},
        new="new.csv",
        rows=7,
    ),
    right(
        "a label of one client alone",
        csv_of([row for row in ROWS if row["site"] == "elm" or row["label"] != "login"]),
        kept=50,
        rows=50,
    ),
    Case(
        "a client without examples",
        {**FOLDER, "sites/ash.csv": b"text,label,site\n"},
        "sites",
        sets(data__allow_empty_clients="true"),
        ("ash", "elm", "oak"),
        LABELS,
        60,
        "sites/oak.csv",
        30,
    ),
    right(
        "a test set of its own",
        csv_of(ROWS[:50]),
        "--test",
        "u.csv",
        kept=50,
        new="u.csv",
        rows=10,
        files={"u.csv": csv_of(ROWS[50:])},
    ),
    wrong("a column that is not there", csv_of(without(ROWS, "label")), "t.csv", "'label'", "data.label"),
    wrong("an empty text", csv_of(changed(ROWS, 4, text=" ")), "t.csv, row 4", "'text'"),
    wrong("a missing label", jsonl_of(changed(ROWS, 5, label=None)), "t.jsonl, line 5", "'label'", file="t.jsonl"),
    wrong(
        "a missing number", csv_of(changed(spelled(ROWS, NUMBER), 6, label="nan")), "t.csv, row 6", "data.labels"
    ),
    wrong("1 and True", csv_of(changed(spelled(ROWS, NUMBER), 6, label="True")), "t.csv, row 6", "data.labels"),
    wrong(
        "another encoding",
        csv_of(changed(ROWS, 3, text="größer"), encoding="latin-1"),
        "t.csv",
        "line 4",
        "data.encoding",
    ),
    wrong("a header alone", b"text,label,site\n", "t.csv", "no rows"),
    wrong("a quote that does not end", csv_of(ROWS) + b'"an open end,login,elm\n', "t.csv, line 62"),
    wrong("an Excel file by another name", b"PK\x03\x04" + bytes(range(256)), "t.csv", "Excel"),
    wrong("one label", csv_of([{**row, "label": "login"} for row in ROWS]), "elm, oak", "data.label"),
    wrong("one example of a client", csv_of(changed(ROWS, 9, site="ash")), "ash (1)", "data.clients.min_examples"),
    Case("no such file", {}, "none.csv", BY_SITE, refused="run", says=("data.source", "none.csv")),
    right(
        "a new label",
        csv_of(ROWS),
        files={"new.csv": csv_of(changed(NEW, 2, label="weather"))},
        new="new.csv",
        rows=7,
        refused="evaluate",
        says=("new.csv, row 2", "'weather'", "--label-column"),
    ),
    right(
        "another column in the new file",
        csv_of(ROWS),
        files={"new.csv": b"message\nhello\n"},
        new="new.csv",
        refused="predict",
        says=("new.csv", "'text'", "--text-column"),
    ),
]
DECODED = {
    "commas", "tabs, a byte order mark, and two kinds of line ends", "a JSON array", "a folder with a file a site",
    "a very long text", "an emoji, spaces without width, quotes and line ends in texts", "pairs of texts",
    "a client without examples", "an empty text", "a new label",
}  # fmt: skip
"""Which of them a decoder reads too; it has no more to do with files than an encoder."""


def a_label(case: Case) -> Any:
    def check(row: dict[str, Any]) -> None:
        assert row["label"] in case.labels
        assert 1 / len(case.labels) - 1e-3 <= row["probability"] <= 1

    return check


def scores(one: dict[str, Any]) -> None:
    assert one["loss"] > 0 and 0 <= one["macro_f1"] <= 1


@pytest.mark.parametrize("case", TEXTS, ids=lambda case: case.name)
def test_an_encoder_classifies(tour, tiny_encoder, case):
    tour(case, ("--model", tiny_encoder, "--set", "model.max_length=64"), a_label(case), scores)


@pytest.mark.tour
@pytest.mark.parametrize("case", [case for case in TEXTS if case.name in DECODED], ids=lambda case: case.name)
def test_a_decoder_classifies(tour, tiny_language, case):
    flags = ("--model", tiny_language(), "--set", "model.pooling=last", "--set", "model.max_length=64")
    tour(case, flags, a_label(case), scores)
