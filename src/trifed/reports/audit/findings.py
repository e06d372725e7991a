"""Findings of an audit as they are kept in `audit.json`: every number with its interval and its attacker.

Estimates are means over trials with 95 % bootstrap intervals.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from trifed.common.errors import RunError

Knows = Literal["base", "start", "factors"]
"""What the attacker has beside W0: nothing; the initial A and B, from a shared seed; the current A and B."""
Sees = Literal["gradient", "update"]
"""The plain gradient of one batch, the most an upload could ever show; or a client's real upload of a round."""
Attack = Literal["embedding", "span", "matching", "guesser"]


class _Found(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Estimate(_Found):
    """A mean and its 95 % interval."""

    mean: float
    low: float
    high: float


class Attempt(_Found):
    """One trial: the examples and their reconstructions, as texts or as PNG data URIs."""

    original: list[str]
    found: list[str]


class Reconstruction(_Found):
    """Similarity of an attack's reconstructions to the examples.

    Attributes:
        tokens: Number of tokens that an upload covers, mean over trials; None for images.
        scores: For text precision, recall, f1, rouge1, rouge2, rougeL, exact; for images psnr (dB), ssim, mse,
            distance (between features of the base model).
    """

    method: str
    attack: Attack
    sees: Sees
    knows: Knows
    batch: int
    steps: int
    tokens: float | None
    trials: int
    scores: dict[str, Estimate]
    attempts: list[Attempt]


class Membership(_Found):
    """An attack that decides if an example is a client's: AUC, and true positives at 1 % false ones.

    `examples`: mean number behind an upload, or behind a component of a summary.
    """

    method: str
    source: Literal["update", "summary"]
    sees: Sees | None
    knows: Knows
    examples: float
    members: int
    others: int
    auc: Estimate
    tpr: Estimate


class Labels(_Found):
    """An attack on the labels of a batch: F1 over labels with their multiplicity, and the F1 of a guesser."""

    method: str
    sees: Sees
    knows: Knows
    batch: int
    trials: int
    f1: Estimate
    guesser: Estimate


class Means(_Found):
    """An attack on a summary: is the example nearest to a mean one of those behind it?

    Attributes:
        examples: Mean number of examples behind a component.
        found: Share of components for which it is, among members and as many others.
        chance: The same share for a random choice.
    """

    method: str
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
    """One audit. `method`: the audited one, the others are controls; `round`: the attacked round."""

    format: Literal[1] = 1
    name: str
    method: str
    task: str
    kind: Literal["text", "image"]
    client: str
    round: int
    rank: int
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
