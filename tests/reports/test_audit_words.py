"""What an audit says follows from its numbers: change one, and the sentence changes."""

from __future__ import annotations

import pytest
from audits import image_findings, label_row, member, sure, text_findings, text_row

from trifed.reports.audit.advice import advice
from trifed.reports.audit.findings import Claim, Estimate, Findings, Means
from trifed.reports.audit.ranking import guess_for, is_above, main_score, methods_of
from trifed.reports.audit.report import cautions
from trifed.reports.audit.words import headline, hidden, learned

QUIET = dict.fromkeys((1, 2, 4, 8, 16), 0.12)
"""F1 by batch that no interval tells from the guesser's 0.11."""


def claim(text: str, holds: bool) -> Claim:
    return Claim(claim=text, holds=holds, why="numbers")


def only(*rows, **changed) -> Findings:
    """Findings with these reconstructions and nothing else."""
    return text_findings(reconstruction=list(rows), membership=[], labels=[], means=[], **changed)


def test_the_headline_says_first_what_does_not_hold():
    found = [claim("Nothing comes back.", False), claim("The attack works", True)]
    assert headline(text_findings(claims=found)) == "Does not hold: Nothing comes back."
    found += [claim(f"c{number}", False) for number in range(3)]
    assert headline(text_findings(claims=found)) == "Does not hold: Nothing comes back; c0; and 2 more claims."


def test_else_the_headline_says_how_much_comes_back_at_most():
    assert headline(text_findings()) == (
        "Both claims hold: a curious server recovers the text with F1 0.97 at most (batch of 1), where guessing "
        "gives 0.11."
    )
    quiet = headline(text_findings(QUIET, claims=[claim("c", True)]))
    assert quiet.startswith("The claim holds: a curious server recovers the text with F1 0.13 at most")
    assert quiet.endswith("not clearly more than guessing, 0.11.")
    assert "14.0 dB at most (batch of 1), not clearly more than guessing, 13.0 dB" in headline(image_findings())
    assert "18.0 dB at most (batch of 1), where guessing gives 13.0 dB" in headline(image_findings((18.0, 13.0)))


def test_the_headline_tells_of_members_where_they_can_be_told():
    assert "AUC" not in headline(text_findings())
    told = headline(text_findings(membership=[member("ce-lora", 0.9)]))
    assert told.endswith("; it tells a client's examples from others with AUC 0.90.")


def test_the_headline_takes_what_is_above_guessing_before_what_is_merely_high():
    # A batch of 1 where guessing does as well, and one of 4 that gives something away.
    rows = [text_row("ce-lora", "span", 0.5), text_row("ce-lora", "guesser", 0.5)]
    rows += [text_row("ce-lora", "span", 0.4, batch=4), text_row("ce-lora", "guesser", 0.1, batch=4)]
    assert "F1 0.40 at most (batch of 4), where guessing gives 0.10" in headline(only(*rows))


def test_what_is_not_finished_or_not_there_is_said_first():
    assert headline(text_findings(finished=False)).startswith("Not finished. Both claims hold")
    broken = text_findings(finished=False, claims=[claim("c", False)])
    assert headline(broken) == "Not finished. Does not hold: c."
    empty = only(finished=False, claims=[])
    assert headline(empty) == "Not finished. No claim was tested: nothing was measured yet."
    assert learned(empty) == hidden(empty) == ["Nothing was measured yet."]
    assert advice(empty) == ["Measure something first."]


def test_members_alone_make_a_headline_too():
    found = text_findings(reconstruction=[], labels=[], means=[], membership=[member("ce-lora", 0.7)])
    assert headline(found).endswith("no reconstruction was measured; members are told from others with AUC 0.70.")


@pytest.mark.parametrize(
    ("score", "above"),
    [(0.14, False), (0.149, False), (0.151, True)],  # intervals of ±0.02 part where means are more than 0.04 apart
)
def test_above_guessing_is_a_matter_of_intervals(score, above):
    row = text_row("ce-lora", "span", score)
    found = only(row, text_row("ce-lora", "guesser", 0.11))
    assert is_above(found, row) is above
    assert ("guessing 0.11" in learned(found)[0]) is above
    assert ("guessing 0.11" in hidden(found)[0]) is not above


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
    assert all(line.startswith("Perhaps the text from") for line in learned(found))
    assert hidden(found) == ["That cannot be said without a guesser."]
    assert advice(found) == ["Audit again with a guesser: without one nothing follows from these numbers."]
    assert "There was no guesser" in " ".join(cautions(found))


@pytest.mark.parametrize(
    ("score", "words"),
    [(0.95, "Nearly all tokens"), (0.6, "Most tokens"), (0.3, "Part of"), (0.19, "A few tokens")],
)
def test_words_for_how_much_comes_back(score, words):
    found = only(text_row("ce-lora", "span", score), text_row("ce-lora", "guesser", 0.11))
    assert learned(found)[0].startswith(words)


def test_each_attacker_is_told_apart():
    found = text_findings()
    assert "from the plain gradient of a batch, knowing A and B: F1 0.97 (0.95 to 0.99)" in learned(found)[0]
    assert "above guessing up to a batch of 4" in learned(found)[0]
    assert "80 % (80 to 80) word for word" in learned(found)[0]
    assert "what a round sends, knowing A and B" in hidden(found)[0]
    assert "knowing how A and B start" in hidden(found)[0]
    assert "knowing the base model alone" in hidden(found)[0]
    quiet = text_findings(QUIET, labels=[])
    assert learned(quiet) == ["Nothing, as far as these attacks and this many trials can tell."]


@pytest.mark.parametrize(
    ("auc", "told", "words"),
    [(0.51, False, "not clearly more than a coin"), (0.57, False, "little more than a coin"), (0.59, True, "0.5")],
)
def test_members_are_told_where_the_interval_lies_over_055(auc, told, words):
    found = text_findings(membership=[member("ce-lora", auc)], reconstruction=[], labels=[], means=[])
    line = next(line for line in (learned(found) if told else hidden(found)) if "AUC" in line)
    assert words in line
    assert f"AUC {auc:.2f} ({auc - 0.03:.2f} to {auc + 0.03:.2f})" in line
    assert any("privacy.update" in rule for rule in advice(found)) is told


def test_controls_are_not_the_method():
    row = text_row("fedavg-full", "span", 0.99, knows="base")
    quiet = text_row("ce-lora", "span", 0.11)
    found = only(row, quiet, text_row("ce-lora", "guesser", 0.11))
    assert "0.99" not in " ".join([headline(found), *learned(found), *hidden(found)])
    assert advice(found) == ["Nothing follows from these numbers."]
    assert methods_of(found) == ("ce-lora", "fedavg-full", "fedavg-lora")


def test_larger_batches_help_where_they_did():
    assert any("from a batch of 8 on nothing was above guessing" in rule for rule in advice(text_findings()))
    stubborn = dict.fromkeys((1, 2, 4, 8, 16), 0.9)
    rule = next(rule for rule in advice(text_findings(stubborn)) if rule.startswith("Larger batches"))
    assert "alone are not enough: a batch of 16, the largest tried, still gives F1 0.90" in rule
    one = only(text_row("ce-lora", "span", 0.9), text_row("ce-lora", "guesser", 0.11))
    assert "Larger batches may help: only a batch of 1 was tried" in advice(one)[0]


def test_more_steps_help_where_they_did():
    rows = [text_row("ce-lora", "span", f1, steps=n, sees="update") for n, f1 in ((1, 0.9), (2, 0.5), (8, 0.11))]
    found = only(*rows, text_row("ce-lora", "guesser", 0.11))
    assert any(rule.startswith("More local steps: from 8 steps on nothing") for rule in advice(found))


def test_a_size_without_a_guesser_is_not_called_safe():
    rows = [text_row("ce-lora", "span", 0.9), text_row("ce-lora", "guesser", 0.11)]
    found = only(*rows, text_row("ce-lora", "span", 0.9, batch=8))
    assert "nothing was above guessing" not in " ".join(advice(found))


def test_the_token_guard_is_named_where_small_uploads_leak():
    # The guard stands at twice the rank, 16 tokens of rank 8.
    guess = [text_row("ce-lora", "guesser", 0.11, batch=batch) for batch in (1, 4)]
    small, large = (
        text_row("ce-lora", "span", 0.9, tokens=12.0),
        text_row("ce-lora", "span", 0.6, batch=4, tokens=50.0),
    )
    rule = next(rule for rule in advice(only(small, *guess)) if "guard" in rule)
    assert "uploads of fewer than 16 tokens" in rule
    rule = next(rule for rule in advice(only(small, large, *guess)) if "guard" in rule)
    assert "is not enough: an upload of about 50 tokens still gives F1 0.60" in rule
    assert not any("guard" in rule for rule in advice(only(large, *guess)))
    assert any("fewer than 24 tokens" in rule for rule in advice(only(small, *guess, rank=12)))


def test_secret_factors_help_where_only_they_gave_it_away():
    guess = text_row("ce-lora", "guesser", 0.11)
    known, start, base = (
        text_row("ce-lora", "span", f1, knows=knows)
        for f1, knows in ((0.9, "factors"), (0.11, "start"), (0.11, "base"))
    )
    hide, seed = "Factors A and B that the server does not know", "A start of A and B that the server cannot"
    assert any(rule.startswith(hide) for rule in advice(only(known, start, base, guess)))
    assert not any(rule.startswith(hide) for rule in advice(only(known, guess)))  # nothing else was tried
    leaking = text_row("ce-lora", "span", 0.9, knows="start")
    rules = advice(only(known, leaking, base, guess))
    assert any(rule.startswith(seed) for rule in rules)
    assert not any(rule.startswith(hide) for rule in rules)


def test_noise_that_is_set_already_is_not_advised_as_new():
    fresh = advice(text_findings())[-1]
    assert fresh.startswith("privacy.update: noise on what is sent")
    noisy = text_findings(configuration={"privacy": {"update": {"noise": 1.0}}})
    assert "privacy.update is set and does not suffice here: more noise." in advice(noisy)


def test_labels_and_means_are_held_against_guessing():
    labels = text_findings(reconstruction=[], membership=[], means=[], labels=[label_row(0.92)])
    assert learned(labels) == [
        "Which labels a batch of 4 had: F1 0.92 (0.90 to 0.94), guessing 0.30 (0.28 to 0.32)."
    ]
    assert any("Labels of batches of 4 can be told" in rule for rule in advice(labels))
    guessed = text_findings(reconstruction=[], membership=[], means=[], labels=[label_row(0.33)])
    assert hidden(guessed) == ["Labels: F1 0.33 (0.31 to 0.35), guessing 0.30 (0.28 to 0.32)."]
    for share, told in ((0.9, True), (0.55, False)):
        row = Means(method="ce-lora", examples=5.0, components=9, found=sure(share, 0.1), chance=0.5, attempts=[])
        means = text_findings(reconstruction=[], membership=[], labels=[], means=[row])
        assert ("behind the summary: 90 %" in learned(means)[0]) is told
        assert any("means of more than about 5 examples" in rule for rule in advice(means)) is told


def test_cautions_follow_from_what_was_tried():
    assert not any("control" in line for line in cautions(text_findings()))
    alone = only(text_row("ce-lora", "span", 0.1), text_row("ce-lora", "guesser", 0.1))
    assert cautions(alone)[0].startswith("No control was attacked")
    weak = only(*alone.reconstruction, text_row("fedavg-full", "span", 0.1))
    assert cautions(weak)[0].startswith("No control was read back above guessing either")
    few = only(text_row("ce-lora", "span", 0.1, trials=7))
    assert any("As few as 7 trials" in line for line in cautions(few))
    assert not any("trials" in line for line in cautions(text_findings()))


def test_an_exact_image_has_a_score_and_none_at_all_has_none():
    # An exact copy has no error, and so an infinite PSNR.
    exact = image_findings().reconstruction[0]
    inf = float("inf")
    copied = exact.model_copy(update={"scores": {"psnr": Estimate(mean=inf, low=40.0, high=inf)}})
    assert main_score(image_findings(), copied) == Estimate(mean=100.0, low=40.0, high=100.0)
    nothing = exact.model_copy(update={"scores": {"psnr": Estimate(mean=float("nan"), low=0.0, high=0.0)}})
    assert main_score(image_findings(), nothing) is None
