"""Finished runs whose clients' adapters are of every kind."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from trifed.config import make_config
from trifed.federation.exports import save_client
from trifed.federation.workbench import Workbench, build_workbench
from trifed.methods import METHODS
from trifed.methods.interface import is_core, is_head
from trifed.tasks.base_model import load_encoder

LABELS = ["billing", "delivery", "login"]
CORES = dataclasses.replace(
    METHODS["local"], adapter="public-frames", trains=lambda name: is_core(name) or is_head(name)
)
"""What every method with cores in public frames trains."""


@pytest.fixture(scope="session")
def save_as_client(toy_values, tiny_encoder) -> Callable[..., Workbench]:
    """`save_as_client(folder, method, pooling="cls")`: a client with random tensors, as a run would save it."""

    def save(folder: Path, method, labels=LABELS, **model) -> Workbench:
        config = make_config(toy_values(model=model))
        settings = (config.model, config.adapter, config.training)
        bench = build_workbench(load_encoder(config.model.name), method, len(labels), 0, settings)
        rng = torch.Generator().manual_seed(5)
        tensors = {name: 0.3 * torch.randn(t.shape, generator=rng) for name, t in bench.start.items()}
        shutil.rmtree(folder, ignore_errors=True)
        save_client(folder, bench, tensors, labels, config.model.name)
        return bench

    return save


@pytest.fixture(scope="session")
def run_of(finished, save_as_client, tmp_path_factory) -> Callable[[str], Path]:
    """`run_of("ce-lora")`: a copy of a finished run; of "public-frames", its client amber has such cores."""
    known: dict[str, Path] = {}

    def get(kind: str) -> Path:
        if kind not in known:
            framed = kind == "public-frames"
            folder = tmp_path_factory.mktemp(kind) / "toy"
            shutil.copytree(finished("local" if framed else kind).path, folder)
            if framed:
                save_as_client(folder / "clients" / "amber", CORES)
            known[kind] = folder
        return known[kind]

    return get


@pytest.fixture
def own_copy(run_of, tmp_path) -> Callable[[str], Path]:
    """`own_copy("local")`: a run that the test may change."""

    def copy(kind: str) -> Path:
        return Path(shutil.copytree(run_of(kind), tmp_path / "run"))

    return copy
