"""An audit's findings as grids."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from trifed.reports.audit.findings import Estimate, Findings, Reconstruction
from trifed.reports.audit.ranking import (
    attacks,
    best_first,
    by_setting,
    finite,
    guess_for,
    guesses,
    is_above,
    main_score,
    methods_of,
)
from trifed.reports.audit.words import KNOWS, SEES
from trifed.reports.tables import Column, Grid

SHORT_KNOWS = {"base": "W0", "start": "start of A, B", "factors": "A and B"}
METHOD, KNOWN, SEEN = Column("method", "method"), Column("knows", "knows"), Column("sees", "sees")
TRIALS, BATCH = Column("trials", "trials", "count"), Column("batch", "batch", "count")
SURE = Column("interval", "95 %", "ratio interval")
TEXT_SCORES = (
    Column("precision", "precision", "ratio"),
    Column("recall", "recall", "ratio"),
    Column("rouge1", "ROUGE-1", "ratio"),
    Column("rouge2", "ROUGE-2", "ratio"),
    Column("rougeL", "ROUGE-L", "ratio"),
    Column("exact", "exact, %", "percent"),
)
IMAGE_SCORES = (
    Column("ssim", "SSIM", "ratio"),
    Column("mse", "MSE", "number"),
    Column("distance", "distance", "number"),
)
MAIN_COLUMNS = {
    "text": (Column("f1", "F1", "ratio"), SURE),
    "image": (Column("psnr", "PSNR, dB", "number"), Column("interval", "95 %", "number interval")),
}
AGAINST = {True: "above", False: "as good", None: None}


def claims_grid(findings: Findings) -> Grid:
    """What was expected, whether it held, why."""
    columns = (Column("claim", "claim", "prose"), Column("holds", "", "verdict"), Column("why", "why", "prose"))
    rows: list[list[Any]] = [[claim.claim, claim.holds, claim.why] for claim in findings.claims]
    return Grid("What was expected", columns, rows)


def reconstruction_grid(findings: Findings, every: Findings | None = None) -> Grid:
    """One row an attack and setting: methods in order, the guesser last. `every`: who has the guesses."""
    more = TEXT_SCORES if findings.kind == "text" else IMAGE_SCORES
    columns = (
        METHOD, Column("attack", "attack"), SEEN, KNOWN, BATCH, Column("steps", "steps", "count"),
        Column("tokens", "tokens", "number"), TRIALS, *MAIN_COLUMNS[findings.kind],
        Column("against", "against guessing"), *more,
    )  # fmt: skip
    rows = [_reconstruction(every or findings, row, more) for row in ordered(findings)]
    once = [row for place, row in enumerate(rows) if row not in rows[:place]]  # one guesser, kept with each method
    note = "Tokens: that an upload stands for. 'Above': the interval lies above the guesser's at the same batch."
    return Grid("Every attack and setting", columns, once, note)


def worst_grid(findings: Findings) -> Grid:
    """For each method and attacker the setting in which most came back: the row to fear."""
    groups = [group for method in methods_of(findings) for group in by_setting(attacks(findings, method)).values()]
    chosen = [ranked[0] for group in [*groups, guesses(findings)] if (ranked := best_first(findings, group))]
    grid = reconstruction_grid(findings.model_copy(update={"reconstruction": chosen}), findings)
    return Grid("At its worst, for each method and attacker", grid.columns, grid.rows, grid.note).without_empty()


def ordered(findings: Findings) -> list[Reconstruction]:
    """The audited method's rows, the controls', the guesser's; inside what knows most first, then by batch."""
    methods, knows = methods_of(findings), ("factors", "start", "base")

    def place(row: Reconstruction) -> tuple[Any, ...]:
        last = row.attack == "guesser"
        setting = (0, "", 0) if last else (methods.index(row.method), row.sees, knows.index(row.knows))
        return (last, *setting, row.batch, row.steps, row.attack)

    return sorted(findings.reconstruction, key=place)


def _reconstruction(findings: Findings, row: Reconstruction, more: Iterable[Column]) -> list[Any]:
    guesser = row.attack == "guesser"
    found = main_score(findings, row)
    who = ["guesser", None, None, None] if guesser else [row.method, row.attack, row.sees, SHORT_KNOWS[row.knows]]
    against = None if guesser or guess_for(findings, row) is None else AGAINST[is_above(findings, row)]
    scores = [_mean(row.scores.get(column.key)) for column in more]
    size = [row.batch, row.steps, row.tokens, row.trials]
    return [*who, *size, _mean(found), _interval(found), against, *scores]


def membership_grid(findings: Findings) -> Grid:
    """Areas under curves, and true positives at 1 % false ones."""
    columns = (
        METHOD, Column("source", "from"), SEEN, KNOWN, Column("examples", "examples in it", "number"),
        Column("members", "members", "count"), Column("others", "others", "count"), Column("auc", "AUC", "ratio"),
        SURE, Column("tpr", "found at 1 % false, %", "percent"), Column("tpr_interval", "95 %", "interval"),
    )  # fmt: skip
    methods = methods_of(findings)
    rows = [
        [
            row.method, row.source, row.sees, SHORT_KNOWS[row.knows], row.examples, row.members, row.others,
            _mean(row.auc), _interval(row.auc), _mean(row.tpr), _interval(row.tpr),
        ]
        for row in sorted(findings.membership, key=lambda r: (methods.index(r.method), r.source, r.examples))
    ]  # fmt: skip
    return Grid("Was an example among a client's?", columns, rows, "An AUC of 0.5 is a coin's, 1 is certainty.")


def labels_grid(findings: Findings) -> Grid:
    """F1 over the labels of a batch."""
    columns = (
        METHOD, SEEN, KNOWN, BATCH, TRIALS, Column("f1", "F1", "ratio"), SURE,
        Column("guesser", "guesser", "ratio"), Column("guesser_interval", "95 %", "ratio interval"),
    )  # fmt: skip
    rows = [
        [
            row.method, row.sees, SHORT_KNOWS[row.knows], row.batch, row.trials, _mean(row.f1), _interval(row.f1),
            _mean(row.guesser), _interval(row.guesser),
        ]
        for row in findings.labels
    ]  # fmt: skip
    return Grid("Labels of a batch", columns, rows, "F1 over labels, each counted as often as it occurs.")


def means_grid(findings: Findings) -> Grid:
    """Components of a summary whose mean leads to an example."""
    columns = (
        METHOD, Column("examples", "examples a mean", "number"), Column("components", "means", "count"),
        Column("found", "found, %", "percent"), Column("interval", "95 %", "interval"),
        Column("chance", "by chance, %", "percent"),
    )  # fmt: skip
    rows = [
        [row.method, row.examples, row.components, _mean(row.found), _interval(row.found), row.chance]
        for row in findings.means
    ]
    note = "Found: the example nearest to a mean, among members and as many others, stands behind it."
    return Grid("Examples behind the means of a summary", columns, rows, note)


def attackers_grid(findings: Findings) -> Grid:
    """The attackers that occur, in words."""
    settings = [(row.sees, row.knows) for row in attacks(findings)]
    settings += [(row.sees, row.knows) for row in findings.labels]
    members = [(row.sees, row.knows) for row in findings.membership]
    sees = [seen for seen in SEES if any(seen == one for one, _ in [*settings, *members])]
    knows = [known for known in KNOWS if any(known == one for _, one in [*settings, *members])]
    rows = [[f"sees: {seen}", SEES_AT_LENGTH[seen]] for seen in sees]
    rows += [[f"knows: {SHORT_KNOWS[known]}", KNOWS_AT_LENGTH[known]] for known in knows]
    tried = {row.attack for row in findings.reconstruction}
    rows += [[attack, means] for attack, means in ATTACKS.items() if attack in tried]
    evaluated_model = [
        name for name in SCORES if name in {score for row in findings.reconstruction for score in row.scores}
    ]
    rows += [
        [SCORES[name][0], SCORES[name][1]]
        for name in [*evaluated_model, *(["auc"] if findings.membership else [])]
    ]
    columns = (Column("word", "word"), Column("means", "means", "prose"))
    return Grid("What the words mean", columns, rows)


SEES_AT_LENGTH = {
    "gradient": "The plain gradient of one batch, of what is sent: the most that an upload could ever show.",
    "update": "What a client's round really sends, after all of its local steps.",
}
KNOWS_AT_LENGTH = {
    "base": "The base model W0 and nothing of the adapter: an outsider who sees uploads.",
    "start": "W0, and where A and B started: they come from a seed that all clients share, and so the server.",
    "factors": "W0, and A and B as they are now: a server that hands them out, is sent them, or got hold of them.",
}
ATTACKS = {
    "embedding": "Reads off which rows of the embedding have a gradient: the tokens themselves, in no order. Of "
    "an image the gradients of its patches and their places are linear equations.",
    "span": "Looks for tokens whose inputs to a layer lie in the span of what was sent, or solves for patches "
    "whose inputs do: exact for few tokens, or for one image.",
    "matching": "Makes up examples until what they would send is what was sent.",
    "guesser": "Sees nothing: what knowing the kind of data alone gives, and so the floor for every attack.",
}


SCORES = {
    "f1": (
        "F1",
        "Tokens that come back, whatever their order, against those there are: 1 is all of them and no other.",
    ),
    "psnr": (
        "PSNR",
        "How near an image comes, in dB: 10 dB more are a tenth of the squared error.",
    ),
    "auc": ("AUC", "How often an example of the client's ranks above one that is not: 0.5 is a coin, 1 always."),
}


def _mean(found: Estimate | None) -> float | None:
    known = finite(found)
    return known.mean if known else None


def _interval(found: Estimate | None) -> tuple[float, float] | None:
    known = finite(found)
    return (known.low, known.high) if known else None
