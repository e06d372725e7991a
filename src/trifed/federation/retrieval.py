"""A client's model of images and captions, which classifies images by any texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from trifed.common.errors import RunError
from trifed.federation.client_model import Classifier, ClientModel, check_gives, open_client
from trifed.tasks import TASKS
from trifed.tasks.image_text import PromptedClassifier
from trifed.tasks.towers import TwoTowerModel, tokenize


@dataclass(frozen=True)
class RetrievalModel(ClientModel):
    """A model that says which of some texts fits an image."""

    def among(self, texts: Sequence[str]) -> Classifier:
        """A classifier of images whose labels are these texts, whatever they are; RunError without any."""
        if not texts:
            raise RunError("got no texts; give at least one that an image may fit")
        device = next(self.model.parameters()).device
        tokens = tokenize(self.base, texts)
        model = PromptedClassifier(self.model.encoder, self.model.hidden, tokens, augment="none").to(device)
        return Classifier(TASKS["image-text"], model, self.base, self.settings, list(texts))

    @torch.no_grad()
    def embeddings(self, texts: Sequence[str]) -> Tensor:
        """Of texts, in the space of the images' embeddings: (n, hidden), of norm 1."""
        towers = cast(TwoTowerModel, self.model.eval())
        device = next(towers.parameters()).device
        return towers.embed_texts({name: tensor.to(device) for name, tensor in tokenize(self.base, texts).items()})


def load_retrieval_model(folder: str | Path, base: str | None = None) -> RetrievalModel:
    """A client's model of images and captions from `runs/NAME/clients/CLIENT`; see `load_client` for the rest.

    Raises:
        RunError: as there, or the folder holds another kind of model.
    """
    parts = open_client(Path(folder), base)
    check_gives(folder, parts, "match")
    return RetrievalModel(**vars(parts))
