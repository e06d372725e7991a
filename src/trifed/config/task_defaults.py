"""Defaults of a run's settings that depend on its task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trifed.config.settings import UNLABELLED


def task_defaults(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings whose defaults depend on the task, nested, given the settings of a run."""
    task, data = values.get("task"), values.get("data")
    if task == "text-regression":
        return {"metric": "loss"}  # R² is 0 for all models that are worse than the mean, so it cannot decide
    if task not in UNLABELLED or not isinstance(data, Mapping):
        return {}
    defaults: dict[str, Any] = {"data": {"label": ""}}
    if task in ("image-text-to-text", "sequence-to-sequence"):
        defaults["data"] |= {"prompt": "prompt", "answer": "answer"}
    elif task == "causal-lm" and data.get("messages") is not None:
        defaults["model"] = {"template": "chat"}
    elif task == "causal-lm" and data.get("answer") is None:
        defaults["model"] = {"template": "{prompt}"}  # a plain text has no instruction around it
    return defaults
