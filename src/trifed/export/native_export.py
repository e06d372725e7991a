"""Convert a merged classifier to the transformers class that computes the same, if there is one."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from trifed.federation.client_model import ClientModel

_TOLERANCE = 1e-5


def native_classifier(merged: ClientModel) -> PreTrainedModel | None:
    """Return the transformers class with the weights of `merged`, or None if no class computes the same.

    Many architectures have another pooling or a dense layer between the encoder and the last layer. Instead of a
    table of architectures, the class is filled with the weights and compared on a few examples.
    """
    if merged.task.native_class is None:
        return None
    encoder: Any = merged.model.encoder
    head: Any = merged.model.head
    config = type(encoder.config).from_dict(encoder.config.to_dict())
    config.num_labels = len(merged.labels)  # first, because it resets the names
    config.id2label = dict(enumerate(merged.labels))
    config.label2id = {label: number for number, label in enumerate(merged.labels)}
    config.problem_type = "single_label_classification"
    try:
        with torch.random.fork_rng(devices=[]):
            stock = merged.task.native_class.from_config(config)
    except ValueError:  # transformers has no such class for this architecture
        return None
    inner, last = getattr(stock, stock.base_model_prefix, None), getattr(stock, "classifier", None)
    if inner is None or not isinstance(last, nn.Linear) or last.weight.shape != head.weight.shape:
        return None
    expected = inner.state_dict().keys()
    # The classes that do not use the pooler do not have its weights either.
    weights = {k: v for k, v in encoder.state_dict().items() if k in expected or not k.startswith("pooler.")}
    if weights.keys() != expected:
        return None
    inner.load_state_dict(weights)
    last.load_state_dict(head.state_dict())
    return stock.eval() if _same_logits(merged, stock) else None


@torch.no_grad()
def _same_logits(merged: ClientModel, stock: PreTrainedModel) -> bool:
    data = merged.encode({merged.task.roles[0].setting: list(merged.task.probe)})
    batch = data.batch(np.arange(len(data)), torch.device("cpu"))
    inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
    merged.model.eval()
    ours, theirs = merged.model(batch), stock.eval()(**inputs).logits.float()
    return bool(torch.allclose(ours, theirs, rtol=_TOLERANCE, atol=_TOLERANCE))
