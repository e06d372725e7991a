"""Select and compare rows of an audit's findings."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import isinf, isnan

from trifed.reports.audit.findings import Estimate, Findings, Knows, Reconstruction, Sees

MAIN_SCORE = {"text": "f1", "image": "psnr"}
"""The score of a reconstruction for each kind of example; higher is nearer to the original."""
CLEAR_AUC = 0.55
"""Members count as identified where the AUC's interval lies above this."""
LARGEST = 100.0
"""Shown for an infinite score; no image of 8 bits has a finite PSNR as large."""
SEES: tuple[Sees, ...] = ("update", "gradient")
KNOWS: tuple[Knows, ...] = ("factors", "start", "base")
"""From the attacker with the most knowledge to the one with the least."""


def methods_of(findings: Findings) -> tuple[str, ...]:
    """Return the audited method, its controls, then every other method that was attacked."""
    others = [row.method for row in attacks(findings)] + [row.method for row in findings.membership]
    others += [row.method for row in findings.labels] + [row.method for row in findings.means]
    return tuple(dict.fromkeys([findings.method, *findings.controls, *others]))


def attacks(findings: Findings, method: str | None = None) -> list[Reconstruction]:
    """Return reconstructions of one method, or of all; without the guesser's."""
    rows = [row for row in findings.reconstruction if row.attack != "guesser"]
    return [row for row in rows if method in (None, row.method)]


def guesses(findings: Findings) -> list[Reconstruction]:
    """Return the rows of the guesser, which sees nothing."""
    return [row for row in findings.reconstruction if row.attack == "guesser"]


def main_score(findings: Findings, row: Reconstruction) -> Estimate | None:
    """Return a row's main score; None if it is missing."""
    return finite(row.scores.get(MAIN_SCORE[findings.kind]))


def finite(found: Estimate | None) -> Estimate | None:
    """Limit infinite numbers, as the PSNR of an exact copy; None if one is not a number."""
    if found is None or any(map(isnan, (found.mean, found.low, found.high))):
        return None
    ends = [min(max(end, -LARGEST), LARGEST) if isinf(end) else end for end in (found.mean, found.low, found.high)]
    return Estimate(mean=ends[0], low=ends[1], high=ends[2])


def guess_for(findings: Findings, row: Reconstruction) -> Estimate | None:
    """Return the guesser's score at the same batch size, in the most similar setting; None without any."""

    def agreement(guess: Reconstruction) -> list[bool]:
        return [
            getattr(guess, name) == getattr(row, name) for name in ("trials", "method", "steps", "sees", "knows")
        ]

    known = [guess for guess in guesses(findings) if guess.batch == row.batch and main_score(findings, guess)]
    return main_score(findings, max(known, key=agreement)) if known else None


def is_above(findings: Findings, row: Reconstruction) -> bool | None:
    """Return True if the row's interval lies above the guesser's; None if one of them is missing."""
    found, guess = main_score(findings, row), guess_for(findings, row)
    return None if found is None or guess is None else found.low > guess.high


def best_first(findings: Findings, rows: Iterable[Reconstruction]) -> list[Reconstruction]:
    """Return the rows that have a score, the highest mean first."""
    known = [(found.mean, row) for row in rows if (found := main_score(findings, row)) is not None]
    return [row for _, row in sorted(known, key=lambda item: -item[0])]


def by_attacker(rows: Sequence[Reconstruction]) -> list[list[Reconstruction]]:
    """Group rows by what the attacker sees and knows: uploads first, then the most knowledge first."""
    groups = [[row for row in rows if (row.sees, row.knows) == (s, k)] for s in SEES for k in KNOWS]
    return [group for group in groups if group]
