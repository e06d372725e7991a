"""Tables of an audit's findings."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel

from trifed.reports.audit.findings import (
    CLEAR_AUC,
    KNOWS,
    VIEWS,
    Estimate,
    Findings,
    Labels,
    Membership,
    Reconstruction,
    attacks,
    best_first,
    finite,
    guess_for,
    is_above,
    main_score,
    methods_of,
)
from trifed.reports.tables import NAME, Column, Table

SHORT_KNOWS = {"base": "W0", "start": "start of A, B", "factors": "A and B"}
SHORT_VIEWS = {
    "single": "one upload",
    "sum": "sum",
    "others": "sum less its own",
    "colluding": "sum of two",
}
WHOSE = {
    "single": "the server of an open run",
    "sum": "the server of a sealed run",
    "others": "a site of the sum",
    "colluding": "all sites of the sum but two, together",
}
SHORT_OVER = {
    "round": None,
    "mean": "mean of",
    "highest": "highest of",
    "difference": "difference of",
    "departure": "before and after it leaves",
}
METHOD = Column("method", "method", NAME)
SIGHT = (Column("sees", "sees"), Column("knows", "knows"))
VIEW = (Column("view", "view"), Column("clients", "clients", "count"))
SIZES = (
    Column("batch", "batch", "count"),
    Column("steps", "steps", "count"),
    Column("tokens", "tokens", "number"),
)
TRIALS = Column("trials", "trials", "count")
SURE = Column("interval", "95 %", "ratio interval")
SCORES = {
    "text": (
        Column("f1", "F1", "ratio"),
        SURE,
        Column("against", "against guessing"),
        Column("precision", "precision", "ratio"),
        Column("recall", "recall", "ratio"),
        Column("rouge1", "ROUGE-1", "ratio"),
        Column("rouge2", "ROUGE-2", "ratio"),
        Column("rougeL", "ROUGE-L", "ratio"),
        Column("exact", "exact, %", "percent"),
    ),
    "image": (
        Column("psnr", "PSNR, dB", "number"),
        Column("interval", "95 %", "number interval"),
        Column("against", "against guessing"),
        Column("ssim", "SSIM", "ratio"),
        Column("mse", "MSE", "number"),
        Column("distance", "distance", "number"),
    ),
}
RECONSTRUCTION_NOTE = (
    "Tokens: number that an upload covers. 'Above': the interval is above the guesser's at the same batch."
)
AGAINST = {True: "above", False: "as good", None: None}
GLOSSARY = {
    "sees: update": "What a client's round really sends, after all of its local steps.",
    "sees: gradient": "The plain gradient of one batch of what is sent: the most that an upload could ever show.",
    "knows: A and B": "W0, and A and B as they are now: a server that distributes, receives or obtained them.",
    "knows: start of A, B": "W0 and the initial A and B, which come from a seed that clients and server share.",
    "knows: W0": "The base model W0 and nothing of the adapter: an outsider who sees uploads.",
    "embedding": "Reads the rows of the embedding that have a gradient: the tokens, in no order. For an image, "
    "the gradients of its patches and their positions are linear equations.",
    "span": "Searches for tokens whose inputs to a layer lie in the span of the upload, or solves for patches "
    "whose inputs do: exact for few tokens, or for one image.",
    "matching": "Optimises examples until their upload equals the observed one.",
    "guesser": "Sees nothing: the result of knowing the kind of data alone, the floor for every attack.",
    "view: one upload": "The upload of one client: what the server of an open run sees. Of a sealed run it is a "
    "control, which nobody sees.",
    "view: sum": "The mean of several clients' uploads: all that the server of a sealed run sees.",
    "view: sum less its own": "The same without the attacker's own part: what a site of the sum can compute.",
    "view: sum of two": "What is left of a sum if all its other sites work together and take out their parts: the "
    "least that a sealed run keeps from them. It counts in no verdict.",
    "F1": "Tokens that come back, in any order, against those there are: 1 is all of them and no other.",
    "PSNR": "Closeness of an image in dB: 10 dB more are a tenth of the squared error.",
    "AUC": "How often a client's example ranks above another example: 0.5 is chance, 1 is always.",
}


def claims_table(findings: Findings) -> Table:
    """Return what was expected, whether it held, and why."""
    columns = (Column("claim", "claim", "prose"), Column("holds", "", "verdict"), Column("why", "why", "prose"))
    return Table("What was expected", columns, [dict(claim) for claim in findings.claims])


def reconstruction_table(
    findings: Findings,
    rows: Iterable[Reconstruction] | None = None,
    title: str = "Every attack and setting",
    note: str = RECONSTRUCTION_NOTE,
) -> Table:
    """Return one row for each attack and setting, or for the given rows.

    Rows are sorted by method, then by the attacker's knowledge, then by size; the guesser comes last.
    """
    methods = methods_of(findings)

    def place(row: Reconstruction) -> tuple[Any, ...]:
        last, view = row.attack == "guesser", VIEWS.index(row.view)
        knows = KNOWS.index(row.knows)
        attacker = (0, view, "", 0) if last else (methods.index(row.method), view, row.sees, knows)
        return (last, *attacker, row.batch, row.steps, row.attack)

    ordered = sorted(findings.reconstruction if rows is None else rows, key=place)
    shown = [_reconstruction_row(findings, row) for row in ordered]
    once = [row for number, row in enumerate(shown) if row not in shown[:number]]  # each method keeps one guesser
    sight = (*view_columns(findings), *SIGHT)
    columns = (METHOD, Column("attack", "attack"), *sight, *SIZES, TRIALS, *SCORES[findings.kind])
    return Table(title, columns, once, note)


def worst_table(findings: Findings) -> Table:
    """Return for each method and attacker the setting in which most came back."""
    worst: dict[tuple[Any, ...], Reconstruction] = {}
    for row in best_first(findings, findings.reconstruction):
        attacker = ("guesser",) if row.attack == "guesser" else (row.method, row.sees, row.knows)
        worst.setdefault((row.view, *attacker), row)
    title = "At its worst, for each method and attacker"
    return reconstruction_table(findings, worst.values(), title).without_empty()


def _reconstruction_row(findings: Findings, row: Reconstruction) -> dict[str, Any]:
    scores = {name: _mean(found) for name, found in row.scores.items()}
    known = _row(row, main_score(findings, row), is_above(findings, row), **scores)
    if row.attack == "guesser":
        fields = (*(column.key for column in (*VIEW, *SIZES)), "trials", "interval", *scores)
        return {"method": "guesser", **{name: known[name] for name in fields}}
    return known


def membership_table(findings: Findings) -> Table:
    """Return areas under curves, and true positives at 1 % false ones."""
    columns = (
        METHOD, Column("source", "from"), *view_columns(findings),
        Column("over", "over rounds"), Column("rounds", "rounds", "count"), Column("auc", "AUC", "ratio"), SURE,
        Column("against", "against chance"),
        Column("tpr", "found, %", "percent"), Column("tpr_interval", "95 %", "interval"), *SIGHT,
        Column("examples", "examples in it", "number"),
        Column("members", "members", "count"), Column("others", "others", "count"),
    )  # fmt: skip
    methods = methods_of(findings)
    rows = [
        _row(
            row, row.auc, row.auc.low > CLEAR_AUC, tpr_interval=_interval(row.tpr), over=SHORT_OVER[row.over],
            rounds=row.rounds if row.rounds > 1 else None,
        )
        for row in sorted(findings.membership, key=lambda r: (methods.index(r.method), r.source, r.examples))
    ]  # fmt: skip
    note = (
        f"An AUC of 0.5 is chance, 1 is certainty. 'Above': the interval lies above {CLEAR_AUC}. Found: the "
        "members that an attacker finds who takes 1 % of the others for members."
    )
    return Table("Was an example among a client's?", columns, rows, note).without_empty()


def view_columns(findings: Findings) -> tuple[Column, ...]:
    """Return the columns that tell views apart; none if single uploads alone were attacked."""
    rows = [*findings.reconstruction, *findings.membership, *findings.labels]
    return VIEW if any(row.view != "single" for row in rows) else ()


def views_table(findings: Findings) -> Table:
    """Return the audited method's views side by side, each with the best attack of every kind."""
    mine, score = findings.method, SCORES[findings.kind][0]
    columns = (
        Column("view", "view"), Column("whose", "who has it", "prose"), Column("clients", "clients", "count"),
        Column("auc", "AUC, one round", "ratio"), Column("interval", "95 %", "ratio interval"),
        Column("several", "AUC, more rounds", "ratio"), Column("several_interval", "95 %", "ratio interval"),
        Column("score", score.label, score.kind), Column("guess", "guessed", score.kind),
        Column("labels", "F1 of labels", "ratio"), Column("guessed_labels", "guessed", "ratio"),
    )  # fmt: skip
    shown = []
    for view in VIEWS if view_columns(findings) else ():
        updates = [r for r in findings.membership if (r.method, r.view, r.source) == (mine, view, "update")]
        one, several = (
            max((r for r in updates if (r.rounds > 1) == more), key=lambda row: row.auc.mean, default=None)
            for more in (False, True)
        )
        read = [r for r in attacks(findings, mine) if (r.view, r.sees) == (view, "update")]
        best = next(iter(best_first(findings, read)), None)
        labels = [r for r in findings.labels if (r.method, r.view, r.sees) == (mine, view, "update")]
        told = max(labels, key=lambda row: row.f1.mean - row.guesser.mean, default=None)
        if one or best or told:
            shown.append({
                "view": SHORT_VIEWS[view], "whose": "nobody: a control" if findings.sealed and view == "single"
                else WHOSE[view],
                "clients": next(row.clients for row in (one, best, told) if row),
                **({"auc": _mean(one.auc), "interval": _interval(one.auc)} if one else {}),
                **({"several": _mean(several.auc), "several_interval": _interval(several.auc)} if several else {}),
                **({"labels": _mean(told.f1), "guessed_labels": _mean(told.guesser)} if told else {}),
                **({"score": _mean(main_score(findings, best)), "guess": _mean(guess_for(findings, best))}
                   if best else {}),
            })  # fmt: skip
    note = (
        "By the best attack on what a round sends. AUC: of telling who was trained on. "
        f"{score.label}: of {findings.kind}s that were reconstructed. Guessed: by who sees nothing."
    )
    return Table("What each view shows", columns, shown, note).without_empty()


def labels_table(findings: Findings) -> Table:
    """Return F1 over the labels of a batch."""
    columns = (
        METHOD, *view_columns(findings), *SIGHT, SIZES[0], TRIALS, Column("f1", "F1", "ratio"), SURE,
        Column("guesser", "guesser", "ratio"),
        Column("guesser_interval", "95 %", "ratio interval"), Column("against", "against guessing"),
    )  # fmt: skip
    rows = [
        _row(row, row.f1, row.f1.low > row.guesser.high, guesser_interval=_interval(row.guesser))
        for row in findings.labels
    ]
    return Table("Labels of a batch", columns, rows, "F1 over labels, each counted as often as it occurs.")


def means_table(findings: Findings) -> Table:
    """Return components of a summary whose mean leads to an example."""
    columns = (
        METHOD, Column("examples", "examples a mean", "number"), Column("components", "means", "count"),
        Column("found", "found, %", "percent"), Column("interval", "95 %", "interval"),
        Column("chance", "by chance, %", "percent"), Column("against", "against chance"),
    )  # fmt: skip
    rows = [_row(row, row.found, row.found.low > row.chance) for row in findings.means]
    note = "Found: the example nearest to a mean, among members and as many others, is one that it was made of."
    return Table("Examples behind the means of a summary", columns, rows, note)


def glossary_table(findings: Findings) -> Table:
    """Return the meaning of every attacker, attack and score that occurs."""
    rows: list[Reconstruction | Labels | Membership] = [*attacks(findings), *findings.labels, *findings.membership]
    words = {
        *(f"sees: {row.sees}" for row in rows),
        *(f"knows: {SHORT_KNOWS[row.knows]}" for row in rows),
        *(f"view: {SHORT_VIEWS[row.view]}" for row in rows if view_columns(findings)),
        *(row.attack for row in findings.reconstruction),
        "AUC" if findings.membership else "",
    }
    if any(row.scores for row in findings.reconstruction):
        words.add(SCORES[findings.kind][0].label.split(",")[0])
    shown = [{"word": word, "means": means} for word, means in GLOSSARY.items() if word in words]
    return Table("What the words mean", (Column("word", "word"), Column("means", "means", "prose")), shown)


def _row(row: BaseModel, main: Estimate | None, above: bool | None, **more: Any) -> dict[str, Any]:
    """Return the fields of a row, estimates by their means, and its comparison with guessing or chance."""
    fields: dict[str, Any] = {name: _mean(value) if isinstance(value, Estimate) else value for name, value in row}
    known = {
        "knows": SHORT_KNOWS.get(fields.get("knows", "")), "view": SHORT_VIEWS.get(fields.get("view", "")),
        "interval": _interval(main),
    }  # fmt: skip
    return {**fields, **known, "against": AGAINST[above], **more}


def _mean(found: Estimate | None) -> float | None:
    known = finite(found)
    return known.mean if known else None


def _interval(found: Estimate | None) -> tuple[float, float] | None:
    known = finite(found)
    return (known.low, known.high) if known else None
