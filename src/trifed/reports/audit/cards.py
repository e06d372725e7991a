"""Examples beside their reconstructions: texts with the matching words marked, or pictures."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from trifed.reports.audit.findings import Attempt

PICTURE = re.compile(r"data:image/png;base64,[A-Za-z0-9+/]+={0,2}")
"""Addresses that a page may contain; any other address would be fetched."""
MOST_PAIRS = 3
LONGEST = 600
"""Most characters of a text that a card shows."""

Pieces = tuple[tuple[str, bool], ...]


@dataclass(frozen=True)
class Side:
    """A text in pieces, each with whether it is marked; or a picture's data URI."""

    pieces: Pieces = ()
    picture: str = ""


@dataclass(frozen=True)
class Pair:
    """An example and its reconstruction."""

    original: Side
    found: Side


@dataclass(frozen=True)
class Card:
    """Pairs under a title. `says`: heading of the second of each pair; `colour`: a CSS variable."""

    title: str
    note: str
    says: str
    colour: str
    pairs: tuple[Pair, ...]

    @property
    def pictures(self) -> bool:
        """Return True if the examples are pictures."""
        return any(pair.original.picture for pair in self.pairs)


def pairs_of(attempt: Attempt, kind: str) -> tuple[Pair, ...]:
    """Return the first few examples of an attempt."""
    both = zip(attempt.original, attempt.found, strict=False)
    pair = text_pair if kind == "text" else picture_pair
    return tuple(pair(original, found) for original, found in list(both)[:MOST_PAIRS])


def text_pair(original: str, found: str) -> Pair:
    """Mark the words that both texts have, as often as both have them; case does not count."""
    one, other = original[:LONGEST].split(), found[:LONGEST].split()
    common = Counter(map(_plain, one)) & Counter(map(_plain, other))
    return Pair(Side(_marked(one, common.copy())), Side(_marked(other, common.copy())))


def _marked(words: Sequence[str], left: Counter[str]) -> Pieces:
    """Return runs of words, alternately marked and not."""
    runs: list[tuple[str, bool]] = []
    for word in words:
        right = left[_plain(word)] > 0
        left[_plain(word)] -= right
        if runs and runs[-1][1] == right:
            runs[-1] = (f"{runs[-1][0]} {word}", right)
        else:
            runs.append((word, right))
    return tuple(runs)


def _plain(word: str) -> str:
    """Return a word for comparison: lower case, without punctuation at its ends unless it is nothing else."""
    return word.casefold().strip(".,;:!?\"'()") or word


def picture_pair(original: str, found: str) -> Pair:
    """Return pictures that are inside the file; other addresses are left out, so that nothing is fetched."""
    return Pair(*(Side(picture=text if PICTURE.fullmatch(text) else "") for text in (original, found)))


def closeness(attempt: Attempt) -> float:
    """Return the share of marked words, by which one of several attempts is chosen."""
    pairs = [text_pair(*both) for both in zip(attempt.original, attempt.found, strict=False)]
    pieces = [piece for pair in pairs for side in (pair.original, pair.found) for piece in side.pieces]
    words = sum(len(text.split()) for text, _ in pieces)
    return sum(len(text.split()) for text, right in pieces if right) / words if words else 0.0
