"""What an audit says in plain sentences; every one follows from numbers and their intervals."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from trifed.reports.audit import ranking as rows_of
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
from trifed.reports.audit.ranking import best_first, by_setting, guess_for, is_above, main_score
from trifed.reports.format import plural

KNOWS = {
    "base": "knowing the base model alone",
    "start": "knowing how A and B start",
    "factors": "knowing A and B",
}
SEES = {"gradient": "the plain gradient of a batch", "update": "what a round sends"}
Row = TypeVar("Row", Membership, Labels, Means)
MOST_CLAIMS = 2
"""Claims that the headline names."""


def headline(findings: Findings) -> str:
    """The first line: what does not hold, else what a curious server could recover at most."""
    start = "" if findings.finished else "Not finished. "
    broken = [claim.claim.strip().rstrip(".") for claim in findings.claims if not claim.holds]
    if broken:
        more = len(broken) - MOST_CLAIMS
        others = f"; and {plural(more, 'more claim')}" if more > 0 else ""
        return f"{start}Does not hold: {'; '.join(broken[:MOST_CLAIMS])}{others}."
    count = len(findings.claims)
    held = {0: "No claim was tested", 1: "The claim holds", 2: "Both claims hold"}.get(
        count, f"All {count} claims hold"
    )
    return f"{start}{held}: {at_most(findings)}."


def at_most(findings: Findings) -> str:
    """The best that any attack on the audited method came to, as the end of a sentence."""
    found = best_first(findings, rows_of.attacks(findings, findings.method))
    if not found:
        members = _best_members(findings)
        if not members:
            return "nothing was measured yet"
        return f"no reconstruction was measured; members are told from others with AUC {members[0].auc.mean:.2f}"
    row = next((row for row in found if is_above(findings, row)), found[0])
    score, guess = main_score(findings, row), guess_for(findings, row)
    what = f"{_noun(findings)} with {brief(findings, score)} at most"
    against = "and no guesser says how much of that is guessing"
    if guess is not None:
        as_good = "where guessing gives" if is_above(findings, row) else "not clearly more than guessing,"
        against = f"{as_good} {bare(findings, guess)}"
    members = [row for row in _best_members(findings) if rows_of.tells_members(row)]
    also = f"; it tells a client's examples from others with AUC {members[0].auc.mean:.2f}" if members else ""
    return f"a curious server recovers {what} (batch of {row.batch}), {against}{also}"


def learned(findings: Findings) -> list[str]:
    """What a curious server learns."""
    lines = [*_reconstructed(findings)]
    for row in _best_by_source(findings):
        if rows_of.tells_members(row):
            lines.append(
                f"{_membership(row)}, a coin has 0.5; {share(row.tpr)} of them found at 1 % false alarms."
            )
    for label in sorted(_mine(findings, findings.labels), key=lambda row: -row.f1.mean):
        if rows_of.tells_labels(label):
            lines.append(
                f"Which labels a batch of {label.batch} had: F1 {number(label.f1)}, guessing "
                f"{number(label.guesser)}."
            )
            break
    for mean in sorted(_mine(findings, findings.means), key=lambda row: -row.found.mean):
        if rows_of.tells_examples(mean):
            lines.append(
                f"Single examples behind the summary: {share(mean.found)} of its means lead to one, by chance "
                f"{100 * mean.chance:.0f} % ({mean.examples:.0f} examples a mean)."
            )
            break
    nothing = "Nothing, as far as these attacks and this many trials can tell."
    return lines or [nothing if _measured(findings) else "Nothing was measured yet."]


def _reconstructed(findings: Findings) -> Iterable[str]:
    for key, rows in by_setting(rows_of.attacks(findings, findings.method)).items():
        ranked = best_first(findings, rows)
        leaking = [row for row in ranked if is_above(findings, row)]
        unknown = [row for row in ranked if guess_for(findings, row) is None]
        if leaking:
            yield f"{_how_much(findings, leaking[0])} from {where(*key)}: {_score(findings, leaking)}."
        elif unknown:
            score = amount(findings, main_score(findings, unknown[0]))
            yield (
                f"Perhaps {_noun(findings)} from {where(*key)}: {score} ({size(unknown[0])}), but no guesser says "
                f"how much of that is guessing."
            )


def _score(findings: Findings, leaking: list[Reconstruction]) -> str:
    """The best of them, beside guessing; how far it reaches; whole examples."""
    best, widest = leaking[0], max(row.batch for row in leaking)
    guess = bare(findings, guess_for(findings, best))
    exact = best.scores.get("exact")
    also = f"; above guessing up to a batch of {widest}" if widest > best.batch else ""
    whole = f"; {share(exact)} word for word" if exact and exact.low > 0 else ""
    return f"{amount(findings, main_score(findings, best))}, guessing {guess} ({size(best)}){whole}{also}"


def _out_of_reach(findings: Findings) -> Iterable[str]:
    safe = []
    for key, rows in by_setting(rows_of.attacks(findings, findings.method)).items():
        ranked = best_first(findings, rows)
        if ranked and all(is_above(findings, row) is False for row in ranked):
            safe.append((key, ranked[0]))
    if safe:
        best = best_first(findings, [row for _, row in safe])[0]
        places = "; or ".join(where(*key) for key, _ in safe)
        score, guess = amount(findings, main_score(findings, best)), bare(findings, guess_for(findings, best))
        yield f"{_noun(findings).capitalize()} from {places}: at most {score}, guessing {guess} ({size(best)})."


def hidden(findings: Findings) -> list[str]:
    """What the same server does not learn, as far as the numbers tell."""
    lines = [*_out_of_reach(findings)]
    for row in _best_by_source(findings):
        if not rows_of.tells_members(row):
            sure = "not clearly more than a coin" if row.auc.low <= 0.5 else "little more than a coin"
            lines.append(f"{_membership(row)}, {sure}.")
    labels, means = _mine(findings, findings.labels), _mine(findings, findings.means)
    if labels and not any(map(rows_of.tells_labels, labels)):
        best_label = max(labels, key=lambda row: row.f1.mean)
        lines.append(f"Labels: F1 {number(best_label.f1)}, guessing {number(best_label.guesser)}.")
    if means and not any(map(rows_of.tells_examples, means)):
        best_mean = max(means, key=lambda row: row.found.mean)
        chance = f"by chance {100 * best_mean.chance:.0f} %"
        lines.append(f"Examples behind the summary: {share(best_mean.found)} found, {chance}.")
    nothing = "Nothing that was tried stayed hidden." if _measured(findings) else "Nothing was measured yet."
    if any(is_above(findings, row) is None for row in rows_of.attacks(findings, findings.method)):
        nothing = "That cannot be said without a guesser."
    return lines or [nothing]


def _measured(findings: Findings) -> bool:
    return any((findings.reconstruction, findings.membership, findings.labels, findings.means))


def _how_much(findings: Findings, row: Reconstruction) -> str:
    """A word for how much comes back."""
    found = main_score(findings, row)
    if findings.kind == "image" or found is None:
        return "Images nearer to the originals than guesses are,"
    for least, word in ((0.9, "Nearly all"), (0.5, "Most"), (0.2, "Part")):
        if found.mean >= least:
            return f"{word} of the text" if word == "Part" else f"{word} tokens of the text"
    return "A few tokens of the text"


def _noun(findings: Findings) -> str:
    return "the text" if findings.kind == "text" else "the images"


def _membership(row: Membership) -> str:
    count = f"{row.examples:.4g} example{'' if row.examples == 1 else 's'}"
    of = {"update": f"an update of {count}", "summary": f"means of {count} in the summary"}[row.source]
    return f"Whether an example was a client's own, from {of}, {KNOWS[row.knows]}: AUC {number(row.auc)}"


def _mine(findings: Findings, rows: list[Row]) -> list[Row]:
    return [row for row in rows if row.method == findings.method]


def _best_members(findings: Findings) -> list[Membership]:
    return sorted(_mine(findings, findings.membership), key=lambda row: -row.auc.mean)


def _best_by_source(findings: Findings) -> list[Membership]:
    """Of updates and of summaries the row that tells most."""
    first: dict[str, Membership] = {}
    for row in sorted(_mine(findings, findings.membership), key=lambda row: -row.auc.low):
        first.setdefault(row.source, row)
    return list(first.values())


def where(sees: Sees, knows: Knows) -> str:
    """What the attacker has to work with."""
    return f"{SEES[sees]}, {KNOWS[knows]}"


def size(row: Reconstruction) -> str:
    """What the upload stands for."""
    steps = f", {plural(row.steps, 'step')}" if row.steps > 1 else ""
    tokens = f", about {row.tokens:.4g} tokens" if row.tokens is not None else ""
    return f"batch of {row.batch}{steps}{tokens}"


def amount(findings: Findings, found: Estimate | None) -> str:
    """A reconstruction's main score with its name and interval."""
    if found is None:
        return "nothing measured"
    if findings.kind == "text":
        return f"F1 {number(found)}"
    return f"{found.mean:.1f} dB ({found.low:.1f} to {found.high:.1f})"


def brief(findings: Findings, found: Estimate | None) -> str:
    """The same without the interval."""
    if found is None:
        return "nothing measured"
    return f"F1 {found.mean:.2f}" if findings.kind == "text" else f"{found.mean:.1f} dB"


def bare(findings: Findings, found: Estimate | None) -> str:
    """The same without its name."""
    return brief(findings, found).removeprefix("F1 ")


def number(found: Estimate) -> str:
    """`0.97 (0.95 to 0.99)`."""
    return f"{found.mean:.2f} ({found.low:.2f} to {found.high:.2f})"


def share(found: Estimate) -> str:
    """`97 % (95 to 99)`."""
    return f"{100 * found.mean:.0f} % ({100 * found.low:.0f} to {100 * found.high:.0f})"
