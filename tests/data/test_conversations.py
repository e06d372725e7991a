"""Conversations in the forms in which people have them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from trifed.common.errors import DataError
from trifed.data import LANGUAGE, DataSettings, read_table

PLAIN = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
CALL = {"id": "1", "type": "function", "function": {"name": "now", "arguments": "{}"}}
FORMS: dict[str, tuple[list[Any], list[Any]]] = {
    "roles": (PLAIN, PLAIN),
    "from and value": ([{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}], PLAIN),
    "parts": (
        [
            {"role": "user", "content": [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]},
            {"role": "assistant", "content": [{"type": "text", "text": "hello"}]},
        ],
        PLAIN,
    ),
    "a developer": (
        [{"role": "developer", "content": "be kind"}, *PLAIN],
        [{"role": "system", "content": "be kind"}, *PLAIN],
    ),
    "a tool": (
        [
            PLAIN[0],
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
            {"role": "tool", "tool_call_id": "1", "content": "noon"},
            PLAIN[1],
        ],
        [
            PLAIN[0],
            {"role": "assistant", "content": "", "tool_calls": [CALL]},
            {"role": "tool", "content": "noon", "tool_call_id": "1"},
            PLAIN[1],
        ],
    ),
}


def read(path: Path) -> list[Any]:
    settings = DataSettings.model_validate({"source": str(path), "label": "", "messages": "talk"})
    return [json.loads(talk) for talk in read_table(settings, LANGUAGE).inputs["messages"]]


@pytest.mark.parametrize("form", FORMS)
def test_every_form_becomes_one(form: str, tmp_path: Path) -> None:
    given, expected = FORMS[form]
    (tmp_path / "t.jsonl").write_text(json.dumps({"talk": given}) + "\n")
    assert read(tmp_path / "t.jsonl") == [expected]
    pq.write_table(pa.Table.from_pylist([{"talk": given}]), tmp_path / "t.parquet")
    if form != "a tool":  # Arrow fills the fields that a message lacks with None
        assert read(tmp_path / "t.parquet") == [expected]


@pytest.mark.parametrize(
    ("message", "says"),
    [
        (
            {"role": "user", "content": [{"type": "image_url", "image_url": "x"}]},
            "image_url.* as content",
        ),
        ({"role": "assistant", "content": None}, "'assistant' .* None as content, expected"),
        ({"role": "assistant", "content": " "}, "'assistant' .* is empty"),
        ({"role": "user", "content": "\ud800"}, "half a character"),
        ({"role": "narrator", "content": "x"}, "narrator"),
        ({"who": "user", "content": "x"}, "expected a list of messages"),
    ],
)
def test_what_is_no_message_of_text_is_refused(message: Any, says: str, tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text(json.dumps({"talk": [message, *PLAIN]}) + "\n")
    with pytest.raises(DataError, match=says):
        read(tmp_path / "t.jsonl")
