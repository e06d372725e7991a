"""A client's language model on a file: how likely it finds the answers, and how near its own come to them."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from trifed.common.errors import DataError
from trifed.data import Examples
from trifed.export.evaluate import Told
from trifed.export.inference_inputs import Asked, Labelled, asked_of
from trifed.export.locate import LocatedModel
from trifed.federation.client_model import Writer
from trifed.federation.training import evaluate
from trifed.tasks.prompts import CHAT

CHUNK = 64
"""Prompts that are answered together, in smaller batches of like length."""


@dataclass(frozen=True)
class AnswerEvaluation:
    """One client's language model on one file.

    `loss`: mean over the tokens of the answers, nats; `perplexity`: exp of it; `accuracy`: mean over examples of
    the share of next tokens that are the most probable ones; `exact_match`: share of the answers that are what
    stands in the file, but for white space; `rouge_l`: mean over examples; both None where a file has texts alone.
    """

    client: str
    examples: int
    loss: float
    perplexity: float
    accuracy: float
    exact_match: float | None
    rouge_l: float | None


def evaluate_writer(
    found: LocatedModel, writer: Writer, data: Labelled, tokens: int, told: Told
) -> AnswerEvaluation:
    """Measure a client's language model, in the precision of `found.training`; `tokens`: the longest answer.

    Raises:
        DataError: texts for a model that was trained on conversations.
    """
    if not data.labels and writer.settings.template == CHAT:
        raise DataError(
            f"{data.where}: the model of '{found.name}' was trained on conversations and is measured on prompts "
            f"with answers; name their columns with --text-column and --label-column"
        )
    encoded = writer.task.encode(writer.base, _examples(data), writer.settings)
    scores = evaluate(writer.model, encoded, found.training)
    exact = rouge = None
    if data.labels:
        answers = list(_answers(writer, data.asked, tokens, told))
        pairs = list(zip(answers, data.labels, strict=True))
        exact = float(np.mean([one.split() == other.split() for one, other in pairs]))
        rouge = float(np.mean([rouge_l(one, other) for one, other in pairs]))
    else:
        told(len(data.asked))
    perplexity = math.exp(scores.loss) if scores.loss < 700 else math.inf
    return AnswerEvaluation(found.name, len(data.asked), scores.loss, perplexity, scores.accuracy, exact, rouge)


def _examples(data: Labelled) -> Examples:
    """As a run would have read them: prompts, what they are about, and answers; or texts."""
    labels = np.zeros(len(data.asked), np.int64)
    texts = [item.text for item in data.asked]
    if not data.labels:
        return Examples({"text": texts}, labels)
    return Examples({**asked_of(data.asked), "answer": list(data.labels)}, labels)


def _answers(writer: Writer, asked: list[Asked], tokens: int, told: Told) -> list[str]:
    found: list[str] = []
    for first in range(0, len(asked), CHUNK):
        chunk = asked[first : first + CHUNK]
        found += writer.answer_all(asked_of(chunk), tokens)
        told(len(chunk))
    return found


def rouge_l(one: str, other: str) -> float:
    """F1 of the longest common subsequence of two texts' words, in lower case and without punctuation, in [0, 1].

    Lin, "ROUGE: A Package for Automatic Evaluation of Summaries", 2004, section 3 with β = 1.
    """
    first, second = (re.findall(r"\w+", text.lower()) for text in (one, other))
    return lcs_f1(first, second) if first or second else 1.0


def lcs_f1(one: Sequence[object], other: Sequence[object]) -> float:
    """Return F1 of the longest common subsequence of two sequences, in [0, 1]; 0 if both are empty."""
    common = [0] * (len(other) + 1)  # of all items of `one` so far with the first j of `other`
    for item in one:
        diagonal = 0
        for place, another in enumerate(other, start=1):
            above = common[place]
            common[place] = diagonal + 1 if item == another else max(above, common[place - 1])
            diagonal = above
    return 2 * common[-1] / max(1, len(one) + len(other))
