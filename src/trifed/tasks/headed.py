"""Classification models: cross-entropy over logits, and a linear head on the base model's features."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from trifed.tasks.base import Batch, BatchScores, TaskModel


class ClassificationModel(TaskModel):
    """A model whose `forward` returns one logit per label, (n, n_labels)."""

    def loss(self, batch: Batch) -> Tensor:
        """Return the mean cross-entropy of the batch, in nats, a scalar."""
        return cross_entropy(self(batch), batch["labels"])

    def score(self, batch: Batch) -> BatchScores:
        """Return the summed cross-entropy and the most probable labels."""
        logits, labels = self(batch), batch["labels"]
        predictions = logits.argmax(-1)
        loss = cross_entropy(logits, labels, reduction="sum")
        return BatchScores(loss, len(labels), predictions == labels, predictions)


class HeadedModel(ClassificationModel):
    """A frozen base with an adapter, and a linear head; a subclass defines the features."""

    def __init__(self, encoder: nn.Module, hidden: int, n_labels: int) -> None:
        super().__init__(encoder, hidden)
        self.head = nn.Linear(hidden, n_labels)

    def forward(self, batch: Batch) -> Tensor:
        """Return logits, (n, n_labels), float32."""
        logits: Tensor = self.head(self.features(batch))
        return logits.float()
