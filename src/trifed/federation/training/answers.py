"""Metrics of generated answers: exact match, and ROUGE-L.

ROUGE-L: Lin, "ROUGE: A Package for Automatic Evaluation of Summaries", 2004, with F1 of equal weights, as in the
package rouge-score. Words are sequences of letters and digits of any script, without regard to capitals.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

    from trifed.config.settings import TrainingSettings
    from trifed.data import Examples
    from trifed.federation.training.shared_model import SharedModel

BATCH = 16
"""Answers that are generated together."""


def exact_match(reference: str, answer: str) -> float:
    """Return 1 if both texts are equal but for white space at the ends and its amount in between, else 0."""
    return float(reference.split() == answer.split())


def rouge_l(reference: str, answer: str) -> float:
    """Return F1 of the longest common subsequence of words, in [0, 1]; 0 if a text has no words."""
    ours, theirs = words(answer), words(reference)
    common = longest_common(ours, theirs)
    return 2 * common / (len(ours) + len(theirs)) if common else 0.0


ANSWER_METRICS: dict[str, Callable[[str, str], float]] = {"exact_match": exact_match, "rouge_l": rouge_l}
"""Functions of a reference and a generated answer."""


def words(text: str) -> list[str]:
    """Return the words of a text in small letters."""
    return re.findall(r"[^\W_]+", text.casefold())


def longest_common(one: Sequence[str], other: Sequence[str]) -> int:
    """Return the length of the longest common subsequence of two sequences."""
    before = [0] * (len(other) + 1)
    for word in one:
        now = [0]
        for place, found in enumerate(other):
            now.append(before[place] + 1 if word == found else max(now[place], before[place + 1]))
        before = now
    return before[-1]


def score_answers(
    shared_model: SharedModel,
    tensors: dict[str, Tensor],
    examples: Examples,
    names: Sequence[str],
    training: TrainingSettings,
    most: int,
) -> dict[str, float]:
    """Generate answers by a client's model, and return metrics of them by name; NaN without any example.

    Args:
        shared_model: The model.
        tensors: The client's tensors.
        examples: Examples with prompts and answers, in the roles "prompt" and "answer".
        names: Names in `ANSWER_METRICS`.
        training: Settings of the training, for the precision.
        most: Number of examples that are answered; if there are more, they are taken at equal distances.
    """
    rows = np.unique(np.linspace(0, len(examples) - 1, min(most, len(examples))).round().astype(int))
    if not len(rows):
        return dict.fromkeys(names, float("nan"))
    inputs = {role: [values[row] for row in rows] for role, values in examples.inputs.items()}
    references = [str(text) for text in inputs.pop("answer")]
    answers = generate(shared_model, tensors, inputs, references, training)
    pairs = list(zip(references, answers, strict=True))
    return {name: float(np.mean([ANSWER_METRICS[name](*pair) for pair in pairs])) for name in names}


def generate(
    shared_model: SharedModel,
    tensors: dict[str, Tensor],
    inputs: Mapping[str, list[str]],
    references: list[str],
    training: TrainingSettings,
) -> list[str]:
    """Generate an answer to each input, of at most as many tokens as the longest reference has.

    The model computes in the precision of the training, because frozen weights may have been narrowed to it.
    """
    import torch

    from trifed.federation.training.device_placement import autocast, device_and_precision

    write = shared_model.task.generate
    if write is None:
        raise ValueError(f"a model of the task '{shared_model.task.name}' does not answer")
    shared_model.load(tensors)
    shared_model.model.eval()
    processor = shared_model.base.processor
    tokenizer = getattr(processor, "tokenizer", processor)
    tokens = 1 + max(len(ids) for ids in tokenizer(references, add_special_tokens=False)["input_ids"])
    answers: list[str] = []
    with torch.no_grad(), autocast(*device_and_precision(shared_model.model, training)):
        for first in range(0, len(references), BATCH):
            part = {role: values[first : first + BATCH] for role, values in inputs.items()}
            answers += write(shared_model.model, shared_model.base, part, shared_model.settings, tokens)
    return answers
