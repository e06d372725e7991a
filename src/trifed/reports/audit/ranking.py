"""Looking things up in an audit's findings: whose rows there are, what a guesser has, what is above it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import isinf, isnan

from trifed.reports.audit.findings import (
    Estimate,
    Findings,
    Knows,
    Labels,
    Means,
    Membership,
    Reconstruction,
    Sees,
)

MAIN_SCORE = {"text": "f1", "image": "psnr"}
"""What a reconstruction is judged by, for each kind of example; more is nearer to the original."""
CLEAR_AUC = 0.55
"""An area under the curve whose interval lies above this tells members from others."""
LARGEST = 100.0
"""What is shown for an infinite score; no image of 8 bits has a finite PSNR as large."""
SEES: tuple[Sees, ...] = ("update", "gradient")
KNOWS: tuple[Knows, ...] = ("factors", "start", "base")
"""From the attacker who knows most to the one who knows least."""

ServerContext = tuple[Sees, Knows]


def methods_of(findings: Findings) -> tuple[str, ...]:
    """The audited method, its controls, then whatever else was attacked; the guesser is no method."""
    others = [row.method for row in attacks(findings)]
    others += [row.method for row in findings.membership] + [row.method for row in findings.labels]
    others += [row.method for row in findings.means]
    return tuple(dict.fromkeys([findings.method, *findings.controls, *others]))


def attacks(findings: Findings, method: str | None = None) -> list[Reconstruction]:
    """What attacks on a method, or on any, gave back; without the guesser."""
    rows = [row for row in findings.reconstruction if row.attack != "guesser"]
    return [row for row in rows if method in (None, row.method)]


def guesses(findings: Findings) -> list[Reconstruction]:
    """What guessing gives, which sees nothing."""
    return [row for row in findings.reconstruction if row.attack == "guesser"]


def main_score(findings: Findings, row: Reconstruction) -> Estimate | None:
    """The score that a row is judged by; None where it is missing."""
    return finite(row.scores.get(MAIN_SCORE[findings.kind]))


def finite(found: Estimate | None) -> Estimate | None:
    """With no infinite number, as the PSNR of an exact copy is; None where one is not a number at all."""
    if found is None or any(map(isnan, (found.mean, found.low, found.high))):
        return None
    ends = [min(max(end, -LARGEST), LARGEST) if isinf(end) else end for end in (found.mean, found.low, found.high)]
    return Estimate(mean=ends[0], low=ends[1], high=ends[2])


def guess_for(findings: Findings, row: Reconstruction) -> Estimate | None:
    """The guesser's score at the same batch, if there is one on the same trials; the setting most alike."""

    def alike(guess: Reconstruction) -> tuple[bool, ...]:
        pairs = [(guess.trials, row.trials), (guess.method, row.method), (guess.steps, row.steps)]
        return tuple(one == other for one, other in [*pairs, (guess.sees, row.sees), (guess.knows, row.knows)])

    known = [guess for guess in guesses(findings) if guess.batch == row.batch and main_score(findings, guess)]
    return main_score(findings, max(known, key=alike)) if known else None


def is_above(findings: Findings, row: Reconstruction) -> bool | None:
    """Does the row's interval lie above the guesser's? None where one of them is missing."""
    found, guess = main_score(findings, row), guess_for(findings, row)
    return None if found is None or guess is None else found.low > guess.high


def compared(findings: Findings, rows: Iterable[Reconstruction]) -> list[Reconstruction]:
    """Rows that there is a guesser for."""
    return [row for row in rows if is_above(findings, row) is not None]


def best_first(findings: Findings, rows: Iterable[Reconstruction]) -> list[Reconstruction]:
    """Rows with a score, the highest mean first."""
    known = [(found.mean, row) for row in rows if (found := main_score(findings, row)) is not None]
    return [row for _, row in sorted(known, key=lambda item: -item[0])]


def by_setting(rows: Sequence[Reconstruction]) -> dict[ServerContext, list[Reconstruction]]:
    """Rows by what the attacker sees and knows, what is really sent and the best informed first."""
    groups = {(s, k): [row for row in rows if (row.sees, row.knows) == (s, k)] for s in SEES for k in KNOWS}
    return {setting: group for setting, group in groups.items() if group}


def tells_members(row: Membership) -> bool:
    """Are members told from others, by more than noise?"""
    return row.auc.low > CLEAR_AUC


def tells_labels(row: Labels) -> bool:
    """Are a batch's labels found more often than by guessing?"""
    return row.f1.low > row.guesser.high


def tells_examples(row: Means) -> bool:
    """Do means of a summary lead to the examples behind them more often than chance?"""
    return row.found.low > row.chance
