"""Finished runs whose clients' adapters are of every kind."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from trifed.config.run import make_config
from trifed.federation.client_model import save_client
from trifed.federation.training.shared_model import SharedModel, build_shared_model
from trifed.tasks.text_classification import load_encoder

LABELS = ["billing", "delivery", "login"]


@pytest.fixture(scope="session")
def save_as_client(toy_values, tiny_encoder) -> Callable[..., SharedModel]:
    """`save_as_client(folder, method, pooling="cls")`: a client with random tensors, as a run would save it."""

    def save(folder: Path, method, labels=LABELS, **model) -> SharedModel:
        config = make_config(toy_values(model=model))
        settings = (config.model, config.adapter, config.training)
        shared_model = build_shared_model(load_encoder(config.model.name), method, len(labels), 0, settings)
        rng = torch.Generator().manual_seed(5)
        tensors = {name: 0.3 * torch.randn(t.shape, generator=rng) for name, t in shared_model.start.items()}
        shutil.rmtree(folder, ignore_errors=True)
        save_client(folder, shared_model, tensors, labels, config.model.name)
        return shared_model

    return save


@pytest.fixture(scope="session")
def run_of(finished) -> Callable[[str], Path]:
    """`run_of("ce-lora")`: a finished run's folder, made once for all tests. Do not write into it."""
    return lambda method: finished(method).path


@pytest.fixture
def own_copy(run_of, tmp_path) -> Callable[[str], Path]:
    """`own_copy("local")`: a run that the test may change."""

    def copy(method: str) -> Path:
        return Path(shutil.copytree(run_of(method), tmp_path / "run"))

    return copy
