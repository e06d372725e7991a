"""Clients with texts of their own on one shared model, and a comparison of what their training gave."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from trifed.config.settings import TrainingSettings
from trifed.data import text_examples
from trifed.federation.client_update import ClientDataset, ClientState, RoundTraining
from trifed.methods import METHODS

WORDS = ["invoice", "parcel", "password", "refund", "courier", "account"]
ALIKE = {"co-lora-like", "fedper-lora", "rolora"}
"""Methods that train what `fed-xs` or `fedavg-lora` trains, and differ at the server or in what is sent."""
ADAPTED = sorted(set(METHODS) - {"fedavg-full", "ce-lora-authors", "feddpa"} - ALIKE)
"""Methods whose clients can train in the same passes: nothing but linear layers and a bias trains.

`feddpa` can too, in each of its phases, which `methods/test_feddpa.py` checks.
"""


def settings(**values):
    base = {"batch_size": 4, "learning_rate": 1e-2, "precision": "fp32", "device": "cpu"}
    return TrainingSettings(**{**base, **values})


def texts(count, seed):
    rng = np.random.default_rng(seed)
    rows = [" ".join(rng.choice(WORDS, rng.integers(1, 30))) for _ in range(count)]
    return text_examples(rows, None, rng.integers(0, 3, count))


def clients_of(shared_model, counts, make=texts):
    encoded = [shared_model.encode(make(count, seed)) for seed, count in enumerate(counts)]
    return [ClientDataset(i, f"c{i}", data, data, data) for i, data in enumerate(encoded)]


def rounds_of(shared_model, clients, number=1, states=None, **more):
    states = states or [ClientState(dict(shared_model.start), {}, 0) for _ in clients]
    received = shared_model.pack(shared_model.start, shared_model.received) if shared_model.layout else None
    return [
        RoundTraining(client, state, received, 3, number, 2, **more)
        for client, state in zip(clients, states, strict=True)
    ]


def check_equal(alone, together, rtol=2e-3, atol=2e-4):
    for one, other in zip(alone, together, strict=True):
        assert other.loss == pytest.approx(one.loss, rel=1e-4, nan_ok=True)
        assert other.state.steps == one.state.steps and set(other.state.tensors) == set(one.state.tensors)
        for name, tensor in one.state.tensors.items():
            torch.testing.assert_close(other.state.tensors[name], tensor, rtol=rtol, atol=atol)
        assert set(other.state.moments) == set(one.state.moments)
        for name, tensor in one.sent.items():
            torch.testing.assert_close(other.sent[name], tensor, rtol=rtol, atol=atol)
