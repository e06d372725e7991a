"""Findings of an audit as they are kept in `audit.json`, and the selection and comparison of their rows.

Every number has its interval and its attacker. Estimates are means over trials with 95 % bootstrap intervals.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import isinf, isnan
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from trifed.common.errors import RunError

Knows = Literal["base", "start", "factors"]
"""Knowledge of the attacker beside W0: nothing; the initial A and B, from a shared seed; the current A and B."""
Sees = Literal["gradient", "update"]
"""View of the attacker: the plain gradient of one batch, which shows the most, or a client's upload of a round."""
View = Literal["single", "sum", "others", "colluding"]
"""Clients behind an observation: one; all of a sum, as the server of a sealed run sees it; those of the sum
without the attacker, which is a site that takes its own part out of the sum; those without several sites that
work together."""
Over = Literal["round", "mean", "highest", "difference", "departure"]
"""Rounds behind a score of membership: one; the mean or the highest of several; the difference of two in turn; the
difference of the sums before and after the attacked client leaves."""
Attack = Literal["embedding", "span", "matching", "guesser"]

SEES: tuple[Sees, ...] = ("update", "gradient")
VIEWS: tuple[View, ...] = ("single", "sum", "others", "colluding")
KNOWS: tuple[Knows, ...] = ("factors", "start", "base")
"""From the attacker with the most knowledge to the one with the least."""
MAIN_SCORE = {"text": "f1", "image": "psnr"}
"""The score of a reconstruction for each kind of example; higher is nearer to the original."""
CLEAR_AUC = 0.55
"""Members count as identified where the AUC's interval lies above this."""
LARGEST = 100.0
"""Shown for an infinite score; no image of 8 bits has a finite PSNR as large."""


class _Found(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Estimate(_Found):
    """A mean and its 95 % interval."""

    mean: float
    low: float
    high: float


class _Row(_Found):
    method: str


class Attempt(_Found):
    """One trial: the examples and their reconstructions, as texts or as PNG data URIs."""

    original: list[str]
    found: list[str]


class _ViewRow(_Row):
    """A result with its view and the number of clients that the view is made of."""

    view: View = "single"
    clients: int = 1


class Reconstruction(_ViewRow):
    """Similarity of an attack's reconstructions to the examples.

    Attributes:
        batch: Examples of each client.
        tokens: Number of tokens that an upload covers, mean over trials; None for images.
        scores: For text precision, recall, f1, rouge1, rouge2, rougeL, exact; for images psnr (dB), ssim, mse,
            distance (between features of the base model).
    """

    attack: Attack
    sees: Sees
    knows: Knows
    batch: int
    steps: int
    tokens: float | None
    trials: int
    scores: dict[str, Estimate]
    attempts: list[Attempt]


class Membership(_ViewRow):
    """An attack that decides if an example is a client's: AUC, and true positives at 1 % false ones.

    `examples`: mean number behind an upload, or behind a component of a summary. `rounds`: the observed rounds.
    """

    over: Over = "round"
    rounds: int = 1

    source: Literal["update", "summary"]
    sees: Sees | None
    knows: Knows
    examples: float
    members: int
    others: int
    auc: Estimate
    tpr: Estimate


class Labels(_ViewRow):
    """An attack on the labels of a batch: F1 over labels with their multiplicity, and the F1 of a guesser."""

    sees: Sees
    knows: Knows
    batch: int
    trials: int
    f1: Estimate
    guesser: Estimate


class Means(_Row):
    """An attack on a summary: is the example nearest to a mean one of those behind it?

    Attributes:
        examples: Mean number of examples behind a component.
        found: Share of components for which it is, among members and as many others.
        chance: The same share for a random choice.
    """

    examples: float
    components: int
    found: Estimate
    chance: float
    attempts: list[Attempt]


class Claim(_Found):
    """A claim about the method, the result of its test, and the numbers behind it."""

    claim: str
    holds: bool
    why: str


class Findings(_Found):
    """One audit. `method`: the audited one, the others are controls; `round`: the attacked round.

    `sealed`: whether the server of the audited run sees only sums.
    """

    format: Literal[1] = 1
    name: str
    method: str
    task: str
    kind: Literal["text", "image"]
    client: str
    round: int
    rank: int
    sealed: bool = False
    controls: list[str]
    finished: bool
    seconds: float
    claims: list[Claim]
    reconstruction: list[Reconstruction]
    membership: list[Membership]
    labels: list[Labels]
    means: list[Means]
    notes: list[str]
    configuration: dict[str, Any]
    environment: dict[str, Any]


def read_findings(path: Path) -> Findings:
    """Read `audit.json`.

    Raises:
        RunError: The file does not exist, or is not an audit's.
    """
    try:
        return Findings.model_validate_json(path.read_bytes())
    except OSError as error:
        raise RunError(f"{path}: cannot be read ({error.strerror}); `trifed audit` writes it") from error
    except ValidationError as error:
        raise RunError(f"{path}: not an audit's findings ({error.error_count()} mistakes); audit again") from error


def methods_of(findings: Findings) -> tuple[str, ...]:
    """Return the audited method, its controls, then every other method that was attacked."""
    rows = [*attacks(findings), *findings.membership, *findings.labels, *findings.means]
    return tuple(dict.fromkeys([findings.method, *findings.controls, *(row.method for row in rows)]))


def real_views(sealed: bool) -> tuple[View, ...]:
    """Return the views that somebody has of the audited run: of a sealed run sums, otherwise single uploads."""
    return ("sum", "others") if sealed else ("single",)


def in_view(findings: Findings, row: _ViewRow) -> bool:
    """Return True if somebody has this row's view of its method's run; controls are never sealed."""
    return row.view in real_views(findings.sealed and row.method == findings.method)


def attacks(findings: Findings, method: str | None = None) -> list[Reconstruction]:
    """Return reconstructions of one method, or of all; without the guesser's."""
    rows = [row for row in findings.reconstruction if row.attack != "guesser"]
    return [row for row in rows if method in (None, row.method)]


def guesses(findings: Findings) -> list[Reconstruction]:
    """Return the rows of the guesser, which sees nothing."""
    return [row for row in findings.reconstruction if row.attack == "guesser"]


def finite(found: Estimate | None) -> Estimate | None:
    """Limit infinite numbers, as the PSNR of an exact copy; None if one is not a number."""
    if found is None or any(isnan(value) for _, value in found):
        return None
    return Estimate(**{name: min(max(v, -LARGEST), LARGEST) if isinf(v) else v for name, v in found})


def main_score(findings: Findings, row: Reconstruction) -> Estimate | None:
    """Return a row's main score; None if it is missing."""
    return finite(row.scores.get(MAIN_SCORE[findings.kind]))


def guess_for(findings: Findings, row: Reconstruction) -> Estimate | None:
    """Return the guesser's score at the same batch size, in the most similar setting; None without any."""

    def agreement(guess: Reconstruction) -> list[bool]:
        return [
            getattr(guess, name) == getattr(row, name) for name in ("trials", "method", "steps", "sees", "knows")
        ]

    same = [guess for guess in guesses(findings) if (guess.batch, guess.view) == (row.batch, row.view)]
    known = [guess for guess in same if main_score(findings, guess)]
    return main_score(findings, max(known, key=agreement)) if known else None


def is_above(findings: Findings, row: Reconstruction) -> bool | None:
    """Return True if the row's interval lies above the guesser's; None if one of them is missing."""
    found, guess = main_score(findings, row), guess_for(findings, row)
    return None if found is None or guess is None else found.low > guess.high


def best_first(findings: Findings, rows: Iterable[Reconstruction]) -> list[Reconstruction]:
    """Return the rows that have a score, the highest mean first."""
    known = [(found.mean, row) for row in rows if (found := main_score(findings, row)) is not None]
    return [row for _, row in sorted(known, key=lambda item: -item[0])]
