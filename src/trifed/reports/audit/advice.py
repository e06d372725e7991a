"""What to change about an audited configuration: rules, each of which follows from numbers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from trifed.reports.audit import ranking as rows_of
from trifed.reports.audit.findings import Findings, Membership, Reconstruction
from trifed.reports.audit.ranking import attacks, by_setting, compared, is_above, main_score
from trifed.reports.audit.words import brief, where
from trifed.reports.format import listing, plural

GUARD = 2
"""Tokens that an upload should stand for, in ranks: span attacks are exact below one rank."""


def advice(findings: Findings) -> list[str]:
    """What would help, where something was given away."""
    lines = list(
        dict.fromkeys(
            [
                *_on_claims(findings),
                *_on_sizes(findings),
                *_on_tokens(findings),
                *_on_knowledge(findings),
                *_on_labels(findings),
                *_on_noise(findings),
                *_on_summary(findings),
            ]
        )
    )
    mine = attacks(findings, findings.method)
    if not lines and any(is_above(findings, row) is None for row in mine):
        return ["Audit again with a guesser: without one nothing follows from these numbers."]
    measured = any((mine, findings.membership, findings.labels, findings.means))
    return lines or ["Nothing follows from these numbers." if measured else "Measure something first."]


def leaking(findings: Findings) -> list[Reconstruction]:
    """Attacks on the audited method whose score lies above the guesser's."""
    return [row for row in attacks(findings, findings.method) if is_above(findings, row)]


def _on_claims(findings: Findings) -> Iterable[str]:
    broken = [claim for claim in findings.claims if not claim.holds]
    if broken:
        yield f"Do not rely on what did not hold ({plural(len(broken), 'claim')})."


def _on_sizes(findings: Findings) -> Iterable[str]:
    """Larger batches and more local steps: from which size on nothing is above guessing."""
    rules: dict[str, list[str]] = {}
    for (sees, knows), rows in by_setting(compared(findings, attacks(findings, findings.method))).items():
        if any(is_above(findings, row) for row in rows):
            rules.setdefault(_size_rule(findings, rows, "batch"), []).append(where(sees, knows))
            if len({row.steps for row in rows}) > 1:
                rules.setdefault(_size_rule(findings, rows, "steps"), []).append(where(sees, knows))
    for rule, places in rules.items():
        yield f"{rule} (from {'; or '.join(places)})."


def _size_rule(findings: Findings, rows: Sequence[Reconstruction], name: str) -> str:
    title = {"batch": "Larger batches", "steps": "More local steps"}[name]
    tried = sorted({int(getattr(row, name)) for row in rows})
    bad = max(int(getattr(row, name)) for row in rows if is_above(findings, row))
    safe = [size for size in tried if size > bad]
    shown = {"batch": "a batch of {}", "steps": "{} steps"}[name]
    if safe:
        return f"{title}: from {shown.format(safe[0])} on nothing was above guessing"
    if len(tried) == 1:
        return f"{title} may help: only {shown.format(tried[0])} was tried"
    worst = rows_of.best_first(findings, [row for row in rows if getattr(row, name) == bad])[0]
    score = brief(findings, main_score(findings, worst))
    return f"{title} alone are not enough: {shown.format(bad)}, the largest tried, still gives {score}"


def _on_tokens(findings: Findings) -> Iterable[str]:
    """The guard against uploads that stand for few tokens."""
    least = GUARD * findings.rank
    counted = [(row.tokens, row) for row in leaking(findings) if row.tokens is not None]
    few = [row for tokens, row in counted if tokens < least]
    many = rows_of.best_first(findings, [row for tokens, row in counted if tokens >= least])
    if few and not many:
        yield (
            f"The token guard: all that was recovered came from uploads of fewer than {least} tokens, twice the "
            f"rank; let it refuse those."
        )
    elif few:
        score = brief(findings, main_score(findings, many[0]))
        yield (
            f"The token guard at {least} tokens, twice the rank, helps and is not enough: an upload of about "
            f"{many[0].tokens:.0f} tokens still gives {score}."
        )


def _on_knowledge(findings: Findings) -> Iterable[str]:
    """Keeping to oneself what only better informed attackers need."""
    rows = compared(findings, attacks(findings, findings.method))
    levels = {knows for _, knows in by_setting(rows)}
    open_to = {row.knows for row in leaking(findings)}
    if "factors" in open_to and levels - {"factors"} and not open_to - {"factors"}:
        yield "Factors A and B that the server does not know: without them nothing was above guessing."
    if "start" in open_to and "base" in levels - open_to:
        yield "A start of A and B that the server cannot work out, as it can from a shared seed."
    sent = [row for row in rows if row.sees == "update"]
    if open_to and sent and not any(is_above(findings, row) for row in sent):
        yield "Keep rounds as they are: a batch's plain gradient gives something away, what is sent does not."


def _on_labels(findings: Findings) -> Iterable[str]:
    mine = [row for row in findings.labels if row.method == findings.method]
    shown = sorted({row.batch for row in mine if rows_of.tells_labels(row)})
    if shown:
        hidden = sorted({row.batch for row in mine} - set(shown))
        safe = [batch for batch in hidden if batch > shown[-1]]
        more = f"; from a batch of {safe[0]} on they were not told" if safe else ""
        batches = listing([str(batch) for batch in shown])
        yield f"Labels of batches of {batches} can be told: treat them as sent in the open{more}."


def _on_noise(findings: Findings) -> Iterable[str]:
    """Noise on updates, the only protection that bounds every attack."""
    told = bool(leaking(findings)) or any(row.source == "update" for row in _members(findings))
    labels = any(rows_of.tells_labels(row) for row in findings.labels if row.method == findings.method)
    if not told and not labels:
        return
    if _is_set(findings.configuration):
        yield "privacy.update is set and does not suffice here: more noise."
    else:
        yield "privacy.update: noise on what is sent bounds what any attack learns; audit again with it."


def _is_set(configuration: dict[str, object]) -> bool:
    privacy = configuration.get("privacy")
    return isinstance(privacy, dict) and bool(privacy.get("update"))


def _on_summary(findings: Findings) -> Iterable[str]:
    members = [row for row in _members(findings) if row.source == "summary"]
    means = [row for row in findings.means if row.method == findings.method and rows_of.tells_examples(row)]
    if members or means:
        fewest = min([*(row.examples for row in members), *(row.examples for row in means)])
        yield f"The summary: means of more than about {fewest:.0f} examples, or a method that sends none."


def _members(findings: Findings) -> list[Membership]:
    mine = [row for row in findings.membership if row.method == findings.method]
    return [row for row in mine if rows_of.tells_members(row)]
