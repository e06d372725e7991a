"""Prepare a run: data, base model, tokenised examples, and a record of the machine."""

from __future__ import annotations

import math
import os
import platform
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trifed.common.errors import ConfigError, DataError
from trifed.common.imports import quick_imports
from trifed.config.client_training import check_members, check_names
from trifed.config.roles import ROLES
from trifed.config.run import RunConfig
from trifed.config.settings import ModelSettings
from trifed.data import FederatedData, make_clients
from trifed.data.tags import are_entities
from trifed.federation import events
from trifed.federation.training.class_weights import class_weights
from trifed.methods import METHODS, ORIGINS, Method, code_hash
from trifed.methods.packing import Layout
from trifed.methods.personalization import sends_nothing

if TYPE_CHECKING:
    from trifed.federation.client_update import ClientDataset
    from trifed.federation.training.shared_model import SharedModel
    from trifed.tasks.base_model import LoadedBase

PACKAGES = (
    "trifed",
    "torch",
    "transformers",
    "peft",
    "datasets",
    "flwr-datasets",
    "numpy",
    "scikit-learn",
    "POT",
)


def quiet(event: events.Event) -> None:
    """Ignore an event."""


def prepare(
    config: RunConfig, listener: events.Listener = quiet
) -> tuple[FederatedData, SharedModel, list[ClientDataset]]:
    """Load the data of a configured run, the model with its adapter, and the clients' tokenised examples.

    Torch is imported when the data have been read, so that a mistake in them is reported at once.
    """
    listener(events.Loading("data").to_dict())
    data = make_clients(config.data, config.seed, ROLES[config.task])
    names = [client.name for client in data.clients]
    check_names(config.client_settings, names)
    check_members(config, names)
    if "f1_entities" in config.computed_metrics and not are_entities(data.label_names):
        raise DataError(
            "metrics: f1_entities needs tags of entities, such as B-PER, I-PER and O, got "
            f"{', '.join(data.label_names)}; leave it out"
        )
    listener(events.DataSplit(data).to_dict())
    for text in nobody_to_share_with(config, names):
        listener(events.Trouble(text).to_dict())
    listener(events.Loading(f"model {config.model.name}").to_dict())
    with quick_imports():
        from trifed.federation.client_update import ClientDataset
        from trifed.federation.training.device_placement import choose_device
        from trifed.federation.training.shared_model import build_shared_model
        from trifed.tasks import TASKS

    choose_device(config.training)  # a missing device should be reported before the model is loaded
    task = TASKS[config.task]
    base = task.load(config.model.name, config.model.dtype)
    shared_model = build_shared_model(
        base,
        config.composed_method(),
        data.label_names,
        config.seed,
        (config.model, config.adapter, config.training),
        task,
    )
    if config.adapter.start is not None:
        from trifed.federation.initial_adapter import start_from_adapter

        if config.composed_method().shared_projections:
            raise ConfigError(
                [f"adapter.start: '{config.method.name}' makes its projections from clients' data; leave it out"]
            )
        notes, start_digest = start_from_adapter(shared_model, config.adapter, data.label_names)
        shared_model = replace(shared_model, start_digest=start_digest)
        for text in notes:
            listener(events.Trouble(text).to_dict())
    clients = [
        ClientDataset(
            i,
            c.name,
            *map(shared_model.encode, (c.train, c.valid, c.test)),
            class_weights=class_weights(config.training.class_weights, data.label_names, c.train.labels),
        )
        for i, c in enumerate(data.clients)
    ]
    if task.output == "number":
        for text in unscaled_numbers(config.model, data):
            listener(events.Trouble(text).to_dict())
    return data, shared_model, clients


def nobody_to_share_with(config: RunConfig, names: Sequence[str]) -> Iterator[str]:
    """Yield a sentence if a method that shares has one client only."""
    if len(names) == 1 and not sends_nothing(config.composed_method()):
        yield (
            f"data.clients: got one client ('{names[0]}'), so there is nobody to share with; expected two or "
            "more: give a column that names the site (--split column --column NAME), or use --method local"
        )


def unscaled_numbers(settings: ModelSettings, data: FederatedData) -> Iterator[str]:
    """Yield a sentence if all clients' training numbers, standardised by the settings, are far from 0 ± 1."""
    parts = [client.train.targets for client in data.clients if client.train.targets is not None]
    numbers = np.concatenate(parts) if parts else np.zeros(0)
    mean, spread = (float(numbers.mean()), float(numbers.std())) if len(numbers) else (0.0, 1.0)
    scale = settings.target_scale or 1.0
    if abs(mean - (settings.target_mean or 0.0)) > 2 * scale or not (not spread or scale / 4 < spread < 4 * scale):
        yield (
            f"the training numbers have a mean of {mean:.3g} and a standard deviation of {spread:.3g}: set "
            f"model.target_mean = {mean:.6g} and model.target_scale = {spread or 1:.3g}, or training is slow"
        )


@cache
def _versions() -> dict[str, str]:
    """Return the versions of the packages that belong to a result, read once in a process."""
    return {name: version(name) for name in PACKAGES}


def environment(config: RunConfig, base: LoadedBase, shared_model: SharedModel) -> dict[str, Any]:
    """Return the versions, hardware and identities that belong to a result."""
    import torch

    from trifed.federation.training.device_placement import choose_device, choose_precision

    device, name = choose_device(config.training), config.method.name
    outside = (
        {"method_origin": str(ORIGINS[name]), "method_code": code_hash(METHODS[name])} if name in ORIGINS else {}
    )
    return {
        "packages": dict(_versions()),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "cpus": os.cpu_count(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "precision": str(choose_precision(config.training, device)).removeprefix("torch."),
        "base_model": config.model.name,
        "base_fingerprint": base.fingerprint,
        "run_id": config.run_id(),
        **({"start_digest": shared_model.start_digest} if shared_model.start_digest else {}),
        **outside,
        "trained_values": shared_model.trained_values,
        "sent_values": values_a_round(config.composed_method(), shared_model.layout),
    }


def values_a_round(method: Method, layout: Layout) -> int:
    """Return the numbers that a method sends in a round, of the `layout` of all; with turns their mean."""
    turns = method.layouts(layout)
    return sum(math.prod(shape) for turn in turns for _, shape in turn) // len(turns)


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    named = re.search(r"^model name.*?:(.*)$", info.read_text(), re.MULTILINE) if info.is_file() else None
    return named[1].strip() if named else platform.processor()
