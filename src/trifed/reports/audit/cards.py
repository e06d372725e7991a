"""Examples beside their reconstructions, as cards: texts with the matching words marked, or pictures."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from trifed.reports.audit.findings import (
    Attempt,
    Findings,
    Reconstruction,
    attacks,
    best_first,
    guesses,
    in_view,
    main_score,
    methods_of,
)
from trifed.reports.audit.tables import SHORT_KNOWS, reconstruction_table
from trifed.reports.document import Block, Card, Pair, Side
from trifed.reports.figures import LIGHT

PICTURE = re.compile(r"data:image/png;base64,[A-Za-z0-9+/]+={0,2}")
"""Addresses that a page may contain; any other address would be fetched."""
MOST_PAIRS = 3
LONGEST = 600
"""Most characters of a text that a card shows."""
SCORE = {"text": "F1 {:.2f} ({:.2f} to {:.2f})", "image": "{:.1f} dB ({:.1f} to {:.1f})"}
NOTE = {
    "text": "For each method and attack the best setting, and the trial in which most came back. Words that "
    "both texts have are marked.",
    "image": "For each method and attack the best setting, and its first trial.",
}


def gallery(findings: Findings) -> Block:
    """Return examples beside reconstructions, for each method and attack at its best."""
    seen = [row for row in attacks(findings) if in_view(findings, row)]
    by_method = [[row for row in seen if row.method == method] for method in methods_of(findings)]
    rows = [row for mine in by_method for row in _best_of_each(findings, mine)]
    rows += _best_of_each(findings, guesses(findings))[:1]
    table = reconstruction_table(findings, rows, "Each attack at its best", NOTE[findings.kind])
    shown = table.only("method", "attack", "sees", "knows", "batch", "steps", "tokens")
    return Block(shown, cards=tuple(_card(findings, row) for row in rows))


def _best_of_each(findings: Findings, rows: Sequence[Reconstruction]) -> list[Reconstruction]:
    """Return the best row of each attack that kept examples, best attack first."""
    best: dict[str, Reconstruction] = {}
    for row in best_first(findings, [row for row in rows if row.attempts]):
        best.setdefault(row.attack, row)
    return list(best.values())


def _card(findings: Findings, row: Reconstruction) -> Card:
    score = main_score(findings, row)
    shown = SCORE[findings.kind].format(score.mean, score.low, score.high) if score else "-"
    pairs = _closest(findings, row.attempts)
    if row.attack == "guesser":
        return Card("guesser", f"{shown}; sees nothing; batch of {row.batch}", "guess", "--faint", pairs)
    note = f"{shown}; sees {row.sees}, knows {SHORT_KNOWS[row.knows]}; batch of {row.batch}"
    colour = _colour(findings, row.method)
    return Card(f"{row.method}, {row.attack} attack", note, "reconstruction", colour, pairs)


def means_cards(findings: Findings) -> tuple[Card, ...]:
    """Return for each method the trial in which a mean of its summary lay nearest to an example."""
    worst_first = sorted(findings.means, key=lambda row: row.found.mean)
    return tuple(
        Card(
            f"{method}, summary",
            f"{row.examples:.4g} examples a mean",
            "the example nearest to a mean",
            _colour(findings, method),
            _closest(findings, row.attempts),
        )
        for method, row in {row.method: row for row in worst_first if row.attempts}.items()
    )


def _colour(findings: Findings, method: str) -> str:
    return f"--series-{methods_of(findings).index(method) % len(LIGHT.series)}"


def _closest(findings: Findings, attempts: Sequence[Attempt]) -> tuple[Pair, ...]:
    """Return the first few examples of the attempt in which most came back."""
    best = max(attempts, key=closeness)
    pair = text_pair if findings.kind == "text" else picture_pair
    return tuple(map(pair, best.original[:MOST_PAIRS], best.found))


def text_pair(original: str, found: str) -> Pair:
    """Mark the words that both texts have, as often as both have them; case does not count."""
    one, other = original[:LONGEST].split(), found[:LONGEST].split()
    common = Counter(map(_plain, one)) & Counter(map(_plain, other))
    return Pair(_marked(one, common.copy()), _marked(other, common))


def _marked(words: Sequence[str], left: Counter[str]) -> Side:
    """Return runs of words, alternately marked and not."""
    runs: list[tuple[str, bool]] = []
    for word in words:
        right = left[_plain(word)] > 0
        left[_plain(word)] -= right
        before = runs.pop()[0] if runs and runs[-1][1] == right else ""
        runs.append((f"{before} {word}".lstrip(), right))
    return Side(tuple(runs))


def _plain(word: str) -> str:
    """Return a word for comparison: lower case, without punctuation at its ends unless it is nothing else."""
    return word.casefold().strip(".,;:!?\"'()") or word


def picture_pair(original: str, found: str) -> Pair:
    """Return pictures that are inside the file; other addresses are left out, so that nothing is fetched."""
    return Pair(*(Side(picture=text if PICTURE.fullmatch(text) else "") for text in (original, found)))


def closeness(attempt: Attempt) -> float:
    """Return the share of marked words, by which one of several attempts is chosen."""
    pairs = map(text_pair, attempt.original, attempt.found)
    pieces = [piece for pair in pairs for side in pair for piece in side.pieces]
    words = sum(len(text.split()) for text, _ in pieces)
    return sum(len(text.split()) for text, right in pieces if right) / words if words else 0.0
