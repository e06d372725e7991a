"""Entities in tags: spans and counts by the definition of seqeval, whose values stand here."""

from __future__ import annotations

import numpy as np
import pytest

from trifed.data.tags import are_entities
from trifed.federation.training.metrics import entity_f1
from trifed.tasks.entities import count_entities, entities


@pytest.mark.parametrize(
    ("tags", "spans"),
    [
        ("B-PER I-PER O B-LOC", [("PER", 0, 1), ("LOC", 3, 3)]),
        ("B-PER B-PER I-PER", [("PER", 0, 0), ("PER", 1, 2)]),
        ("I-PER I-PER O", [("PER", 0, 1)]),  # begins with I, as in IOB1
        ("O I-LOC B-LOC I-LOC", [("LOC", 1, 1), ("LOC", 2, 3)]),
        ("B-PER I-LOC I-LOC", [("PER", 0, 0), ("LOC", 1, 2)]),
        ("S-PER S-PER B-LOC I-LOC E-LOC", [("PER", 0, 0), ("PER", 1, 1), ("LOC", 2, 4)]),
        ("U-PER U-PER B-LOC I-LOC L-LOC", [("PER", 0, 0), ("PER", 1, 1), ("LOC", 2, 4)]),
        ("B-E-1 I-E-1", [("E-1", 0, 1)]),  # a hyphen in the type
        ("O O", []),
        ("", []),
    ],
)
def test_the_spans_of_tags(tags, spans):
    assert entities(tags.split()) == spans


def test_f1_is_seqevals():
    """The example of seqeval's README, whose f1_score is 0.5; of three sentences, whose f1_score is 2/3."""
    true = ["O O O B-MISC I-MISC I-MISC O", "B-PER I-PER O"]
    found = ["O O B-MISC I-MISC I-MISC I-MISC O", "B-PER I-PER O"]
    pairs = zip(true, found, strict=True)
    counts = np.array([count_entities(*(tags.split() for tags in pair)) for pair in pairs])
    assert counts.tolist() == [[1, 1, 0], [1, 1, 1]]
    assert entity_f1(counts) == 0.5
    assert entity_f1(np.array([[1, 1, 1], [1, 0, 0], [0, 0, 0]])) == pytest.approx(2 / 3)


def test_without_any_entity_there_is_no_f1():
    assert np.isnan(entity_f1(np.zeros((3, 3), np.int64)))
    assert np.isnan(entity_f1(np.zeros((0, 3), np.int64)))


def test_which_tags_stand_for_entities():
    assert are_entities(["B-PER", "I-PER", "O"]) and are_entities(["S-A", "O"])
    assert not are_entities(["NOUN", "VERB"]) and not are_entities(["O"]) and not are_entities(["0", "1"])
