"""A base model with one linear head on its features: what all classifications have in common."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from trifed.tasks.base import Batch, Scored, TaskModel


class HeadedModel(TaskModel):
    """A frozen base with an adapter, and a linear head; a subclass says what the features are."""

    def __init__(self, encoder: nn.Module, hidden: int, n_labels: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.hidden = hidden
        self.head = nn.Linear(hidden, n_labels)

    def forward(self, batch: Batch) -> Tensor:
        """Logits, (n, n_labels), float32."""
        logits: Tensor = self.head(self.features(batch))
        return logits.float()

    def loss(self, batch: Batch) -> Tensor:
        """Mean cross-entropy of the batch, in nats, a scalar."""
        return cross_entropy(self(batch), batch["labels"])

    def score(self, batch: Batch) -> Scored:
        """Summed cross-entropy and the most probable labels."""
        logits, labels = self(batch), batch["labels"]
        predictions = logits.argmax(-1)
        return Scored(
            cross_entropy(logits, labels, reduction="sum"), len(labels), predictions == labels, predictions
        )
