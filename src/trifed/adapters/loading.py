"""Loading a tri-matrix adapter folder, with every way it can be wrong reported as one kind of error."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from peft import PeftModel
from safetensors import SafetensorError
from torch import nn

from trifed.adapters import tri_matrix  # noqa: F401  (registers the PEFT type)
from trifed.adapters.config import PEFT_TYPE
from trifed.common.errors import AdapterError


@contextmanager
def without_renaming_warning() -> Iterator[None]:
    """PEFT 0.21 asks transformers 5 for a property that was renamed there; the user can do nothing about it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
        yield


def load_adapter(
    base: nn.Module, folder: str | Path, *, adapter_name: str = "default", trainable: bool = False
) -> PeftModel:
    """Put the adapter saved in `folder` by `save_pretrained` onto `base`, which is changed in place.

    `PeftModel.from_pretrained` does the work and refuses a file without its cores by itself. This adds
    what it leaves open: it names a missing head, refuses weights stored with pickle, and never asks a
    model hub.

    Raises `AdapterError` if the folder lacks a file, is of another PEFT type, is damaged, or does not fit
    `base`.
    """
    source = Path(folder)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        if not (source / name).is_file():
            raise AdapterError(f"{source} has no {name}: expected a folder written by save_pretrained")
    try:
        found = json.loads((source / "adapter_config.json").read_text(encoding="utf-8")).get("peft_type")
    except (ValueError, AttributeError) as error:
        raise AdapterError(f"{source / 'adapter_config.json'} is not a JSON object: {error}") from error
    if found != PEFT_TYPE:
        raise AdapterError(f"{source} holds an adapter of type {found!r}: expected {PEFT_TYPE!r}")
    try:
        with without_renaming_warning():
            return PeftModel.from_pretrained(base, str(source), adapter_name=adapter_name, is_trainable=trainable)
    except KeyError as error:  # how PEFT says that a module of modules_to_save is not in the file
        raise AdapterError(f"{source}: adapter_model.safetensors lacks {error}") from error
    except SafetensorError as error:
        raise AdapterError(f"{source}: adapter_model.safetensors is damaged: {error}") from error
