"""Start all clients from an adapter that was trained before: a PEFT LoRA folder, or a client's folder of a run."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from trifed.adapters.settings import AdapterSettings
from trifed.common.errors import AdapterError, damage_in
from trifed.common.text import printable
from trifed.federation.training.shared_model import SharedModel
from trifed.methods.base import is_core, is_factor, is_head

CONFIG, WEIGHTS, HEAD, FACTS = (
    "adapter_config.json",
    "adapter_model.safetensors",
    "head.safetensors",
    "classifier.json",
)
SETTING = "adapter.start"
CHANGE_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Initialisations of PEFT that change the base model's weights."""
Json = dict[str, Any]


def start_from_adapter(
    shared_model: SharedModel, settings: AdapterSettings, labels: Sequence[str]
) -> tuple[list[str], str]:
    """Copy the tensors of the folder `settings.start` into a model and its initial values.

    A plain LoRA starts an adapter with a core C at C = I, times the ratio of the two scales, so that the function
    is the same. The head is copied if it has the same labels, in any order.

    Args:
        shared_model: The model with the run's own adapter, which is changed.
        settings: The adapter's settings, with `start`.
        labels: Names of the run's labels, in order.

    Returns:
        A sentence about each part of the folder that is not used, and the SHA-256 of the copied tensors.

    Raises:
        AdapterError: The folder holds no adapter, or one of other layers, another rank, scale or base model.
    """
    folder = Path(settings.start or "")
    config, tensors, facts = _read(folder), _read_tensors(folder / WEIGHTS), _read_facts(folder)
    fingerprint = facts.get("base_fingerprint", shared_model.fingerprint)
    if fingerprint != shared_model.fingerprint:
        raise AdapterError(f"{SETTING}: {folder} was trained on another base model; expected the run's own")
    adapter = {plain(name): tensor for name, tensor in tensors.items()}
    _check_rank(folder, adapter)
    _check_scale(folder, config, settings)
    found = {name: tensor for name, tensor in adapter.items() if is_factor(name) or is_core(name)}
    known = {**shared_model.frozen, **shared_model.parameters}
    places = {name for name in known if is_factor(name) or is_core(name)}
    if not places:
        raise AdapterError(f"{SETTING}: got {str(folder)!r}, but the run's method trains no adapter; leave it out")
    usual = settings.alpha / settings.rank
    ratio = (1.0 if config.get("train") == "core" else usual) / (
        1.0 if _trains_core_alone(shared_model) else usual
    )
    cores = {name: found.get(name, torch.eye(settings.rank)) for name in places if is_core(name)}
    found |= {name: ratio * core for name, core in cores.items()}
    _check_names(folder, set(found), places)
    unused = [f"{SETTING}: {count} tensors of {folder} are neither factors nor cores, and are left out"
              for count in [len(adapter) - len(set(adapter) & set(found))] if count]  # fmt: skip
    head, note = _head(folder, facts, labels, shared_model)
    _copy(shared_model, folder, {**found, **head})
    digest = hashlib.sha256()
    for name, tensor in sorted({**found, **head}.items()):
        digest.update(name.encode() + tensor.to(torch.float32).contiguous().numpy().tobytes())
    return [*unused, *note], digest.hexdigest()


def plain(name: str) -> str:
    """Shorten PEFT's name of a tensor, `base_model.model.X.lora_A.weight`, to the one that methods use."""
    return re.sub(r"^base_model\.model\.", "", name)


def _read(folder: Path) -> Json:
    """Return the adapter's configuration."""
    if (folder / "config.toml").is_file() and (folder / "clients").is_dir():
        inside = sorted(path.name for path in (folder / "clients").iterdir())
        raise AdapterError(
            f"{SETTING}: {folder} is a run; name the folder of a client, such as {folder}/clients/{inside[0]}, or "
            f"train the run further with `trifed run --resume {folder} --rounds N`"
            if inside else f"{SETTING}: {folder} is a run without clients' models; name an adapter's folder"
        )  # fmt: skip
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise AdapterError(
                f"{SETTING}: got {str(folder)!r}, which holds no {name}; expected a folder that PEFT's "
                f"save_pretrained wrote, or a client's, such as runs/NAME/clients/CLIENT"
            )
    with damage_in(folder / CONFIG, "write the adapter again"):
        return dict(json.loads((folder / CONFIG).read_text(encoding="utf-8")))


def _read_facts(folder: Path) -> Json:
    """Return what a client's folder says of its base model and labels; empty for a folder of PEFT's own."""
    if not (folder / FACTS).is_file():
        return {}
    with damage_in(folder / FACTS, "write the adapter again"):
        return dict(json.loads((folder / FACTS).read_text(encoding="utf-8")))


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return dict(load_file(path))
    except SafetensorError as error:
        raise AdapterError(f"{SETTING}: {path} is damaged: {error}") from error


def _check_rank(folder: Path, adapter: Mapping[str, Tensor]) -> None:
    """Raise AdapterError if a factor has a larger rank than its layer, which no run's adapter can have."""
    for name, tensor in adapter.items():
        if is_factor(name) and tensor.ndim == 2:
            rank, width = tensor.shape if ".lora_A." in name else tensor.shape[::-1]
            if rank > width:
                raise AdapterError(
                    f"{SETTING}: the adapter in {folder} has rank {rank}, and its layer "
                    f"'{printable(name.rsplit('.lora_', 1)[0])}' is {width} wide, as after a run of fedex-lora, "
                    f"whose residual is exported as more rank; no run can start from it. Export the whole model "
                    f"(--form merged) and set model.name to its folder instead"
                )


def _check_scale(folder: Path, config: Json, settings: AdapterSettings) -> None:
    """Raise AdapterError if the adapter has another rank or scale than the run's."""
    for name, key, own in (("rank", "r", settings.rank), ("alpha", "lora_alpha", settings.alpha)):
        if config.get(key) != own:
            raise AdapterError(
                f"{SETTING}: the adapter in {folder} has {name} {config.get(key)}, and the run {own:g}; set "
                f"adapter.{name} = {config.get(key)}"
            )
    base_changed = str(config.get("init_lora_weights")).lower().startswith(CHANGE_THE_BASE)
    if base_changed or any(
        config.get(name) for name in ("rank_pattern", "alpha_pattern", "use_rslora", "use_dora")
    ):
        raise AdapterError(
            f"{SETTING}: the adapter in {folder} has patterns of ranks or scales, rsLoRA, DoRA, or a start "
            f"that changes the base model; expected plain LoRA"
        )


def _trains_core_alone(shared_model: SharedModel) -> bool:
    """Return whether the run's adapter has frozen projections, and so the scale 1 instead of alpha / rank."""
    encoder = shared_model.encoder
    return isinstance(encoder, PeftModel) and getattr(encoder.peft_config["default"], "train", "") == "core"


def _check_names(folder: Path, found: set[str], places: set[str]) -> None:
    """Raise AdapterError if the folder adapts other layers than the run, or has factors that the run lacks."""
    if found == places:
        return
    layers = [
        sorted({name.rsplit(".lora_", 1)[0].rsplit(".", 1)[-1] for name in names}) for names in (found, places)
    ]
    if layers[0] != layers[1]:
        raise AdapterError(
            f"{SETTING}: the adapter in {folder} is on {layers[0]}, and the run's on {layers[1]}; set "
            f"adapter.target_modules = {json.dumps(layers[0])}"
        )
    other = sorted(found ^ places)[0]
    raise AdapterError(
        f"{SETTING}: {folder} and the run's method have different tensors, such as '{printable(other)}'; a method "
        f"of plain LoRA cannot start from a tri-matrix adapter: export it as plain LoRA first (--form lora)"
    )


def _head(
    folder: Path, facts: Json, labels: Sequence[str], shared_model: SharedModel
) -> tuple[dict[str, Tensor], list[str]]:
    """Return the head's tensors in the order of the run's labels, and a sentence if the head is not used."""
    known = {**shared_model.frozen, **shared_model.parameters}
    wanted = [name for name in known if is_head(name)]
    if not wanted or not (folder / HEAD).is_file():
        return {}, []
    theirs = list(map(str, facts.get("labels", [])))
    scales = [(facts.get(name), getattr(shared_model.settings, name)) for name in ("target_mean", "target_scale")]
    if facts.get("task") != shared_model.task.name or any(one != own for one, own in scales):
        return {}, [f"{SETTING}: {folder} was trained for another task or scale, so the head is initialised anew"]
    if sorted(theirs) != sorted(map(str, labels)):
        return {}, [f"{SETTING}: {folder} was trained on other labels, so the head is initialised anew"]
    rows = [theirs.index(str(label)) for label in labels]
    head = {f"head.{name}": tensor[rows] for name, tensor in _read_tensors(folder / HEAD).items()}
    return {name: tensor for name, tensor in head.items() if name in wanted}, []


def _copy(shared_model: SharedModel, folder: Path, tensors: Mapping[str, Tensor]) -> None:
    known = {**shared_model.frozen, **shared_model.parameters}
    for name, tensor in tensors.items():
        if known[name].shape != tensor.shape:
            raise AdapterError(
                f"{SETTING}: '{printable(name)}' of {folder} has the shape {tuple(tensor.shape)}, and the run's "
                f"{tuple(known[name].shape)}; it was trained on another base model"
            )
    with torch.no_grad():
        for name, tensor in tensors.items():
            known[name].copy_(tensor)
            if name in shared_model.start:
                shared_model.start[name].copy_(tensor)
