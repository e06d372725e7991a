"""Metrics of generated answers, against the values of the package rouge-score's own tests."""

from __future__ import annotations

import numpy as np
import pytest

from trifed.data import Examples
from trifed.federation.training import answers
from trifed.federation.training.answers import exact_match, longest_common, rouge_l, score_answers, words


@pytest.mark.parametrize(
    ("reference", "answer", "expected"),
    [
        ("testing one two", "testing", 0.5),  # of rouge-score: precision 1, recall 1/3
        ("testing one two", "testing two", 4 / 5),
        ("testing one two three", "testing three two", 4 / 7),  # "testing two" of 4 and 3 words
        ("The quick brown fox jumps over the lazy dog", "The quick brown dog jumps on the log.", 10 / 17),
        ("a b c", "d e f", 0),
        ("", "a", 0),
        ("a", "", 0),
    ],
)
def test_rouge_l_is_f1_of_the_longest_common_subsequence(reference, answer, expected):
    assert rouge_l(reference, answer) == pytest.approx(expected)
    assert rouge_l(answer, reference) == pytest.approx(expected)


def test_words_have_no_capitals_and_no_punctuation_and_any_script():
    assert words("Über-Größe, 3 mal_so (groß)!") == ["über", "grösse", "3", "mal", "so", "gross"]
    assert words("猫が好き。 Да!") == ["猫が好き", "да"]
    assert longest_common("abcbdab", "bdcaba") == 4


def test_an_exact_match_is_one_but_for_white_space():
    assert exact_match("a  b\n", " a b") == 1 and exact_match("a b", "A b") == 0


def test_few_of_many_examples_are_answered_at_equal_distances(monkeypatch):
    asked = []

    def generate(shared_model, tensors, inputs, references, training):
        asked.append(inputs["prompt"])
        return [text if text == "4" else "no" for text in references]

    monkeypatch.setattr(answers, "generate", generate)
    texts = [str(n) for n in range(9)]
    examples = Examples({"prompt": texts, "answer": texts}, np.zeros(9, np.int64))
    found = score_answers(None, {}, examples, ["exact_match", "rouge_l"], None, 3)
    assert asked == [["0", "4", "8"]] and found["exact_match"] == found["rouge_l"] == pytest.approx(1 / 3)
    assert score_answers(None, {}, examples, ["exact_match"], None, 100)["exact_match"] == pytest.approx(1 / 9)
    none = Examples({"prompt": [], "answer": []}, np.zeros(0, np.int64))
    assert np.isnan(score_answers(None, {}, none, ["rouge_l"], None, 3)["rouge_l"])
