"""The verdict of an audit in one line, a recommendation, and at most three cautions; all follow from numbers."""

from __future__ import annotations

from typing import Any

from trifed.reports.audit.findings import (
    CLEAR_AUC,
    Estimate,
    Findings,
    Reconstruction,
    attacks,
    best_first,
    guess_for,
    in_view,
    is_above,
    main_score,
)
from trifed.reports.document import MOST_CAUTIONS, Caution
from trifed.reports.format import plural

FEW_TRIALS = 20
CAUTIONS = {
    "no-control": "No control was attacked: nothing shows that the attacks can succeed.",
    "weak-attacks": "Nothing was recovered from a control beyond guessing: the attacks may be too weak here.",
    "no-guesser": "There was no guesser: nothing shows which part of a score is guessing.",
    "few-trials": "A number comes from only {}: read the intervals.",
    "weak-members": "Membership was not detected from single uploads either, so these results do not show that "
    "sums protect.",
    "no-proof": "A failed attack is no proof: only noise with a counted privacy budget bounds all attacks.",
    "honest-server": "A server that changes the base model can learn more than this curious one.",
}


def verdict(findings: Findings) -> str:
    """Return what could be recovered from the audited method, and how many claims hold, as one sentence."""
    start = "" if findings.finished else "Not finished. "
    broken = [claim for claim in findings.claims if not claim.holds]
    held = f"{len(findings.claims) - len(broken)} of {plural(len(findings.claims), 'claim')} held"
    found = [recovered(findings), members(findings)]
    known = [part for part in found if part] or ["Nothing was measured yet"]
    return f"{start}{'; '.join([*known, held if findings.claims else 'no claim was tested'])}."


def outcome(findings: Findings) -> dict[str, Any]:
    """Return the first sentence in numbers, for programs.

    `kind` is "leaks" if an attack on the audited method was above guessing or chance, "quiet" if none was, and
    "unknown" if nothing was measured or there was no guesser.
    """
    row, auc = best_reconstruction(findings), clear_auc(findings)
    above = None if row is None else is_above(findings, row)
    score = None if row is None else main_score(findings, row)
    return {
        "kind": "leaks" if above or auc is not None else "quiet" if above is False else "unknown",
        "method": findings.method,
        "recovered": None if score is None else score.mean,
        "above_guessing": above,
        "sees": None if row is None else row.sees,
        "members_auc": auc,
        "broken": [claim.claim for claim in findings.claims if not claim.holds],
    }


def advice(findings: Findings) -> tuple[str, str]:
    """Return the code of a recommendation, which is stable, and its text."""
    found = outcome(findings)
    if not findings.finished:
        return "finish", "Let it finish before you decide."
    if found["above_guessing"]:
        safe = _safe_batch(findings)
        if _only_gradients(findings):
            more = f" and batches of {safe} or more examples" if safe else ""
            keep = (
                f"Keep several local steps a round{more}: with these no attack here read back more than guessing."
            )
            return "gradient-only", f"{keep} Only noise (privacy.update) bounds every attack."
        more = f"From a batch of {safe} on no attack was above guessing. " if safe else ""
        return "protect", f"{more}Add noise (privacy.update), the only bound on every attack, and audit again."
    if found["members_auc"] is not None:
        return "hide-members", "Add noise (privacy.update) or seal the uploads, and audit again."
    if found["kind"] == "quiet":
        return (
            "nothing",
            "These attacks call for no change. Only noise (privacy.update) bounds those that nobody tried.",
        )
    return "measure", "Run the audit with a guesser and a control, so that a score can be judged."


def _only_gradients(findings: Findings) -> bool:
    """Return True if attacks on what a whole round sends were tried, and none of them was above guessing."""
    mine = [row for row in attacks(findings, findings.method) if in_view(findings, row)]
    sent = [is_above(findings, row) for row in mine if row.sees == "update"]
    return bool(sent) and not any(sent)


def _safe_batch(findings: Findings) -> int | None:
    """Return the batch from which on no attack on the audited method is above guessing; None without one."""
    mine = [row for row in attacks(findings, findings.method) if in_view(findings, row)]
    leaking = max((row.batch for row in mine if is_above(findings, row)), default=0)
    return min((row.batch for row in mine if row.batch > leaking), default=None)


def best_reconstruction(findings: Findings) -> Reconstruction | None:
    """Return the best reconstruction from the audited method, one above guessing if there is any."""
    mine = attacks(findings, findings.method)
    rows = best_first(findings, [row for row in mine if in_view(findings, row)])
    return next((row for row in rows if is_above(findings, row)), rows[0] if rows else None)


def recovered(findings: Findings) -> str:
    """Return the best reconstruction from the audited method beside guessing; empty without any."""
    row = best_reconstruction(findings)
    if row is None:
        return ""
    best, guess = _score(findings, main_score(findings, row)), _score(findings, guess_for(findings, row))
    kind, above = f"a client's {findings.kind}s", is_above(findings, row)
    if above is None:
        return f"An attack read back {best} of {kind} at most, and no guesser says how much is guessing"
    start = f"An attack read back more of {kind} than" if above else f"No attack read back more of {kind} than"
    view = "what a round sends" if row.sees == "update" else "the plain gradient of a batch"
    only = ", but not from what a round sends" if above and _only_gradients(findings) else ""
    return f"{start} guessing{only}: {best} at most from {view} (size {row.batch}), guessing {guess}"


def clear_auc(findings: Findings) -> float | None:
    """Return the best AUC of an attack on membership in the audited method; None if none is clear of chance."""
    mine = [row for row in findings.membership if row.method == findings.method]
    seen = [row for row in mine if row.source == "summary" or in_view(findings, row)]
    return max((row.auc.mean for row in seen if row.auc.low > CLEAR_AUC), default=None)


def members(findings: Findings) -> str:
    """Return the best attack on membership of the audited method, if it is clearly better than chance."""
    clear = clear_auc(findings)
    if clear is None:
        return ""
    sums = ", from sums of clients alone" if findings.sealed else ""
    return f"membership of an example was detected with AUC {clear:.2f}{sums}"


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
