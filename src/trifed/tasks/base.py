"""The interface of a task: reading of data, the model around a frozen base, its loss and its features.

Code outside this package uses a `Task` and never depends on which task it is.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Hashable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from trifed.config.settings import ModelSettings, Pooling, TaskName
from trifed.data import Examples, Roles
from trifed.tasks.base_model import LoadedBase

Batch = dict[str, Tensor]

NOT_INPUTS = frozenset({"labels", "targets", "weights"})
"""Tensors of a batch that the loss needs, and that no model reads."""


def inputs_of(batch: Batch) -> Batch:
    """Return the part of a batch that a model reads."""
    return {name: tensor for name, tensor in batch.items() if name not in NOT_INPUTS}


class Encoded(Protocol):
    """One client's n examples in the model's input format."""

    @property
    def labels(self) -> NDArray[np.int64]:
        """Class of each example, (n,); all 0 if the data have no labels."""

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Input length of each example, (n,); batches are made of examples of similar length."""

    def inputs(self, row: int) -> Mapping[str, Set[Hashable]]:
        """Return the distinct inputs of an example's layers: token ids, or patches of an image.

        Positions do not count: in a model without position embeddings, equal tokens are equal inputs.

        Returns:
            The inputs by prefix of the names of the layers that read them; "" for all layers.
        """

    @property
    def cut(self) -> int:
        """Number of examples that were truncated to the model's maximum length."""

    def __len__(self) -> int:
        """Return the number of examples, n."""

    def batch(self, rows: NDArray[np.int64], device: torch.device) -> Batch:
        """Return the given rows as a batch for the model, on `device`."""


@dataclass(frozen=True)
class BatchScores:
    """The scores of a batch of n examples.

    Attributes:
        loss: Sum over all predictions, in nats, a scalar.
        count: Number of predictions.
        right: Share of each example's predictions that are correct, (n,), or what `TaskModel.shares_right` needs.
        predictions: Predicted classes, (n,), or (0,) for a task without classes.
        probabilities: Predicted probabilities, (n, n_labels), predicted numbers, (n, 1), or (0,) for other tasks.
        entities: Numbers of true, predicted and rightly predicted entities, (n, 3), or (0, 3) without tags.
    """

    loss: Tensor
    count: int
    right: Tensor
    predictions: Tensor
    probabilities: Tensor = field(default_factory=lambda: torch.zeros(0))
    entities: Tensor = field(default_factory=lambda: torch.zeros(0, 3, dtype=torch.int64))


class TaskModel(nn.Module):
    """A frozen base with an adapter, and the task's additional modules.

    Attributes:
        encoder: The base, wrapped by PEFT or not.
        hidden: Size of an example's feature vector.
        compared: Number of examples that a score compares with each other; 0 if each is scored by itself.
        clients: Number of clients whose batches lie one after the other in a batch, each with its own layers.
        further_rows: Rows that the model computes for each client beside those of its batch.
    """

    compared: int = 0
    clients: int = 1
    further_rows: int = 0

    def __init__(self, encoder: nn.Module, hidden: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.hidden = hidden

    @abstractmethod
    def features(self, batch: Batch) -> Tensor:
        """Return the examples' features for summaries and baselines, (n, hidden), float32."""

    def augmented(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Return a training batch with random changes of its inputs, if the task makes any."""
        return batch

    def outputs(self, batch: Batch) -> Tensor:
        """Return what the loss is computed from, (n, ...); a row depends on its own example alone."""
        outputs: Tensor = self(batch)
        return outputs

    @abstractmethod
    def loss_of(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Return the mean loss of a batch with these `outputs`, in nats, a scalar."""

    def loss(self, batch: Batch) -> Tensor:
        """Return the mean loss of the batch, in nats, a scalar."""
        return self.loss_of(self.outputs(batch), batch)

    def predictions(self, batch: Batch) -> int:
        """Return the number of predictions that the batch's loss is the mean of."""
        return len(batch["labels"])

    @abstractmethod
    def score(self, batch: Batch) -> BatchScores:
        """Return the scores of the batch."""

    def score_features(self, features: Tensor, labels: Tensor) -> BatchScores | None:
        """Return the scores of examples by their `features`, (n, hidden); None if features do not suffice."""
        return None

    def shares_right(self, right: NDArray[np.float64], data: Encoded) -> NDArray[np.float64]:
        """Return the score of each of n examples, (n,), from `BatchScores.right` of all of them, (n,)."""
        return right


class ClassificationModel(TaskModel):
    """A model whose `forward` returns one logit per label, (n, n_labels)."""

    def loss_of(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Return the mean cross-entropy of logits, (n, n_labels), in nats, a scalar.

        With weights it is Σ w_i loss_i / n. Divided by Σ w_i instead, a single example would have the same
        gradient with any weight, and a step in parts another one than as a whole.
        """
        if "weights" in batch:
            return (cross_entropy(outputs, batch["labels"], reduction="none") * batch["weights"]).mean()
        return cross_entropy(outputs, batch["labels"])

    def score(self, batch: Batch) -> BatchScores:
        """Return the summed cross-entropy and the most probable labels."""
        return _class_scores(self(batch), batch["labels"])


def _class_scores(logits: Tensor, labels: Tensor) -> BatchScores:
    predictions = logits.argmax(-1)
    return BatchScores(
        cross_entropy(logits, labels, reduction="sum"),
        len(labels),
        predictions == labels,
        predictions,
        logits.float().softmax(-1),
    )


class BiasHead(nn.Module):
    """A head that adds one bias per class to the logits, initially 0."""

    def __init__(self, n_labels: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(n_labels))

    def forward(self, logits: Tensor) -> Tensor:
        """Return logits with the bias, (n, n_labels)."""
        return logits + self.bias


class HeadedModel(ClassificationModel):
    """A frozen base with an adapter, and a linear head; a subclass defines the features, by `pooling`."""

    def __init__(self, encoder: nn.Module, hidden: int, n_labels: int, pooling: Pooling) -> None:
        super().__init__(encoder, hidden)
        self.head = nn.Linear(hidden, n_labels)
        self.personal: nn.Linear | None = None
        self.pooling = pooling

    def add_personal_head(self) -> None:
        """Add a second head of zeros, `personal`, and a bias, `prior`, for the log of the label shares.

        They change the training loss alone. Scores are those of `head`, so the second head is added to the first
        before the model is used.
        """
        self.personal = nn.Linear(self.head.in_features, self.head.out_features)
        nn.init.zeros_(self.personal.weight)
        nn.init.zeros_(self.personal.bias)
        self.prior = BiasHead(self.head.out_features)

    def forward(self, batch: Batch) -> Tensor:
        """Return logits, (n, n_labels), float32."""
        logits: Tensor = self.head(self.features(batch))
        return logits.float()

    def outputs(self, batch: Batch) -> Tensor:
        """Return the logits that the loss is computed from.

        With a personal head (n, 2 n_labels): those of the head with the label prior, and those of both heads, in
        which the features and the head's logits are constants.
        """
        if self.personal is None:
            return super().outputs(batch)
        features = self.features(batch)
        logits: Tensor = self.head(features).float()
        both = logits.detach() + self.personal(features.detach()).float()
        return torch.cat([self.prior(logits), both], dim=-1)

    def loss_of(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Return the mean cross-entropy, in nats, a scalar; with a personal head the sum of that of both parts."""
        if self.personal is None:
            return super().loss_of(outputs, batch)
        common, both = outputs.chunk(2, dim=-1)
        return super().loss_of(common, batch) + super().loss_of(both, batch)

    def score_features(self, features: Tensor, labels: Tensor) -> BatchScores | None:
        """Return the scores of the head's labels for `features`, (n, hidden)."""
        return _class_scores(self.head(features).float(), labels)


@dataclass(frozen=True)
class Task:
    """One kind of problem.

    Attributes:
        name: The task's name in settings.
        roles: The columns that a model reads.
        load: Loads a base model from the user's name and a dtype.
        encode: Converts examples to a base model's input format.
        build: Builds the model from the base wrapped by an adapter, the base, the label names and settings.
        code: Name of the template in `export/templates` of the Python code in a model card.
        native_class: transformers' Auto class for a base with a head, if there is one.
        probe: Some values of the first role, on which an export to `native_class` is verified.
        generate: Converts a model, the base, inputs by role, settings and the most new tokens to one answer per
            prompt; None if the models do not answer.
        output: A label, several labels, a number, a generated answer, the text out of several that matches an
            image, or a tag for each word.
    """

    name: TaskName
    roles: Roles
    load: Callable[..., LoadedBase]
    encode: Callable[[LoadedBase, Examples, ModelSettings], Encoded]
    build: Callable[[nn.Module, LoadedBase, Sequence[str], ModelSettings], TaskModel]
    code: Literal["classifier", "image_text", "language_model", "sequence_to_sequence", "tagger"]
    native_class: Any = None
    probe: Sequence[Any] = ()
    generate: (
        Callable[[TaskModel, LoadedBase, Mapping[str, Sequence[Any]], ModelSettings, int], list[str]] | None
    ) = None
    output: Literal["label", "labels", "number", "answer", "match", "tags"] = "label"

    @property
    def labelled(self) -> bool:
        """True if the model learns one label for each example; otherwise labels only describe the examples."""
        return self.output == "label"

    @property
    def has_head(self) -> bool:
        """True if the model has a layer of its own for labels or numbers, of each example or each word."""
        return self.output in ("label", "labels", "number", "tags")
