"""Tasks: the batches, loss and features of one kind of problem, one file each."""

from trifed.config.settings import TaskName
from trifed.tasks import (
    causal_lm,
    image_classification,
    image_text,
    image_text_pairs,
    image_text_to_text,
    multi_label_classification,
    sequence_to_sequence,
    text_classification,
    text_regression,
    token_classification,
)
from trifed.tasks.base import Batch, BatchScores, Encoded, Task, TaskModel

TASKS: dict[TaskName, Task] = {
    module.TASK.name: module.TASK
    for module in (
        text_classification,
        multi_label_classification,
        text_regression,
        image_classification,
        image_text,
        image_text_pairs,
        causal_lm,
        sequence_to_sequence,
        image_text_to_text,
        token_classification,
    )
}

__all__ = ["TASKS", "Batch", "BatchScores", "Encoded", "Task", "TaskModel"]
