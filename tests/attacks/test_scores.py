"""Scores of reconstructions and of membership: laws, then small cases by hand."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trifed.attacks.expectations import check_expectations
from trifed.attacks.inference import labels_from
from trifed.attacks.plan import Plan
from trifed.attacks.scores import area, auc_and_tpr, estimate, guess_tokens, image_scores, likeliest, text_scores
from trifed.export.evaluate import lcs_f1, rouge_l
from trifed.reports.audit.findings import Estimate, Reconstruction

TEXT = st.lists(st.integers(1, 6), min_size=1, max_size=8)


@given(st.lists(TEXT, min_size=1, max_size=3))
def test_a_perfect_copy_scores_one_in_whatever_order(texts):
    scores = text_scores(texts, texts[::-1])
    bigrams = [text for text in texts if len(text) > 1]
    assert scores.pop("rouge2") == pytest.approx(len(bigrams) / len(texts), abs=1e-9)
    assert all(value == pytest.approx(1) for value in scores.values())


def test_scores_by_hand():
    """Of a b c d found: a b x. Bag: 2 of 3 right, 2 of 4 found, F1 = 4/7; ab of ab, bx and of ab, bc, cd."""
    scores = text_scores([[1, 2, 3, 4]], [[1, 2, 9]])
    assert scores["precision"] == pytest.approx(2 / 3)
    assert scores["recall"] == pytest.approx(1 / 2)
    assert scores["f1"] == scores["rouge1"] == pytest.approx(4 / 7)
    assert scores["rouge2"] == pytest.approx(2 * (1 / 2) * (1 / 3) / (1 / 2 + 1 / 3))
    assert scores["rougeL"] == pytest.approx(4 / 7)
    assert scores["exact"] == 0
    assert text_scores([[1, 2]], [])["f1"] == 0


@given(TEXT, TEXT)
def test_the_longest_common_subsequence_is_that_of_the_answers(one, other):
    assert lcs_f1(one, other) == pytest.approx(rouge_l(" ".join(map(str, one)), " ".join(map(str, other))))


def test_an_image_and_its_copy_and_its_negative():
    image = np.random.default_rng(0).random((16, 16, 3))
    same = image_scores(image, image)
    assert same["mse"] == 0 and same["ssim"] == pytest.approx(1)
    # All of it brighter by a tenth: MSE 1/100, PSNR 20 dB; what varies is the same.
    brighter = image_scores(image, image + 0.1)
    assert brighter["mse"] == pytest.approx(0.01) and brighter["psnr"] == pytest.approx(20)
    assert brighter["ssim"] > 0.95
    assert image_scores(image, 1 - image)["ssim"] < 0


def test_the_area_counts_pairs_and_halves_of_equal_ones():
    """Of 1, 2, 3 against 2, 0: 1 > 0, 2 > 0 and half of 2 = 2, 3 > both: 4.5 of 6."""
    assert area(np.array([1.0, 2.0, 3.0]), np.array([2.0, 0.0])) == pytest.approx(4.5 / 6)


def test_intervals_hold_the_mean_and_shrink_to_it():
    found = estimate([0.0, 1.0, 1.0, 0.0])
    assert found.mean == 0.5 and found.low < 0.5 < found.high
    assert estimate([0.25]) == estimate([0.25, 0.25]) and estimate([0.25]).low == 0.25


@pytest.mark.slow
def test_members_that_stand_apart_and_members_that_do_not():
    auc, tpr = auc_and_tpr(np.arange(10.0) + 100, np.arange(10.0))
    assert auc.mean == tpr.mean == 1
    rng = np.random.default_rng(0)
    auc, tpr = auc_and_tpr(rng.normal(size=900), rng.normal(size=900))
    assert auc.low < 0.5 < auc.high and tpr.mean < 0.03
    auc, _ = auc_and_tpr(np.arange(10.0), np.arange(10.0) + 100)
    assert auc.mean == 0


def softmax_gradient(features, labels, classes):
    """Of the mean loss of a head with zero weights: Σ (1/K − [y = k]) x / n."""
    p = np.full((len(labels), classes), 1 / classes)
    p[np.arange(len(labels)), labels] -= 1
    return (p.T @ features / len(labels)).astype(np.float32)


def test_labels_are_read_off_the_heads_gradient_and_off_its_signs():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(6, 2000))  # nearly orthogonal
    labels = np.array([4, 4, 4, 7, 9, 9])
    gradient = softmax_gradient(features, labels, 12)
    assert Counter(labels_from({"head.weight": gradient}, 6)) == Counter(map(int, labels))
    [one] = labels_from({"head.weight": np.sign(softmax_gradient(features[:1], labels[:1], 12))}, 1)
    assert one == 4
    assert labels_from({"lora": gradient}, 6) is None


def test_a_guesser_takes_what_is_frequent_elsewhere():
    """Of 10 tokens 5 are ones, 3 twos: of 4, two ones and one two are expected, and one of what comes next."""
    known = [[1, 1, 1, 1, 1], [2, 2, 2, 3, 4]]
    assert sorted(token for text in guess_tokens(known, 4, 2) for token in text) == [1, 1, 2, 3]
    assert likeliest([5, 5, 5, 6], 4) == [5, 5, 5, 6]


def test_what_some_trials_gave_is_held_against_guesses_at_the_same():
    """Guessing gives .2 of eight texts, .4 of the two that are matched: .4 to .5 of those shows nothing."""

    def row(attack, trials, low, high):
        score = Estimate(mean=(low + high) / 2, low=low, high=high)
        about = {"method": "own-prior", "sees": "gradient", "knows": "base", "batch": 1, "steps": 1, "tokens": 9.0}
        return Reconstruction(attack=attack, trials=trials, scores={"f1": score}, attempts=[], **about)

    easy = [row("guesser", 8, 0.1, 0.3), row("guesser", 2, 0.3, 0.5), row("matching", 2, 0.4, 0.5)]
    assert [claim.holds for claim in check_expectations("own-prior", easy, [], "fedavg-full", "fedavg-lora")] == [
        True
    ]
    clear = [*easy[:2], row("matching", 2, 0.6, 0.7)]
    assert [claim.holds for claim in check_expectations("own-prior", clear, [], "fedavg-full", "fedavg-lora")] == [
        False
    ]
    assert Plan(matched=2, match_up_to=1).guessed_trials(1, 8) == [8, 2]
    assert Plan(matched=2, match_up_to=1).guessed_trials(2, 8) == Plan(matched=8).guessed_trials(1, 8) == [8]
