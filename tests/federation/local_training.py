"""Texts, settings and a round of local training, which tests of training, batches and evaluation share."""

from __future__ import annotations

import numpy as np
import torch

from trifed.config.settings import TrainingSettings
from trifed.data import text_examples
from trifed.federation.training.batches import RoundRandom
from trifed.federation.training.local_training import LocalTraining, train_locally

CPU = torch.device("cpu")
WORDS = ["invoice", "parcel", "password", "refund", "courier", "account"]
# Row i has i + 1 words: all lengths differ, so that a batch of all rows has one order only.
TEXTS = [" ".join([WORDS[i % 6], *(f"word{(7 * i + k) % 170:03d}" for k in range(i))]) for i in range(12)]
EXAMPLES = text_examples(TEXTS, None, np.arange(12) % 3)
EMPTY = text_examples([], None, np.zeros(0, np.int64))


def chosen(**values) -> TrainingSettings:
    base = {"batch_size": 4, "eval_batch_size": 4, "learning_rate": 1e-2, "precision": "fp32", "device": "cpu"}
    return TrainingSettings(**{**base, **values})


def train(shared_model, data, setting, *, rng=0, before=0, in_all=100, moments=None):
    job = LocalTraining(shared_model.parameters, data, RoundRandom.of(rng, 1, 0), before, in_all, moments or {})
    return train_locally(shared_model.model, [job], setting)[0]
