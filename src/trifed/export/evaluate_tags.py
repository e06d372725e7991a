"""Evaluate a client's model that tags words on a file: scores of words and of whole entities."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np

from trifed.data.tags import TAGS, are_entities, tag_numbers
from trifed.export.evaluate import CHUNK, LabelScore, Progress, Scores
from trifed.export.inference_inputs import LabelledInputs
from trifed.export.locate import LocatedModel
from trifed.federation.tagger import Tagger
from trifed.federation.training.evaluation import evaluate
from trifed.federation.training.metrics import entity_f1
from trifed.tasks.entities import count_entities, entities
from trifed.tasks.token_classification import EncodedSentences


@dataclass(frozen=True)
class TagEvaluation(Scores):
    """Scores of a model that tags words.

    Attributes:
        words: Number of words.
        accuracy: Mean over sentences of the share of words with the right tag, in [0, 1].
        loss: Mean cross-entropy over the words that the model reads at once, nats.
        f1_entities: F1 of whole entities, in [0, 1]; None if the tags are not of entities, or there are none.
        entities: Scores of each kind of entity.
    """

    words: int
    accuracy: float
    loss: float
    f1_entities: float | None
    entities: list[LabelScore]


def evaluate_tagger(
    located: LocatedModel, tagger: Tagger, data: LabelledInputs, progress: Progress
) -> TagEvaluation:
    """Evaluate a client's model on sentences; long ones are read in parts.

    Raises:
        DataError: The file has a tag that the model was not trained on.
    """
    sentences = [item.text for item in data.inputs]
    numbers = tag_numbers(data.labels, tagger.labels, f"{data.where}, column of tags")
    found: list[list[str]] = []
    total = count = 0.0
    for first in range(0, len(sentences), CHUNK):
        rows = slice(first, first + CHUNK)
        encoded = tagger.encode({"text": sentences[rows], TAGS: numbers[rows]})
        read = sum(map(len, cast(EncodedSentences, encoded).words))
        scores = evaluate(tagger.model, encoded, located.training)
        total, count = total + scores.loss * read, count + read
        found += tagger.tags_of(sentences[rows])
        progress(scores.examples)
    true = [[str(tag) for tag in json.loads(row)] for row in data.labels]
    right = [np.mean([a == b for a, b in zip(*pair, strict=True)]) for pair in zip(true, found, strict=True)]
    kinds = list(_entity_scores(true, found)) if are_entities(tagger.labels) else []
    counts = np.sum([count_entities(*pair) for pair in zip(true, found, strict=True)], axis=0)
    return TagEvaluation(
        client=located.name,
        examples=len(sentences),
        words=sum(map(len, true)),
        accuracy=float(np.mean(right)),
        loss=total / count if count else math.nan,
        f1_entities=entity_f1(counts[None]) if kinds else None,
        entities=kinds,
    )


def _entity_scores(true: Sequence[Sequence[str]], found: Sequence[Sequence[str]]) -> Iterator[LabelScore]:
    """Yield precision, recall and F1 of each kind of entity, by name."""
    there, predicted = (
        Counter((row, *entity) for row, tags in enumerate(rows) for entity in entities(tags))
        for rows in (true, found)
    )
    for kind in sorted({entity[1] for entity in there | predicted}):
        of_kind, guessed = ({entity for entity in each if entity[1] == kind} for each in (there, predicted))
        right = len(of_kind & guessed)
        yield LabelScore(
            kind,
            len(of_kind),
            right / max(1, len(guessed)),
            right / max(1, len(of_kind)),
            2 * right / (len(of_kind) + len(guessed)),
        )
