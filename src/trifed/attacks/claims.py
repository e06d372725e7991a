"""What is expected of a method, and whether what was found agrees."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from trifed.reports.audit.findings import Claim, Estimate, Membership, Reconstruction

MOST = 0.55
"""AUC up to which members count as hidden."""
WORKS = {"f1": 0.85, "psnr": 30.0}
"""What the control has to reach for the attack to mean anything: F1 of tokens, or dB."""
GIVEN = {
    "f1": f"tokens away at batch 1, F1 of {WORKS['f1']}",
    "psnr": f"images away at batch 1, PSNR of {WORKS['psnr']:.0f} dB",
}


def claims(
    method: str, rows: Sequence[Reconstruction], members: Sequence[Membership], full: str, plain: str
) -> Iterator[Claim]:
    """Those that the rows can decide. `full`, `plain`: the controls that train everything, and plain LoRA."""
    score = "f1" if any("f1" in row.scores for row in rows) else "psnr"
    own = [row for row in rows if row.method == method and row.attack != "guesser"]
    guesses = {(row.batch, row.trials): row.scores[score] for row in rows if row.attack == "guesser"}
    weak = [row for row in own if row.knows != "factors" and (row.batch, row.trials) in guesses]
    if weak:
        yield _all_guessing(
            "Without the factors as they are, an attacker has no more than a guesser", weak, guesses
        )
    rivals: dict[tuple[str, int, str], Estimate] = {
        (r.sees, r.batch, r.attack): r.scores[score] for r in rows if r.method == plain and r.attack != "guesser"
    }
    strong = [row for row in own if row.knows == "factors" and (row.sees, row.batch, row.attack) in rivals]
    if strong and method != plain:
        over = [r for r in strong if r.scores[score].low > rivals[r.sees, r.batch, r.attack].high]
        yield Claim(
            claim=f"With the factors known, an attacker has at most what {plain} gives it",
            holds=not over,
            why=_named(over or strong, score),
        )
    updates = [row for row in members if row.method == method and row.source == "update"]
    if updates:
        worst = max(updates, key=lambda row: row.auc.mean)
        yield Claim(
            claim=f"Who is in an upload of a whole round cannot be told: AUC at most {MOST}",
            holds=worst.auc.mean <= MOST,
            why=f"{_shown(worst.auc)} at most, for who knows {worst.knows}",
        )
    control = [
        r
        for r in rows
        if r.method == full and r.batch == 1 and r.sees == "gradient" and r.attack in ("span", "matching")
    ]
    if control:
        best = max(control, key=lambda row: row.scores[score].mean)
        yield Claim(
            claim=f"The attacks work: {full} gives its {GIVEN[score]} or more",
            holds=best.scores[score].mean >= WORKS[score],
            why=f"{_shown(best.scores[score])}, by {best.attack}, without the embedding's gradient",
        )


def _all_guessing(claim: str, rows: list[Reconstruction], guesses: dict[tuple[int, int], Estimate]) -> Claim:
    score = next(name for name in ("f1", "psnr") if name in rows[0].scores)
    over = [row for row in rows if row.scores[score].low > guesses[row.batch, row.trials].high]
    return Claim(claim=claim, holds=not over, why=_named(over or rows, score))


def _named(rows: list[Reconstruction], score: str) -> str:
    best = max(rows, key=lambda row: row.scores[score].mean)
    where = f"{best.attack}, batch {best.batch}, from the {best.sees}, knows {best.knows}"
    return f"{score} {_shown(best.scores[score])} at most ({where})"


def _shown(found: Estimate) -> str:
    return f"{found.mean:.2f} ({found.low:.2f} to {found.high:.2f})"
