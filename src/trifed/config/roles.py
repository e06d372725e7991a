"""Facts of each task that commands need before they load torch: the columns of its data, and its metric."""

from __future__ import annotations

from trifed.config.settings import TaskName
from trifed.data.roles import IMAGES, LABEL_LIST, LANGUAGE, NUMBER, QUESTIONS, TAGGED, TEXT, TEXTS, Roles

ROLES: dict[TaskName, Roles] = {
    "text-classification": TEXTS,
    "multi-label-classification": (*TEXTS, LABEL_LIST),
    "text-regression": (*TEXTS, NUMBER),
    "image-classification": IMAGES,
    "image-text": IMAGES,
    "image-text-pairs": (*IMAGES, TEXT),
    "causal-lm": LANGUAGE,
    "sequence-to-sequence": QUESTIONS,
    "image-text-to-text": (*IMAGES, *QUESTIONS),
    "token-classification": TAGGED,
}
"""The columns that a model of each task reads."""

ACCURACY: dict[TaskName, str] = {
    "text-classification": "accuracy",
    "multi-label-classification": "F1 per example",
    "text-regression": "R²",
    "image-classification": "accuracy",
    "image-text": "accuracy",
    "image-text-pairs": "matching accuracy",
    "causal-lm": "next-token accuracy",
    "sequence-to-sequence": "next-token accuracy",
    "image-text-to-text": "next-token accuracy",
    "token-classification": "word accuracy",
}
"""For each task, the metric that results give under the name "accuracy"."""
