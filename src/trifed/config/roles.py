"""The columns that a model of each task reads, known before the task and torch are loaded."""

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
