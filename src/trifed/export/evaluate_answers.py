"""Evaluate a client's language model on a file: perplexity, next-token accuracy, exact match, ROUGE-L."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from trifed.common.errors import DataError
from trifed.export.evaluate import Progress
from trifed.export.inference_inputs import LabelledInputs, by_role
from trifed.export.locate import LocatedModel
from trifed.federation.client_model import Writer
from trifed.federation.training import evaluate
from trifed.tasks.prompts import CHAT

CHUNK = 64
"""Prompts that are answered together, in smaller batches of similar length."""


@dataclass(frozen=True)
class AnswerEvaluation:
    """Scores of one client's language model on one file.

    Attributes:
        client: Name of the client.
        examples: Number of rows.
        loss: Mean over the tokens of the answers, nats.
        perplexity: exp(loss).
        accuracy: Mean over examples of the share of next tokens that the model predicts right, in [0, 1].
        exact_match: Share of the model's answers that equal the file's, white space apart; None for plain texts.
        rouge_l: Mean ROUGE-L of the model's answers, in [0, 1]; None for plain texts.
    """

    client: str
    examples: int
    loss: float
    perplexity: float
    accuracy: float
    exact_match: float | None
    rouge_l: float | None


def evaluate_writer(
    located: LocatedModel, writer: Writer, data: LabelledInputs, tokens: int, progress: Progress
) -> AnswerEvaluation:
    """Evaluate a client's language model in the precision of `located.training`. `tokens`: the longest answer.

    Raises:
        DataError: The file has plain texts, but the model was trained on conversations.
    """
    if not data.labels and writer.settings.template == CHAT:
        raise DataError(
            f"{data.where}: got texts without answers, but the model of '{located.name}' was trained on "
            f"conversations; name the columns of prompts and answers with --text-column and --label-column"
        )
    roles = {**by_role(data.inputs, prompts=True), "answer": data.labels}
    encoded = writer.encode(roles if data.labels else {"text": roles["prompt"]})
    scores = evaluate(writer.model, encoded, located.training)
    exact = rouge = None
    if data.labels:
        answers: list[str] = []
        for first in range(0, len(data.inputs), CHUNK):
            chunk = data.inputs[first : first + CHUNK]
            answers += writer.answer_all(by_role(chunk, prompts=True), tokens)
            progress(len(chunk))
        pairs = list(zip(answers, data.labels, strict=True))
        exact = float(np.mean([one.split() == other.split() for one, other in pairs]))
        rouge = float(np.mean([rouge_l(one, other) for one, other in pairs]))
    else:
        progress(len(data.inputs))
    perplexity = math.exp(scores.loss) if scores.loss < 700 else math.inf
    return AnswerEvaluation(located.name, len(data.inputs), scores.loss, perplexity, scores.accuracy, exact, rouge)


def rouge_l(one: str, other: str) -> float:
    """Return the F1 of the longest common subsequence of two texts' words, in [0, 1].

    Words are in lower case and without punctuation.

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
