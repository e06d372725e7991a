"""Tasks: the batches, loss and features of one kind of problem, one file each."""

from trifed.config.settings import TaskName
from trifed.tasks import (
    causal_lm,
    image_classification,
    image_text,
    image_text_pairs,
    image_text_to_text,
    text_classification,
)
from trifed.tasks.base import Batch, BatchScores, Encoded, Snippet, Task, TaskModel

_ALL = (
    text_classification.TASK, image_classification.TASK, image_text.TASK, image_text_pairs.TASK,
    causal_lm.TASK, image_text_to_text.TASK,
)  # fmt: skip
TASKS: dict[TaskName, Task] = {task.name: task for task in _ALL}

__all__ = ["TASKS", "Batch", "BatchScores", "Encoded", "Snippet", "Task", "TaskModel"]
