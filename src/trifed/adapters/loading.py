"""Load a tri-matrix adapter folder; every defect is reported as an `AdapterError`."""

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
    """Suppress PEFT 0.21's warning about a property that transformers 5 renamed; users cannot act on it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
        yield


def load_adapter(
    base: nn.Module, folder: str | Path, *, adapter_name: str = "default", trainable: bool = False
) -> PeftModel:
    """Attach the adapter that `save_pretrained` wrote to `folder` to `base`, which is changed in place.

    In addition to `PeftModel.from_pretrained`, this names a missing head, rejects weights stored with pickle
    and never contacts a model hub.

    Raises:
        AdapterError: The folder lacks a file, holds another PEFT type, is damaged, or does not fit `base`.
    """
    source = Path(folder)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        if not (source / name).is_file():
            raise AdapterError(f"{source}: no {name} there, expected a folder written by save_pretrained")
    try:
        peft_type = json.loads((source / "adapter_config.json").read_text(encoding="utf-8")).get("peft_type")
    except (ValueError, AttributeError) as error:
        raise AdapterError(f"{source / 'adapter_config.json'}: expected a JSON object ({error})") from error
    if peft_type != PEFT_TYPE:
        raise AdapterError(f"{source}: got an adapter of type {peft_type!r}, expected {PEFT_TYPE!r}")
    try:
        with without_renaming_warning():
            return PeftModel.from_pretrained(base, str(source), adapter_name=adapter_name, is_trainable=trainable)
    except KeyError as error:  # PEFT's error for a module of modules_to_save that the file lacks
        raise AdapterError(f"{source}: adapter_model.safetensors lacks {error}") from error
    except SafetensorError as error:
        raise AdapterError(f"{source}: adapter_model.safetensors is damaged: {error}") from error
