"""Exact export of a tri-matrix adapter to a plain LoRA adapter: C is folded into B."""

from __future__ import annotations

from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model_state_dict
from safetensors.torch import save_file

from trifed.adapters.config import TriLoraConfig
from trifed.adapters.tri_matrix import adapted_layers
from trifed.common.errors import AdapterError
from trifed.common.files import is_free, whole_folder

# For these tasks PEFT expects the head in the adapter file, whatever the configuration says.
_TASKS_WITH_HEAD = ("SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS")


def to_plain_lora(
    model: PeftModel, adapter_name: str = "default", *, include_modules_to_save: bool = True
) -> tuple[LoraConfig, dict[str, torch.Tensor]]:
    """Return the plain LoRA that computes the same function as a tri-matrix adapter.

    The new B is B·C, shape (d_out, r); A, shape (r, d_in), and the rank stay. For `train="core"` the new
    `lora_alpha` is r, so that the scale stays 1.

    Args:
        model: The model with the adapter.
        adapter_name: The adapter's name.
        include_modules_to_save: Include the head. False omits it, because vLLM rejects adapters with a head,
            and also omits a task type for which PEFT would expect one.

    Returns:
        The configuration, and copies of the tensors on the CPU under the names that `save_pretrained` uses.

    Raises:
        AdapterError: The model has no tri-matrix adapter of this name.
    """
    config = model.peft_config.get(adapter_name)
    if not isinstance(config, TriLoraConfig):
        names = [name for name, other in model.peft_config.items() if isinstance(other, TriLoraConfig)]
        raise AdapterError(f"adapter_name: got {adapter_name!r}, expected a tri-matrix adapter out of {names}")
    # save_embedding_layers="auto" may ask a model hub for the size of the base's vocabulary.
    saved = get_peft_model_state_dict(model, adapter_name=adapter_name, save_embedding_layers=False)
    tensors = {k: v for k, v in saved.items() if include_modules_to_save or ".lora_" in k}
    for name, layer in adapted_layers(model, adapter_name):
        # 1, unless PEFT's set_scale rescaled the layer after its creation, which no configuration records.
        rescaled = layer.scaling[adapter_name] / (layer.lora_alpha[adapter_name] / layer.r[adapter_name])
        b, c = tensors[f"{name}.lora_B.weight"], tensors.pop(f"{name}.lora_C.weight")
        work = torch.promote_types(b.dtype, torch.float32)
        tensors[f"{name}.lora_B.weight"] = (b.to(work) @ c.to(work) * rescaled).to(b.dtype)
    copies = {k: v.detach().cpu().clone().contiguous() for k, v in tensors.items()}
    return _plain_config(config, include_modules_to_save), copies


def _plain_config(config: TriLoraConfig, include_modules_to_save: bool) -> LoraConfig:
    values = {**config.to_dict(), "inference_mode": True}
    del values["train"], values["peft_type"]
    if config.train == "core":
        # With equal patterns for rank and alpha, PEFT takes both from one entry, and alpha / r is 1.
        values |= {"lora_alpha": config.r, "alpha_pattern": dict(config.rank_pattern)}
    if not include_modules_to_save:
        task_type = None if config.task_type in _TASKS_WITH_HEAD else config.task_type
        values |= {"modules_to_save": None, "task_type": task_type, "trainable_token_indices": None}
    return LoraConfig(**values)


def export_plain_lora(
    model: PeftModel,
    folder: str | Path,
    adapter_name: str = "default",
    include_modules_to_save: bool = True,
) -> Path:
    """Write a plain LoRA folder that PEFT, vLLM and converters read without this package.

    The folder holds `adapter_config.json` and `adapter_model.safetensors`. Both are written to a temporary
    folder next to it, which is then renamed, so that no incomplete folder can appear.

    Returns:
        The folder's path.

    Raises:
        AdapterError: `folder` exists and is not empty, or the model has no tri-matrix adapter of this name.
    """
    target = Path(folder)
    if not is_free(target):
        raise AdapterError(f"{target} exists and is not an empty folder: choose another, or remove it first")
    config, tensors = to_plain_lora(model, adapter_name, include_modules_to_save=include_modules_to_save)
    with whole_folder(target) as partial:
        save_file(tensors, str(partial / "adapter_model.safetensors"), metadata={"format": "pt"})
        config.save_pretrained(str(partial))
    return target
