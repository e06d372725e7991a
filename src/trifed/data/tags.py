"""Sentences as lists of words, with a tag for each word.

Words and tags of a sentence are JSON lists in one text each, as other cells are, so that rows can be compared and
hashed. Tags stand for entities if they follow a BIO scheme: "O", or B, I, E, S or L, U, a hyphen and a type.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import Any

from trifed.common.errors import DataError
from trifed.data.columns import Cell, is_blank, location, spelling

TAGS = "tags"
"""Name of the role of the tags."""
OUTSIDE = "O"

_ENTITY = re.compile(r"[BIESLU]-.+")
_HALF_CHARACTER = re.compile(r"[\ud800-\udfff]")
_EXPECTED = "expected a list of texts, or a text with spaces between its words"


def as_list(value: Any) -> list[Any] | None:
    """Return a cell as a list: a list, a JSON list in a text, or a text's words; None for any other value."""
    if hasattr(value, "tolist"):  # an array of NumPy
        value = value.tolist()
    if not isinstance(value, str):
        return list(value) if isinstance(value, list | tuple) else None
    text = value.strip()
    if not (text.startswith("[") and text.endswith("]")):
        return text.split()
    try:
        found = json.loads(text)
    except (json.JSONDecodeError, RecursionError):
        return None if "'" in text or '"' in text else text.split()  # a list as Python prints it, or a word
    return found if isinstance(found, list) else None


def read_words(column: Sequence[Cell], name: str) -> list[str]:
    """Return each sentence's words as a JSON list, (n,).

    Raises:
        DataError: A cell is no list of words, is empty, or has a word that is blank or no text.
    """
    return [_listed(cell, name, "word", lambda cell, name, value: _word(value)) for cell in column]


def read_tags(column: Sequence[Cell], name: str) -> list[str]:
    """Return each sentence's tags as a JSON list, (n,). Integers of a ClassLabel column become names.

    Raises:
        DataError: A cell is no list of tags, is empty, or has a tag that is blank, or neither text nor number.
    """
    return [_listed(cell, name, "tag", _tag) for cell in column]


def words_of(sentence: Any) -> str:
    """Return a caller's sentence, a text or a list of words, as a JSON list of words.

    Raises:
        DataError: It is neither, or has no words.
    """
    words = as_list(sentence)
    if not words or any(_word(word) is None for word in words):
        raise DataError(f"got {sentence!r:.60} as a sentence, {_EXPECTED}")
    return json.dumps(words, ensure_ascii=False)


def _listed(cell: Cell, name: str, kind: str, convert: Callable[[Cell, str, Any], str | None]) -> str:
    values = as_list(cell[2])
    if values is None:
        shown = f"{type(cell[2]).__name__} ({cell[2]!r:.60})"
        raise DataError(f"{location(cell)}: column {name!r} holds a {shown}, {_EXPECTED}. Name another column.")
    if not values:
        raise DataError(f"{location(cell)}: column {name!r} has no {kind}s. Fill them in or remove the row.")
    found = []
    for place, value in enumerate(values, start=1):
        text = convert(cell, name, value)
        if text is None:
            raise DataError(
                f"{location(cell)}: {kind} {place} in column {name!r} is {value!r:.60}, expected a {kind} as a "
                "text. Correct it or remove the row."
            )
        found.append(text)
    return json.dumps(found, ensure_ascii=False)


def _word(value: Any) -> str | None:
    usable = isinstance(value, str) and not is_blank(value) and not _HALF_CHARACTER.search(value)
    return value if usable else None


def _tag(cell: Cell, name: str, value: Any) -> str | None:
    names = cell[0].class_names.get(name)
    if names is not None and isinstance(value, int):
        return names[value] if 0 <= value < len(names) else None
    if is_blank(value) or isinstance(value, bool) or not isinstance(value, str | int):
        return None
    return spelling(value)


def check_lengths(column: Sequence[Cell], words: Sequence[str], tags: Sequence[str]) -> None:
    """Raise `DataError` for the first sentence without exactly one tag a word; all are JSON lists, (n,)."""
    for cell, sentence, row in zip(column, words, tags, strict=True):
        counts = len(json.loads(sentence)), len(json.loads(row))
        if counts[0] != counts[1]:
            raise DataError(
                f"{location(cell)}: got {counts[1]} tags for {counts[0]} words, expected one tag a word. Correct "
                "the row or remove it."
            )


def tag_names(rows: Sequence[str]) -> list[str]:
    """Return all tags of sentences, JSON lists of tags, sorted."""
    return sorted({tag for row in rows for tag in json.loads(row)})


def tag_numbers(rows: Sequence[str], names: Sequence[str], where: str) -> list[str]:
    """Return the place of each tag in `names`, as a JSON list for each sentence, (n,).

    Args:
        rows: JSON lists of tags, (n,).
        names: All tags.
        where: What the tags belong to, for the message.

    Raises:
        DataError: `names` has a tag twice, or a sentence has a tag that is not in it.
    """
    index = {spelling(name): place for place, name in enumerate(names)}
    if len(index) < len(names):
        raise DataError(f"data.labels: got one tag twice in {', '.join(names)}; leave one out")
    unknown = sorted(set(tag_names(rows)) - set(index))
    if unknown:
        more = f" and {len(unknown) - 8} more" if len(unknown) > 8 else ""
        raise DataError(
            f"{where}: got other tags, {', '.join(unknown[:8])}{more}; expected some of {', '.join(names)}. "
            "Correct the rows, or name all tags in data.labels"
        )
    return [json.dumps([index[tag] for tag in json.loads(row)]) for row in rows]


def tag_counts(rows: Sequence[str], count: int) -> list[int]:
    """Return how many words have each of `count` tags, of sentences as `tag_numbers` returns them."""
    found = [0] * count
    for row in rows:
        for number in json.loads(row):
            found[number] += 1
    return found


def are_entities(names: Sequence[str]) -> bool:
    """Return whether tags stand for entities, by a BIO scheme."""
    return any(name != OUTSIDE for name in names) and all(
        name == OUTSIDE or _ENTITY.fullmatch(name) for name in names
    )
