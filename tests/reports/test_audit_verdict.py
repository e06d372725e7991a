"""The verdict of an audit, its cautions, and its comparisons with guessing follow from the numbers."""

from __future__ import annotations

import re

import pytest
from audits import image_findings, label_row, member, sure, text_findings, text_row

from trifed.reports.audit.findings import (
    Claim,
    Estimate,
    Findings,
    Means,
    guess_for,
    is_above,
    main_score,
    methods_of,
)
from trifed.reports.audit.report import audit_document
from trifed.reports.audit.tables import labels_table, means_table, membership_table, views_table, worst_table
from trifed.reports.audit.verdict import (
    advice,
    best_reconstruction,
    cautions,
    members,
    outcome,
    recovered,
    verdict,
)

QUIET = dict.fromkeys((1, 2, 4, 8, 16), 0.12)
"""F1 by batch that no interval separates from the guesser's 0.11."""


def claim(text: str, holds: bool) -> Claim:
    return Claim(claim=text, holds=holds, why="numbers")


def only(*rows, **changed) -> Findings:
    """Findings with these reconstructions and nothing else."""
    return text_findings(reconstruction=list(rows), membership=[], labels=[], means=[], **changed)


def codes(findings: Findings) -> list[str]:
    return [caution.code for caution in cautions(findings)]


def against(table) -> list[str | None]:
    return [row.get("against") for row in table.rows]


def test_the_verdict_counts_the_claims_that_do_not_hold():
    found = [claim("Nothing comes back.", False), claim("The attack works", True)]
    assert outcome(text_findings(claims=found))["broken"] == ["Nothing comes back."]
    assert "1 of 2 claims" in verdict(text_findings(claims=found))


@pytest.mark.parametrize(
    ("findings", "kind", "best", "above", "code"),
    [
        (text_findings(), "leaks", 0.97, True, "gradient-only"),
        (text_findings(QUIET), "quiet", 0.13, False, "nothing"),
        (text_findings(QUIET, membership=[member("ce-lora", 0.7)]), "leaks", 0.13, False, "hide-members"),
        (text_findings(finished=False), "leaks", 0.97, True, "finish"),
        (image_findings(), "quiet", 14.0, False, "nothing"),
        (image_findings((18.0, 13.0)), "leaks", 18.0, True, "protect"),
    ],
)
def test_the_verdict_has_the_best_reconstruction_and_what_to_do(findings, kind, best, above, code):
    found = outcome(findings)
    assert (found["kind"], found["recovered"], found["above_guessing"]) == (kind, best, above)
    assert advice(findings)[0] == code
    assert f"{best:.2f}" in verdict(findings) or f"{best} dB" in verdict(findings)


def test_the_batch_that_is_large_enough_is_named():
    assert "8 or more" in advice(text_findings())[1]  # with 4 the intervals are still apart


def test_the_verdict_prefers_a_row_above_guessing_to_a_higher_one():
    # A batch of 1 where guessing does as well, and one of 4 that gives something away.
    rows = [text_row("ce-lora", "span", 0.5), text_row("ce-lora", "guesser", 0.5)]
    rows += [text_row("ce-lora", "span", 0.4, batch=4), text_row("ce-lora", "guesser", 0.1, batch=4)]
    assert best_reconstruction(only(*rows)).batch == 4
    assert re.findall(r"0\.\d\d", recovered(only(*rows))) == ["0.40", "0.10"]


@pytest.mark.parametrize(("auc", "clear"), [(0.51, False), (0.57, False), (0.59, True)])
def test_members_are_identified_where_the_interval_lies_over_055(auc, clear):
    found = text_findings(membership=[member("ce-lora", auc)])
    assert (f"AUC {auc:.2f}" in members(found)) is clear
    assert (f"AUC {auc:.2f}" in verdict(found)) is clear
    assert against(membership_table(found)) == ["above" if clear else "as good"]


def test_an_unfinished_or_empty_audit_says_so_first():
    assert verdict(text_findings(finished=False)).startswith("Not finished. ")
    assert recovered(only(claims=[])) == members(only(claims=[])) == ""
    empty = only(finished=False, claims=[])
    assert verdict(empty).startswith("Not finished. ") and outcome(empty)["kind"] == "unknown"


@pytest.mark.parametrize(
    ("score", "above"),
    [(0.14, False), (0.149, False), (0.151, True)],  # intervals of ±0.02 part where means are more than 0.04 apart
)
def test_above_guessing_is_a_matter_of_intervals(score, above):
    row = text_row("ce-lora", "span", score)
    found = only(row, text_row("ce-lora", "guesser", 0.11))
    assert is_above(found, row) is above
    assert against(worst_table(found)) == ["above" if above else "as good", None]


def test_the_guesser_of_the_same_setting_is_the_one_to_beat():
    row = text_row("ce-lora", "span", 0.5, batch=4)
    here, other = (text_row(m, "guesser", f1, batch=4) for m, f1 in (("ce-lora", 0.1), ("fedavg-full", 0.2)))
    elsewhere = text_row("ce-lora", "guesser", 0.9, batch=1)
    assert guess_for(only(row, elsewhere, other, here), row) == here.scores["f1"]
    assert guess_for(only(row, elsewhere, other), row) == other.scores["f1"]
    assert guess_for(only(row, elsewhere), row) is None


def test_without_a_guesser_nothing_is_called_safe_or_lost():
    found = only(text_row("ce-lora", "span", 0.9), text_row("ce-lora", "span", 0.1, sees="update"))
    assert is_above(found, found.reconstruction[0]) is None
    assert against(worst_table(found)) == [None, None]
    assert "no guesser" in recovered(found)
    assert "no-guesser" in codes(found)


def test_controls_are_not_the_method():
    row = text_row("fedavg-full", "span", 0.99, knows="base")
    found = only(row, text_row("ce-lora", "span", 0.11), text_row("ce-lora", "guesser", 0.11))
    assert "0.99" not in verdict(found)
    assert methods_of(found) == ("ce-lora", "fedavg-full", "fedavg-lora")


@pytest.mark.parametrize(("share", "above"), [(0.9, True), (0.55, False)])
def test_labels_and_means_are_compared_with_chance(share, above):
    row = Means(method="ce-lora", examples=5.0, components=9, found=sure(share, 0.1), chance=0.5, attempts=[])
    assert against(means_table(text_findings(means=[row]))) == ["above" if above else "as good"]
    labels = text_findings(labels=[label_row(0.92 if above else 0.33)])  # a guesser has 0.3
    assert against(labels_table(labels)) == ["above" if above else "as good"]


def test_cautions_follow_from_what_was_tried():
    assert codes(text_findings()) == ["no-proof", "honest-server"]
    alone = only(text_row("ce-lora", "span", 0.1), text_row("ce-lora", "guesser", 0.1))
    assert codes(alone)[0] == "no-control"
    weak = only(*alone.reconstruction, text_row("fedavg-full", "span", 0.1))
    assert codes(weak)[0] == "weak-attacks"
    few = only(text_row("ce-lora", "span", 0.1, trials=7))
    assert codes(few) == ["no-control", "no-guesser", "few-trials"]


def test_an_exact_image_has_a_score_and_none_at_all_has_none():
    # An exact copy has no error, and so an infinite PSNR.
    exact = image_findings().reconstruction[0]
    inf = float("inf")
    copied = exact.model_copy(update={"scores": {"psnr": Estimate(mean=inf, low=40.0, high=inf)}})
    assert main_score(image_findings(), copied) == Estimate(mean=100.0, low=40.0, high=100.0)
    nothing = exact.model_copy(update={"scores": {"psnr": Estimate(mean=float("nan"), low=0.0, high=0.0)}})
    assert main_score(image_findings(), nothing) is None


def views_of(method: str, single: float, total: float, others: float) -> list:
    """Membership in each view: of one upload, of a sum of ten, and of the sum less one's own part."""
    found = {"single": (single, 1), "sum": (total, 10), "others": (others, 9)}
    return [member(method, auc, view=view, clients=clients) for view, (auc, clients) in found.items()]


def test_the_verdict_follows_the_view_that_somebody_has():
    rows = views_of("ce-lora", 0.8, 0.62, 0.64)
    assert "0.80" in members(only().model_copy(update={"membership": rows}))
    sealed = only(sealed=True).model_copy(update={"membership": rows})
    assert "0.64" in members(sealed) and "0.80" not in members(sealed)
    hidden = sealed.model_copy(update={"membership": views_of("ce-lora", 0.8, 0.52, 0.53)})
    assert members(hidden) == ""
    assert "weak-members" not in codes(hidden)
    nothing = sealed.model_copy(update={"membership": views_of("ce-lora", 0.54, 0.52, 0.53)})
    assert "weak-members" in codes(nothing)


def test_a_sum_is_compared_with_guesses_of_as_many_texts():
    rows = [text_row("ce-lora", attack, f1, view=view, clients=10 if view == "sum" else 1)
            for view, guess, found in (("single", 0.1, 0.9), ("sum", 0.5, 0.5))
            for attack, f1 in (("guesser", guess), ("span", found))]  # fmt: skip
    found = only(*rows)
    assert [is_above(found, row) for row in rows if row.attack == "span"] == [True, False]
    assert re.findall(r"0\.\d\d", recovered(found)) == ["0.90", "0.10"]
    assert re.findall(r"0\.\d\d", recovered(only(*rows, sealed=True))) == ["0.50", "0.50"]


def test_views_stand_side_by_side_if_sums_were_attacked():
    assert not views_table(text_findings()).rows
    assert "view" not in [column.key for column in membership_table(text_findings()).columns]
    rows = [*views_of("ce-lora", 0.8, 0.62, 0.64), member("ce-lora", 0.85, over="mean", rounds=2)]
    found = text_findings(membership=rows)
    table = views_table(found)
    assert [(row["view"], row["clients"], row["auc"]) for row in table.rows] == [
        ("one upload", 1, 0.8), ("sum", 10, 0.62), ("sum less its own", 9, 0.64),
    ]  # fmt: skip
    assert table.rows[0]["several"] == 0.85 and table.rows[1].get("several") is None
    sealed = views_table(found.model_copy(update={"sealed": True}))
    assert next(row["whose"] for row in sealed.rows).startswith("nobody")
    assert "view" in [column.key for column in membership_table(found).columns]


def test_the_first_plot_compares_methods_at_one_batch_size():
    """A longer batch gives a guesser more, so that scores of other sizes have another floor."""
    rows = [text_row("ce-lora", "span", 0.8), text_row("ce-lora", "guesser", 0.3)]
    rows += [text_row("ce-lora", "guesser", 0.7, batch=32), text_row("fedavg-lora", "span", 0.7, batch=32)]
    rows += [text_row("fedavg-lora", "span", 0.4)]
    table = audit_document(only(*rows)).first.table
    assert {row["line"]: row["mean"] for row in table.rows} == {"ce-lora": 0.8, "fedavg-lora": 0.4, "guesser": 0.3}
