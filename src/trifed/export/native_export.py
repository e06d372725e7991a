"""A merged classifier as the class that transformers has for it, where that class computes exactly the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from trifed.data import Examples
from trifed.federation.client_model import ClientModel

_TOLERANCE = 1e-5


def native_classifier(merged: ClientModel) -> PreTrainedModel | None:
    """The stock class with `merged`'s weights, or None where none computes the same.

    Most architectures put something between the encoder and the last layer: another pooling, a dense layer. So
    this is not looked up in a table: the class is filled with the weights and asked whether it gives the same
    logits on a few examples.
    """
    if merged.task.native_class is None:
        return None
    encoder: Any = merged.model.encoder
    head: Any = merged.model.head
    config = type(encoder.config).from_dict(encoder.config.to_dict())
    config.num_labels = len(merged.labels)  # first: it resets the names
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
    wanted = inner.state_dict().keys()
    # A pooler that nothing reads is left out of the classes that do not read it either.
    weights = {k: v for k, v in encoder.state_dict().items() if k in wanted or not k.startswith("pooler.")}
    if weights.keys() != wanted:
        return None
    inner.load_state_dict(weights)
    last.load_state_dict(head.state_dict())
    return stock.eval() if _agree(merged, stock) else None


@torch.no_grad()
def _agree(merged: ClientModel, stock: PreTrainedModel) -> bool:
    probe = merged.task.roles[0], merged.task.probe
    examples = Examples({probe[0].setting: list(probe[1])}, np.zeros(len(probe[1]), np.int64))
    data = merged.task.encode(merged.base, examples, merged.settings)
    batch = data.batch(np.arange(len(data)), torch.device("cpu"))
    inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
    merged.model.eval()
    ours, theirs = merged.model(batch), stock.eval()(**inputs).logits.float()
    return bool(torch.allclose(ours, theirs, rtol=_TOLERANCE, atol=_TOLERANCE))
