"""A client's model of images and captions, which classifies images by any texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from trifed.common.errors import RunError
from trifed.federation.client_model import Classifier, ClientModel, load_model
from trifed.tasks import TASKS
from trifed.tasks.image_text import PromptedClassifier
from trifed.tasks.towers import TwoTowerModel, tokenize


@dataclass(frozen=True)
class RetrievalModel(ClientModel):
    """A model that chooses, among several texts, the one that fits an image."""

    gives = "match"

    def among(self, texts: Sequence[str]) -> Classifier:
        """Return a classifier of images with these texts as labels; raises RunError without any text."""
        if not texts:
            raise RunError("got no texts; give at least one that an image may fit")
        tokens = tokenize(self.base, texts)
        model = PromptedClassifier(self.model.encoder, self.model.hidden, tokens, augment="none").to(self.device)
        return Classifier(TASKS["image-text"], model, self.base, self.settings, list(texts))

    @torch.no_grad()
    def embeddings(self, texts: Sequence[str]) -> Tensor:
        """Return embeddings of texts in the space of the images' embeddings: (n, hidden), of norm 1."""
        towers = cast(TwoTowerModel, self.model.eval())
        return towers.embed_texts(
            {name: tensor.to(self.device) for name, tensor in tokenize(self.base, texts).items()}
        )


def load_retrieval_model(folder: str | Path, base: str | None = None) -> RetrievalModel:
    """Load a client's model of images and captions; see `load_model` for arguments and errors."""
    return load_model(RetrievalModel, folder, base)
