"""What an audit found, as it is kept in `audit.json`: every number with its interval, and who attacks.

Estimates are means over trials with 95 % intervals of a bootstrap over them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from trifed.common.errors import RunError

Knows = Literal["base", "start", "factors"]
"""Beside W0: nothing of the adapter; the start of A and B, which comes from a shared seed; A and B as they are."""
Sees = Literal["gradient", "update"]
"""The plain gradient of one batch, the most an upload could ever show; or what a client's round really sends."""
Attack = Literal["embedding", "span", "matching", "guesser"]


class _Found(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Estimate(_Found):
    """A mean and its 95 % interval."""

    mean: float
    low: float
    high: float


class Attempt(_Found):
    """One trial: the examples, and for each the best that the attack made of it. Texts, or PNGs as data URIs."""

    original: list[str]
    found: list[str]


class Reconstruction(_Found):
    """How much of the examples an attack gives back.

    `tokens`: that an upload stands for, mean over trials; None for images. `scores`: for text
    precision, recall, f1, rouge1, rouge2, rougeL, exact; for images psnr (dB), ssim, mse, distance (between
    features of the base model).
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
    """Whether an example was among a client's: area under the curve, and true positives at 1 % false ones.

    `examples`: that an upload, or a component of a summary, stands for in the mean.
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
    """Which labels a batch had: F1 over labels with their multiplicity, and what a guesser has."""

    method: str
    sees: Sees
    knows: Knows
    batch: int
    trials: int
    f1: Estimate
    guesser: Estimate


class Means(_Found):
    """Whether the example nearest to a mean of a summary, among members and as many others, stands behind it.

    `examples`: that a component stands on; `found`: the share of components; `chance`: of picking at random.
    """

    method: str
    examples: float
    components: int
    found: Estimate
    chance: float
    attempts: list[Attempt]


class Claim(_Found):
    """What is expected of the method, whether it held, and the numbers that say so."""

    claim: str
    holds: bool
    why: str


class Findings(_Found):
    """One audit. `method`: whose configuration was attacked; the others are controls. `round`: of the attack."""

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
    """Raises RunError: there is no such file, or it is none of an audit."""
    try:
        return Findings.model_validate_json(path.read_bytes())
    except OSError as error:
        raise RunError(f"{path}: cannot be read ({error.strerror}); `trifed audit` writes it") from error
    except ValidationError as error:
        raise RunError(f"{path}: not an audit's findings ({error.error_count()} mistakes); audit again") from error
