"""Settings of a run that cannot be combined, whatever the method is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trifed.config.settings import UNLABELLED

if TYPE_CHECKING:
    from trifed.config.run import RunConfig


def combination_problems(config: RunConfig) -> list[str]:
    """Return a message for each such combination in a configuration."""
    task, privacy, training = config.task, config.privacy, config.training
    pairs = task == "image-text-pairs"
    rules = [
        (
            config.metrics and task in UNLABELLED,
            f"metrics: task = '{task}' has no labels to predict; leave it out",
        ),
        (
            not config.data.label and task not in UNLABELLED,
            f"data.label: got '', but task = '{task}' learns labels; name their column",
        ),
        (
            pairs and training.micro_batch,
            "training.micro_batch: task = 'image-text-pairs' compares each pair with all others of its step, so a "
            "step cannot be split; leave it out, or set a smaller batch_size",
        ),
        (
            privacy.training and training.steps is None,
            "training.steps: missing; with privacy.training the number of steps must not depend on the number of "
            "a client's examples, so set it",
        ),
        (
            privacy.training and pairs,
            "privacy.training: task = 'image-text-pairs' compares each pair with all others of its step, so no "
            "gradient belongs to one example; leave it out",
        ),
        (
            (privacy.summary or privacy.training) and task == "causal-lm" and config.model.packing,
            "privacy: ε is for one example, but with model.packing a text is spread over several blocks; "
            "set model.packing = false",
        ),
    ]
    return [message for wrong, message in rules if wrong]
