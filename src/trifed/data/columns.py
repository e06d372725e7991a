"""Convert raw cells to texts, conversations, labels and client names, with errors that name the row."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from trifed.common.errors import DataError
from trifed.data.readers import RawTable

Cell = tuple[RawTable, int, Any]
"""One cell: its table, its index in that table, its value."""

SPEAKERS = ("system", "user", "assistant", "tool")
OTHER_NAMES = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "developer": "system",
    "function": "tool",
    "observation": "tool",
}
"""Roles by the names that other formats of conversations give them."""

_NUMBER = re.compile(r"[+-]?((?!0\d)\d+|\d+\.\d*|\.\d+)")
"""A number in a CSV file, but no code with leading zeros, such as 007."""
WHOLE = re.compile(r"-?(0|[1-9]\d*)")
_HALF_CHARACTER = re.compile(r"[\ud800-\udfff]")
_NOT_A_NUMBER = frozenset({"nan", "na", "n/a", "#n/a", "<na>", "null"})
"""Spellings of a missing number in a file of texts, in lower case."""
_HALF = (
    lambda value: isinstance(value, str) and _HALF_CHARACTER.search(value),
    "the text in column {name!r} holds half a character (a lone surrogate)",
    "Write it again.",
)
_CONVERSATION = 'expected a list of messages such as {"role": "user", "content": "..."}'


@dataclass(frozen=True)
class Unusable:
    """A cell that cannot be used, with its location ("file, row 3") and the reason."""

    location: str
    reason: str


def location(cell: Cell) -> str:
    """Return the location of a cell, such as "file, row 3"."""
    table, index, _ = cell
    return f"{table.where}, {table.unit} {table.rows[index]}"


def cells(tables: Sequence[RawTable], column: str) -> list[Cell]:
    """Return one column of all tables, in order."""
    return [(table, i, value) for table in tables for i, value in enumerate(table.columns[column])]


def is_blank(value: Any) -> bool:
    """Return True for None, NaN (which differs from itself), and a text of nothing but spaces."""
    missing = value is None or (isinstance(value, float) and value != value)
    return missing or (isinstance(value, str) and not value.strip())


def _refuse(column: Sequence[Cell], name: str, wrong: Callable[[Any], object], problem: str, remedy: str) -> None:
    """Raise `DataError` about the first wrong value; `problem` may hold `{name}`, `{kind}` and `{value}`."""
    bad = [cell for cell in column if wrong(cell[2])]
    if bad:
        value = bad[0][2]
        found = problem.format(name=name, kind=type(value).__name__, value=value)
        others = f" ({len(bad)} such rows in all)" if len(bad) > 1 else ""
        raise DataError(f"{location(bad[0])}: {found}{others}. {remedy}")


def read_texts(column: Sequence[Cell], name: str) -> list[str]:
    """Return a column's texts, (n,).

    Raises:
        DataError: A cell is no string, is blank, or holds a lone surrogate.
    """
    _refuse(
        column,
        name,
        lambda value: not is_blank(value) and not isinstance(value, str),
        "column {name!r} holds a {kind} ({value!r:.60}), expected a text",
        "Name a text column.",
    )
    _refuse(column, name, is_blank, "the text in column {name!r} is empty", "Fill it in or remove the row.")
    _refuse(column, name, *_HALF)
    return [value for _, _, value in column]


def read_optional_texts(column: Sequence[Cell], name: str) -> list[str]:
    """Return a column's texts, (n,), with empty texts for missing ones."""
    return ["" if is_blank(cell[2]) else read_texts([cell], name)[0] for cell in column]


def read_conversations(column: Sequence[Cell], name: str, *, answered: bool = True) -> list[str]:
    """Return conversations, (n,), as JSON lists of messages with `role` and `content`.

    Raises:
        DataError: A cell is no conversation, or, if `answered`, has no message of the assistant or an empty one.
    """
    talks = [(table, i, _conversation((table, i, value), name, answered)) for table, i, value in column]
    if answered:
        _refuse(
            talks,
            name,
            lambda talk: any(map(_is_empty_answer, talk)),
            "a message of the role 'assistant' in column {name!r} is empty, so that there is nothing to learn",
            "Fill it in or remove the row.",
        )
    written = [(table, i, json.dumps(talk, ensure_ascii=False)) for table, i, talk in talks]
    _refuse(written, name, *_HALF)
    return [text for _, _, text in written]


def _is_empty_answer(message: Mapping[str, Any]) -> bool:
    return message["role"] == "assistant" and not message["content"].strip() and "tool_calls" not in message


def are_conversations(column: Sequence[Cell]) -> bool:
    """Return whether the first cell of a column is a list of messages, or a text of one."""
    value = column[0][2] if column else None
    return isinstance(value, list) or (isinstance(value, str) and value.lstrip().startswith("[{"))


def before_answer(messages: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], str]:
    """Split a conversation: the messages before the last one of the assistant, and its text.

    Without a message of the assistant, all messages and an empty text.
    """
    last = next((i for i in reversed(range(len(messages))) if messages[i]["role"] == "assistant"), None)
    return (list(messages), "") if last is None else (list(messages[:last]), str(messages[last]["content"]))


def _conversation(cell: Cell, name: str, answered: bool) -> list[dict[str, Any]]:
    value = cell[2]
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise DataError(
                f"{location(cell)}: column {name!r} holds no JSON ({error.msg}); {_CONVERSATION}"
            ) from error
    if not isinstance(value, list) or not value:
        raise DataError(f"{location(cell)}: column {name!r} holds a {type(value).__name__}; {_CONVERSATION}")
    messages = [_message(cell, name, message) for message in value]
    if answered and not any(message["role"] == "assistant" for message in messages):
        raise DataError(
            f"{location(cell)}: got a conversation without the role 'assistant' in column {name!r}; "
            f"{_CONVERSATION}"
        )
    return messages


def _message(cell: Cell, name: str, message: Any) -> dict[str, Any]:
    """Return a message of OpenAI's form (`role`, `content`) or ShareGPT's (`from`, `value`) in the first form."""
    found = message if isinstance(message, Mapping) else {}
    keys = next((keys for keys in (("role", "content"), ("from", "value")) if set(keys) <= set(found)), None)
    if keys is None:
        raise DataError(f"{location(cell)}: a message in column {name!r} is {message!r:.60}; {_CONVERSATION}")
    role, content, calls = found[keys[0]], _as_text(found[keys[1]]), found.get("tool_calls")
    role = OTHER_NAMES.get(role, role) if isinstance(role, str) else role
    content = "" if content is None and calls else content
    if role not in SPEAKERS:
        raise DataError(
            f"{location(cell)}: a message in column {name!r} has the role {role!r:.30}, expected one of "
            f"{', '.join(SPEAKERS)}"
        )
    if not isinstance(content, str):
        raise DataError(
            f"{location(cell)}: a message of the role {role!r} in column {name!r} has {content!r:.60} as content, "
            "expected a text, or a list of parts with a text each"
        )
    more = {key: found[key] for key in ("tool_calls", "tool_call_id", "name") if found.get(key)}
    return {"role": role, "content": content, **more}


def _as_text(content: Any) -> Any:
    """Join a content that is given in parts of text; return any other content as it is."""
    parts = content if isinstance(content, list) else []
    if parts and all(isinstance(part, Mapping) and isinstance(part.get("text"), str) for part in parts):
        return "".join(part["text"] for part in parts)
    return content


def read_groups(column: Sequence[Cell], name: str) -> list[str]:
    """Return each row's client, (n,).

    Raises:
        DataError: A cell is empty, or neither a text nor a number.
    """
    _refuse(column, name, is_blank, "the client column {name!r} is empty", "Fill it in or remove the row.")
    _refuse(
        column,
        name,
        lambda value: not isinstance(value, str | int | float),
        "the client column {name!r} holds a {kind}, expected a text or a number",
        "Name another.",
    )
    _refuse(column, name, *_HALF)
    return [
        str(int(value)) if isinstance(value, float) and value.is_integer() else str(value).strip()
        for _, _, value in column
    ]


def spelling(label: str | int | float) -> str:
    """Return the one spelling of a label, whatever kind of file it is in and whatever labels are in other rows.

    Whole numbers are their digits (`1.0`, `+1` and `1` are one label, `007` is another), and truth values are
    `True` and `False`. Other texts stay, without spaces around them, and with one code for a letter and its
    accent: names of folders on a Mac have two.
    """
    if isinstance(label, bool | int):
        return str(label)
    text = repr(label) if isinstance(label, float) else unicodedata.normalize("NFC", label.strip())
    if isinstance(label, float) or _NUMBER.fullmatch(text):
        return str(int(Decimal(text))) if float(text).is_integer() else text
    return text.capitalize() if text.lower() in ("true", "false") else text


def read_labels(column: Sequence[Cell], name: str, *, fractions: bool = False) -> list[str] | list[int]:
    """Return a column's labels, (n,), all integers or all strings.

    The integers of a ClassLabel column become names.

    Args:
        column: The cells.
        name: The column.
        fractions: Take numbers that are not whole, where the labels are known from elsewhere.

    Raises:
        DataError: A label is missing, is a number that is not whole or another type, or integers and strings are
            mixed in a file that tells them apart.
    """
    named = [(table, i, _class_name(table, name, value)) for table, i, value in column]
    _refuse(
        named,
        name,
        is_blank,
        "the label in column {name!r} is missing",
        "Give every row a label or remove the row.",
    )
    _refuse(
        named,
        name,
        lambda value: not isinstance(value, str | int | float),
        "column {name!r} holds a {kind}, expected a whole number or a text",
        "Name another column.",
    )
    _refuse(named, name, *_HALF)
    if not fractions:
        _check_classes(named, name)
    _check_one_type(named, name)
    labels = [spelling(value) for _, _, value in named]
    return [int(label) for label in labels] if all(map(WHOLE.fullmatch, labels)) else labels


def _check_classes(column: Sequence[Cell], name: str) -> None:
    """Raise `DataError` if the labels of which no list is given are no classes, or one class in two spellings."""
    numbers = [cell for cell in column if _is_number(cell)]
    rest = [cell for cell in column if not _is_number(cell)]
    if numbers and all(_is_missing_number(value) for _, _, value in rest):
        _refuse(
            rest,
            name,
            _is_missing_number,
            "the label in column {name!r} is {value!r} among numbers, as a missing number is written",
            "Give every row a label or remove the row; if it is a class, list all classes in data.labels.",
        )
        _refuse(
            numbers,
            name,
            lambda value: not float(value).is_integer(),
            "the label in column {name!r} is {value!r}, expected a whole number or a text",
            "A label names a class; another column may be the one that holds them. If such numbers are classes, "
            "list all of them in data.labels.",
        )
    if {"0", "1"} & {spelling(value) for _, _, value in numbers}:
        _refuse(
            rest,
            name,
            lambda value: spelling(value) in ("True", "False"),
            "the label in column {name!r} is {value!r}, and others are 0 or 1, which may be the same classes",
            "Spell each class in one way; if they are different classes, list all of them in data.labels.",
        )


def _class_name(table: RawTable, column: str, value: Any) -> Any:
    """Return the name of a ClassLabel's integer (None if it has none), and any other value unchanged."""
    names = table.class_names.get(column)
    if names is None or not isinstance(value, int):
        return value
    return names[value] if 0 <= value < len(names) else None


def _is_number(cell: Cell) -> bool:
    table, _, value = cell
    if isinstance(value, str):
        return table.untyped and bool(_NUMBER.fullmatch(value.strip()))
    return not isinstance(value, bool)


def _is_missing_number(value: Any) -> bool:
    return isinstance(value, str) and value.strip().lower() in _NOT_A_NUMBER


def _check_one_type(column: Sequence[Cell], name: str) -> None:
    """Raise `DataError` if files that tell texts and numbers apart have both."""
    texts = [cell for cell in column if isinstance(cell[2], str) and not cell[0].untyped]
    numbers = [cell for cell in column if not isinstance(cell[2], str)]
    if texts and numbers:
        raise DataError(
            f"column {name!r} mixes texts and numbers as labels: {texts[0][2]!r} in {location(texts[0])}, "
            f"{numbers[0][2]!r} in {location(numbers[0])}; expected one kind. Write all of them as texts, or all "
            "as integers."
        )
