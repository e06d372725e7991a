"""The verdict of an audit in one line, and at most three cautions; both follow from numbers and intervals."""

from __future__ import annotations

from trifed.reports.audit.findings import (
    CLEAR_AUC,
    Estimate,
    Findings,
    attacks,
    best_first,
    guess_for,
    in_view,
    is_above,
    main_score,
)
from trifed.reports.document import MOST_CAUTIONS, Caution
from trifed.reports.format import listing, plural

FEW_TRIALS = 20
CAUTIONS = {
    "no-control": "No control was attacked: nothing shows that the attacks can succeed.",
    "weak-attacks": "No control was read back above guessing: the attacks may be too weak here.",
    "no-guesser": "There was no guesser: nothing shows which part of a score is guessing.",
    "few-trials": "A number stands on only {}: read the intervals.",
    "weak-members": "Membership was not detected from single uploads either, so these results do not show that "
    "sums protect.",
    "no-proof": "A failed attack is no proof: only noise with a counted privacy budget bounds all attacks.",
    "honest-server": "A server that changes the base model can learn more than this curious one.",
}


def verdict(findings: Findings) -> str:
    """Return the claims that do not hold, else the most that was recovered from the audited method."""
    start = "" if findings.finished else "Not finished. "
    broken = [claim.claim.strip().rstrip(".") for claim in findings.claims if not claim.holds]
    if broken:
        return f"{start}Does not hold: {listing(broken)}."
    held = f"{plural(len(findings.claims), 'claim')} held" if findings.claims else "No claim was tested"
    found = [recovered(findings), members(findings)]
    return f"{start}{held}: {'; '.join(filter(None, found)) or 'nothing was measured yet'}."


def recovered(findings: Findings) -> str:
    """Return the best reconstruction beside guessing, one that is above guessing if there is any."""
    mine = attacks(findings, findings.method)
    rows = best_first(findings, [row for row in mine if in_view(findings, row)])
    if not rows:
        return ""
    row = next((row for row in rows if is_above(findings, row)), rows[0])
    against = {True: "above guessing", False: "not above guessing", None: "no guesser"}[is_above(findings, row)]
    best, guess = _score(findings, main_score(findings, row)), guess_for(findings, row)
    return f"at most {best} recovered, {against} {_score(findings, guess)}".rstrip() + f" (batch of {row.batch})"


def members(findings: Findings) -> str:
    """Return the best attack on membership of the audited method, if it is clearly better than chance."""
    mine = [row for row in findings.membership if row.method == findings.method]
    seen = [row for row in mine if row.source == "summary" or in_view(findings, row)]
    clear = max((row.auc.mean for row in seen if row.auc.low > CLEAR_AUC), default=None)
    if clear is None:
        return ""
    sums = ", sums of clients alone" if findings.sealed else ""
    return f"members identified with AUC {clear:.2f}{sums}"


def _score(findings: Findings, found: Estimate | None) -> str:
    if found is None:
        return ""
    return f"F1 {found.mean:.2f}" if findings.kind == "text" else f"{found.mean:.1f} dB"


def cautions(findings: Findings) -> list[Caution]:
    """Return at most three conclusions that the findings do not support."""
    rows, tried = findings.reconstruction, attacks(findings)
    others = [row for row in tried if row.method != findings.method]
    counts = [row.trials for row in rows] + [row.trials for row in findings.labels]
    single = [row.auc for row in findings.membership if row.view == "single" and row.source == "update"]
    trials = min(counts, default=FEW_TRIALS)
    known = {
        "no-control": rows and not others,
        "weak-attacks": others and not any(is_above(findings, row) for row in others),
        "no-guesser": tried and tried == rows,
        "weak-members": findings.sealed and not any(auc.low > CLEAR_AUC for auc in single),
        "few-trials": trials < FEW_TRIALS,
        "no-proof": True,
        "honest-server": True,
    }
    found = [
        Caution(code, CAUTIONS[code].format(plural(trials, "trial"))) for code, holds in known.items() if holds
    ]
    return found[:MOST_CAUTIONS]
