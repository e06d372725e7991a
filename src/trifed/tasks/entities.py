"""Entities in sequences of tags, as `seqeval` and CoNLL's evaluation script count them.

Tjong Kim Sang and De Meulder, "Introduction to the CoNLL-2003 Shared Task", CoNLL 2003. As in seqeval's default
mode, an entity may also begin with I: after O, or after an entity of another type.
"""

from __future__ import annotations

from collections.abc import Sequence

Entity = tuple[str, int, int]
"""Type, first and last word of an entity."""

ENDS = {"L": "E", "U": "S"}
"""Prefixes of the BILOU scheme by those of BIOES."""


def entities(tags: Sequence[str]) -> list[Entity]:
    """Return the entities of a sentence's tags, in order."""
    found: list[Entity] = []
    start, before, kind_before = 0, "O", ""
    for place, tag in enumerate([*tags, "O"]):
        prefix, _, kind = tag.partition("-")
        prefix = ENDS.get(prefix, prefix)
        if _ends(before, prefix, kind_before != kind):
            found.append((kind_before, start, place - 1))
        if _begins(before, prefix, kind_before != kind):
            start = place
        before, kind_before = prefix, kind
    return found


def _ends(before: str, now: str, other_kind: bool) -> bool:
    """Return whether an entity ends between two tags with these prefixes."""
    if before in ("E", "S"):
        return True
    return before != "O" and (now in ("B", "S", "O") or other_kind)


def _begins(before: str, now: str, other_kind: bool) -> bool:
    """Return whether an entity begins with the second of two tags with these prefixes."""
    if now in ("B", "S"):
        return True
    return now != "O" and (before in ("E", "S", "O") or other_kind)


def count_entities(true: Sequence[str], predicted: Sequence[str]) -> tuple[int, int, int]:
    """Return the numbers of true, predicted and rightly predicted entities, by type, first and last word."""
    first, second = set(entities(true)), set(entities(predicted))
    return len(first), len(second), len(first & second)
