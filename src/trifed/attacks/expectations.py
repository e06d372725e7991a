"""Claims of an audit, such as "members are hidden" or "the attacks work", decided by intervals."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from trifed.reports.audit.findings import Claim, Estimate, Membership, Reconstruction, real_views

HIDDEN = 0.55
"""Largest AUC at which members count as hidden."""
EFFECTIVE = {"f1": 0.85, "psnr": 30.0}
"""Score that attacks must reach on the full model's gradient to show anything: F1 of tokens, or PSNR in dB."""
GIVEN = {
    "f1": f"tokens away at batch 1, F1 of {EFFECTIVE['f1']}",
    "psnr": f"images away at batch 1, PSNR of {EFFECTIVE['psnr']:.0f} dB",
}


def check_expectations(
    method: str, rows: Sequence[Reconstruction], members: Sequence[Membership], full: str, plain: str,
    *, sealed: bool = False,
) -> Iterator[Claim]:  # fmt: skip
    """Yield each expectation that the results can decide.

    Args:
        method: The user's method.
        rows: Results of reconstruction attacks on it and on the controls, and of guessing.
        members: Results of membership inference.
        full: Name of the control that trains the whole model; empty if there is none.
        plain: Name of the plain LoRA control; empty if there is none.
        sealed: Whether the server sees only sums; then these are judged, and single uploads are a control.
    """
    score = "f1" if any("f1" in row.scores for row in rows) else "psnr"
    attacks = [row for row in rows if row.attack != "guesser"]
    views = real_views(sealed)
    own = [row for row in attacks if row.method == method and row.view in views]
    guesses = {(r.view, r.batch, r.trials): r.scores[score] for r in rows if r.attack == "guesser"}
    rivals = {(r.sees, r.batch, r.attack): r.scores[score] for r in attacks if r.method == plain != method}
    for claim, limits in (
        (
            "Without the factors as they are, an attacker has no more than a guesser",
            [(r, guesses.get((r.view, r.batch, r.trials))) for r in own if r.knows != "factors"],
        ),
        (
            "From the sums of a round an attacker has no more than a guesser",
            [(r, guesses.get((r.view, r.batch, r.trials))) for r in own if sealed and r.sees == "update"],
        ),
        (
            f"With the factors known, an attacker has at most what {plain} gives it",
            [(r, rivals.get((r.sees, r.batch, r.attack))) for r in own if not sealed and r.knows == "factors"],
        ),
    ):
        compared = [(row, limit) for row, limit in limits if limit is not None]
        if compared:
            above = [row for row, limit in compared if row.scores[score].low > limit.high]
            best = max(above or [row for row, _ in compared], key=lambda row: row.scores[score].mean)
            where = f"{best.attack}, batch {best.batch}, from the {best.sees}, knows {best.knows}"
            yield Claim(
                claim=claim, holds=not above, why=f"{score} {_shown(best.scores[score])} at most ({where})"
            )
    updates = [r for r in members if r.method == method and r.source == "update" and r.view in views]
    if updates:
        worst = max(updates, key=lambda row: row.auc.mean)
        seen = "a sum" if sealed else "an upload"
        site = ", as a site of the sum" if worst.view == "others" else ""
        rounds = f", from {worst.rounds} rounds" if worst.rounds > 1 else ""
        yield Claim(
            claim=f"Membership in {seen} of a round cannot be detected: AUC at most {HIDDEN}",
            holds=worst.auc.mean <= HIDDEN,
            why=f"{_shown(worst.auc)} at most, for an attacker who knows {worst.knows}{site}{rounds}",
        )
    strongest = [
        row
        for row in attacks
        if row.method == full and row.batch == 1 and row.sees == "gradient" and row.attack != "embedding"
    ]
    if strongest:
        best = max(strongest, key=lambda row: row.scores[score].mean)
        yield Claim(
            claim=f"The attacks work: {full} gives its {GIVEN[score]} or more",
            holds=best.scores[score].mean >= EFFECTIVE[score],
            why=f"{_shown(best.scores[score])}, by {best.attack}, without the embedding's gradient",
        )


def _shown(score: Estimate) -> str:
    return f"{score.mean:.2f} ({score.low:.2f} to {score.high:.2f})"
