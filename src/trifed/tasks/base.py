"""What a task is: how data are read, how a model is made of a frozen base, what its loss and its features are.

Everything above asks a `Task` and never which one it is.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Hashable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from trifed.config.settings import ModelSettings, Pooling, TaskName
from trifed.data import Examples, Roles
from trifed.tasks.base_model import LoadedBase

Batch = dict[str, Tensor]


class Encoded(Protocol):
    """One client's examples as the model reads them."""

    @property
    def labels(self) -> NDArray[np.int64]:
        """Each example's class, (n,); all 0 where the data have no labels."""

    @property
    def lengths(self) -> NDArray[np.int64]:
        """How much there is to read of each example, (n,): those of like length go into one batch."""

    def inputs(self, row: int) -> Mapping[str, Set[Hashable]]:
        """What layers read of an example, whatever is the same once: token ids, or patches of an image.

        By how the names of the layers begin that read it; "" for all. Where tokens stand does not count: where a
        model adds no positions, equal tokens are equal inputs.
        """

    @property
    def cut(self) -> int:
        """How many examples were longer than the model may read."""

    def __len__(self) -> int:
        """How many examples, n."""

    def batch(self, rows: NDArray[np.int64], device: torch.device) -> Batch:
        """The given rows as the model takes them."""


@dataclass(frozen=True)
class Scored:
    """What a model makes of a batch of n examples.

    `loss`: summed over all that is predicted, nats, a scalar; `count`: how many predictions that are; `right`: the
    share of each example's predictions that are right, (n,); `predictions`: classes, (n,), or (0,) where the task
    has none.
    """

    loss: Tensor
    count: int
    right: Tensor
    predictions: Tensor


class TaskModel(nn.Module):
    """A frozen base with an adapter, and what the task adds.

    `encoder`: the base, wrapped by PEFT or not; `hidden`: how many numbers `features` gives an example;
    `compared`: how many examples a score compares with each other, 0 where each is scored by itself.
    """

    encoder: nn.Module
    hidden: int
    compared: int = 0

    @abstractmethod
    def features(self, batch: Batch) -> Tensor:
        """What stands for an example in summaries and controls, (n, hidden), float32."""

    @abstractmethod
    def loss(self, batch: Batch) -> Tensor:
        """Mean loss of the batch, nats, a scalar."""

    def predictions(self, batch: Batch) -> int:
        """How many predictions the loss of the batch is the mean of."""
        return len(batch["labels"])

    @abstractmethod
    def score(self, batch: Batch) -> Scored:
        """How well the batch is predicted."""


@dataclass(frozen=True)
class Snippet:
    """Pieces of Python for a model card, which works without this package.

    `processor`: transformers' Auto class; `arguments`: of the function that is asked; `batch`: an expression over
    these and `processor`, with `{length}` in the place of the length; `pool`: lines from `output` to `pooled`, by
    pooling; `example`: arguments of a call.
    """

    processor: str
    arguments: str
    batch: str
    pool: Mapping[Pooling, str]
    example: str
    pair_example: str = ""


Write = Callable[[TaskModel, LoadedBase, Mapping[str, Sequence[Any]], ModelSettings, int], list[str]]


@dataclass(frozen=True)
class Task:
    """One kind of problem.

    `metric`: what is called accuracy here; `roles`: what is read of a row; `load`: a base model by the name that
    the user gave, and how it is held; `encode`: examples for a base; `build`: base wrapped by an adapter, base,
    labels' names and settings → model; `stock`: transformers' Auto class for a base with a head, and `probe` a few
    values of the first role on which it is compared with ours; `snippet`: how a model card loads and asks a model;
    `write`: model, base, inputs by role, settings and a largest number of tokens → the answers, of a model that
    answers; `gives`: a label, an answer that is written, or which of some texts fits an image.
    """

    name: TaskName
    metric: str
    roles: Roles
    load: Callable[..., LoadedBase]
    encode: Callable[[LoadedBase, Examples, ModelSettings], Encoded]
    build: Callable[[nn.Module, LoadedBase, Sequence[str], ModelSettings], TaskModel]
    stock: Any = None
    probe: Sequence[Any] = ()
    snippet: Snippet | None = None
    write: Write | None = None
    gives: Literal["label", "answer", "match"] = "label"

    @property
    def labelled(self) -> bool:
        """Are labels what is learned? Where they are not, they only say what an example is."""
        return self.gives == "label"
